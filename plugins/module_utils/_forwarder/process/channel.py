# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's line to each of its children: one socket pair, JSON messages both ways.

A child says that it is READY or what it FAILED of, and answers what it is asked; the supervisor tells workers which
slots to cover. The end of the line means that the other process is gone. It stays open over the supervisor's exec.
SOCK_SEQPACKET keeps messages apart, so nobody has to frame or to buffer them. A message has a bound: who sends a larger
one gets TooLarge. What cannot be read all the same (a program of another version may send it) is LOST, and costs nobody
more than that message.
"""

from __future__ import annotations

import errno
import json
import os
import socket

LARGEST = 65535  # bytes of one message that is sent; far below net.core.wmem_default (212,992)
ROOM = 1 << 18  # bytes for one that is received

READY = "ready"
FAILED = "failed"
LOST = "lost"  # in the place of a message that cannot be read: why


class TooLarge(ValueError):
    """A message is larger than the line carries; nothing was sent."""


class Channel:
    """One end of the line."""

    def __init__(self, sock):
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def adopt(cls, number):
        """Return the channel of a descriptor inherited over exec, which becomes close-on-exec again."""
        os.set_inheritable(number, False)
        return cls(socket.socket(fileno=number))

    def fileno(self):
        """Return the descriptor, for selectors and for the exec."""
        return self._sock.fileno()

    def send(self, message):
        """Send a JSON object; returns whether the other side can have it (it may be gone, or not be reading).

        Raise TooLarge.
        """
        data = json.dumps(message).encode()
        if len(data) > LARGEST:
            raise TooLarge(f"a message of {len(data)} bytes; the line carries {LARGEST}")
        try:
            return self._sock.send(data) > 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # net.core.wmem_default is lower than anywhere we know
                raise TooLarge(f"a message of {len(data)} bytes: {error.strerror}") from None
            return False

    def receive(self):
        """Return ([messages that are waiting], whether the other side is gone)."""
        messages: list[dict] = []
        while True:
            try:
                data, _ancillary, flags, _address = self._sock.recvmsg(ROOM)
            except BlockingIOError:
                return messages, False
            except OSError:  # ECONNRESET: it went away with our messages unread
                return messages, True
            if not data:
                return messages, True
            messages.append(_read(data, flags))

    def close(self):
        """Close this end; the other side sees the end of the line."""
        self._sock.close()


def _read(data, flags):
    """Return the message in ``data``, a dictionary; {LOST: why} where there is none."""
    if flags & socket.MSG_TRUNC:
        return {LOST: f"it is larger than {ROOM} bytes"}
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        return {LOST: f"it is not JSON: {error}"}
    return message if isinstance(message, dict) else {LOST: "it is not a JSON object"}


def pair():
    """Return the two ends of a new line; raise OSError."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)
