# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Netlink messages as bytes (netlink(7)), for what pyroute2 does not support or is too slow for.

A ``Netlink`` works in the network namespace in which the calling thread created it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import TypeVar

AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
# Flags of an acknowledgement: the request is not repeated in full; attributes follow (linux/netlink.h).
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 11, 12
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
Buffer = TypeVar("Buffer", bytes, memoryview)
# Seconds to wait for the kernel; it answers at once, or not at all.
TIMEOUT = 5.0
# A dump arrives in pieces of up to 32 KiB (netlink_dump in net/netlink/af_netlink.c).
BUFFER = 65536
# How often a list is read again because it changed meanwhile.
ATTEMPTS = 10


def attribute(kind: int, payload: bytes) -> bytes:
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: Buffer) -> Iterator[tuple[int, Buffer]]:
    """(kind, payload) of each attribute, without the flags that a kind may carry."""
    start, end = 0, len(data)
    while end - start >= 4:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def link_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"  # it disappeared between the two requests


def link_index(name: str) -> int:
    """The index of an interface. OSError (ENODEV) with the name if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name) from error


def message(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body


def address_text(packed: bytes) -> str:
    """An address of either family in text form."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


class Netlink:
    """A context manager for one socket of a netlink protocol; one request at a time.

    With ``strict`` the kernel lists only what was requested, and validates requests; before 4.20 it lists everything.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE, strict: bool = False):
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(TIMEOUT)
        # Whether the last list did not change while it was read.
        self._is_consistent = True
        self._socket.bind((0, 0))
        # The kernel then explains in words why it refuses something (Linux 4.12).
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        if strict:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> bytes:
        """Send a complete message; return the complete answer."""
        self._socket.send(request)
        return self._socket.recv(BUFFER)

    def exchange_all(self, requests: list[bytes]) -> list[bytes]:
        """Send complete messages at once, each with NLM_F_ACK; return their answers."""
        self._socket.send(b"".join(requests))
        return [self._socket.recv(BUFFER) for _request in requests]

    def get(self, kind: int, body: bytes) -> bytes:
        """The body of one object. OSError with the kernel's reason if there is none."""
        answer = self.exchange(message(kind, 0, body))
        length, answered, _flags, _sequence, _port = HEADER.unpack_from(answer)
        if answered == NLMSG_ERROR:
            raise_error(answer)
        return answer[HEADER.size : length]

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Send a request to change something. OSError with the kernel's reason if it refuses."""
        answer = self.exchange(message(kind, NLM_F_ACK | flags, body))
        raise_error(answer)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all objects of a list. OSError if the kernel refuses."""
        for _attempt in range(ATTEMPTS):
            bodies = list(self.stream(kind, body))
            if self._is_consistent:
                return bodies
        raise OSError(errno.EAGAIN, "the list kept changing while it was read")

    def stream(self, kind: int, body: bytes) -> Iterator[bytes]:
        """The bodies of a list, which may change while it is read; close the socket to end before the list does."""
        self._socket.send(message(kind, NLM_F_DUMP, body))
        self._is_consistent = True
        while True:
            piece = self._socket.recv(BUFFER)
            start = 0
            while start + HEADER.size <= len(piece):
                length, kind, flags, _sequence, _port = HEADER.unpack_from(piece, start)
                self._is_consistent = self._is_consistent and not flags & NLM_F_DUMP_INTR
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    raise_error(piece[start : start + length])
                    return
                yield piece[start + HEADER.size : start + length]
                start += (length + 3) & ~3


def raise_error(answer: bytes) -> None:
    """Raise OSError for an acknowledgement, or the end of a list, that contains an error number."""
    length, kind, flags, _sequence, _port = HEADER.unpack_from(answer)
    code = -struct.unpack_from("=i", answer, HEADER.size)[0] if length >= HEADER.size + 4 else 0
    if code > 0:
        words = _reason(answer[:length], flags) if kind == NLMSG_ERROR else None
        raise OSError(code, words or os.strerror(code))


def _reason(answer: bytes, flags: int) -> str | None:
    if not flags & NLM_F_ACK_TLVS:
        return None
    (request,) = struct.unpack_from("=I", answer, HEADER.size + 4)
    start = HEADER.size + 4 + (HEADER.size if flags & NLM_F_CAPPED else (request + 3) & ~3)
    words = dict(attributes(answer[start:])).get(NLMSGERR_ATTR_MSG)
    return words.rstrip(b"\0").decode(errors="replace") if words else None
