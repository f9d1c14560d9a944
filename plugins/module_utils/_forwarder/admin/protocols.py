# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the servers read requests and format answers: lines of JSON, and the part of HTTP/1.0 that scrapers need."""

from __future__ import annotations

from itertools import chain

from .connection import MAX_REQUEST

LONG_LINE = f'{{"ok": false, "error": "the request is longer than {MAX_REQUEST} bytes"}}\n'.encode()
SMALL = 65536  # bytes; a larger answer is evaluated while the client reads it


def at_once(pieces):
    """Return ``pieces`` of text as bytes if they are SMALL in total, else as an iterator of bytes."""
    encoded = (piece.encode() for piece in pieces)
    first = b""
    for piece in encoded:
        first += piece
        if len(first) > SMALL:
            return chain([first], encoded)
    return first


def line_handler(answer):
    """Return a handle(connection, buffer) that calls ``answer(connection, line)`` for the first complete line."""

    def handle(connection, buffer):
        line, newline, _rest = buffer.partition(b"\n")
        if newline:
            del buffer[: len(line) + 1]
            answer(connection, bytes(line))
        return bool(newline)

    return handle


def http_handler(answer):
    """Return a handle(connection, buffer) for HTTP/1.0.

    ``answer(path)`` returns (status, content type, iterator of text).
    """

    def handle(connection, buffer):
        if b"\r\n\r\n" not in buffer and b"\n\n" not in buffer:
            return False
        parts = bytes(buffer).split(b"\r\n", 1)[0].split()
        buffer.clear()
        connection.write(_response(parts, answer), last=True)
        return True

    return handle


def _response(parts, answer):
    """Return a complete response, as bytes if it is SMALL, else as an iterator of bytes."""
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return http_error("400 Bad Request")
    if parts[0] not in (b"GET", b"HEAD"):
        return http_error("405 Method Not Allowed")
    status, kind, pieces = answer(parts[1].partition(b"?")[0].decode("latin-1"))
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    if parts[0] == b"HEAD":
        return f"{head}\r\n".encode("ascii")
    body = at_once(pieces)
    if isinstance(body, bytes):
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body
    return chain([f"{head}\r\n".encode("ascii")], body)  # without a length: the body ends with the connection


def http_error(status):
    """Return a complete response without a body."""
    return f"HTTP/1.0 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("ascii")
