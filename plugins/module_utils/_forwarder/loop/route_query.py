# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to the kernel about routes and rules, which need no privileges: rtnetlink(7), linux/rtnetlink.h."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from ..._shared.families import socket_family_of

RTM_GETROUTE, RTM_NEWROUTE, RTM_GETRULE, RTM_NEWRULE = 26, 24, 34, 32
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_MARK, RTA_IP_PROTO, RTA_SPORT, RTA_DPORT = 1, 2, 3, 4, 16, 27, 28, 29
FRA_FWMARK = 10
LOCAL = 2  # RTN_LOCAL
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
TIMEOUT = 0.2  # seconds; the kernel answers at once


class Kernel:
    """A netlink socket; raise OSError if there can be none (a unit of version 0.1.0 forbids it)."""

    def __init__(self):
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sock.settimeout(TIMEOUT)
        self._number = 0

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._sock.fileno()

    def close(self):
        """Close the socket."""
        self._sock.close()

    def is_local(self, address: str) -> bool:
        """Whether packets to ``address`` are for this host."""
        found = self._route(address)
        return found is not None and found[0] == LOCAL

    def interface_to(self, address: str) -> int | None:
        """Return the index of the interface by which packets to ``address`` leave, None without a route."""
        found = self._route(address)
        return found[1].get(RTA_OIF) if found else None

    def delivers(self, src: str, dst: str, iif: int, protocol: str, port: int, mark: int = 0) -> bool:
        """Whether a packet from ``src`` and its ``port`` to ``dst``, which comes in by ``iif``, is for this host."""
        found = self._route(dst, src, iif, protocol, port, mark)
        return found is not None and found[0] == LOCAL

    def marks(self, family: int) -> set[int]:
        """Return the marks that rules of a family select by."""
        found = set()
        for kind, body in self._exchange(RTM_GETRULE, NLM_F_DUMP, bytes([family]) + bytes(11)):
            if kind == RTM_NEWRULE:
                found.add(_numbers(body[12:]).get(FRA_FWMARK, 0))
        return found - {0}

    def _route(self, dst, src=None, iif=None, protocol=None, port=0, mark=0):
        """Return (type, {attribute: number}) of the route of a packet, None without one."""
        family = socket_family_of(dst)
        bits = 32 if family == socket.AF_INET else 128
        body = _ROUTE.pack(family, bits, bits if src else 0, 0, 0, 0, 0, 0, 0)
        body += _attribute(RTA_DST, socket.inet_pton(family, dst))
        if src:
            body += _attribute(RTA_SRC, socket.inet_pton(family, src)) + _attribute(RTA_IIF, struct.pack("=I", iif))
            body += _attribute(RTA_IP_PROTO, bytes([PROTOCOLS[protocol]]))
            body += _attribute(RTA_SPORT, struct.pack("!H", port)) + _attribute(RTA_DPORT, struct.pack("!H", 40000))
        if mark:
            body += _attribute(RTA_MARK, struct.pack("=I", mark))
        for kind, answer in self._exchange(RTM_GETROUTE, 0, body):
            if kind == RTM_NEWROUTE:
                return answer[7], _numbers(answer[_ROUTE.size :])
        return None

    def _exchange(self, kind, flags, body) -> Iterator[tuple[int, bytes]]:
        """Yield (type, body) of the messages of an answer. An error ends it: the kernel has no route, or refuses."""
        self._number = number = self._number + 1 & 0xFFFFFFFF
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body)
        while True:
            data = self._sock.recv(1 << 18)
            while len(data) >= _HEADER.size:
                length, kind, _flags, of, _port = _HEADER.unpack_from(data)
                if length < _HEADER.size:
                    raise OSError(errno.EBADMSG, "the kernel's answer is damaged")
                message, data = data[_HEADER.size : length], data[length + 3 & ~3 :]
                if of != number:
                    continue  # of a question that was given up
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                yield kind, message
                if not flags:
                    return


def _attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _numbers(data):
    """Return {type: value} of the attributes with four bytes, which may be a number."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length == 8:
            found[kind] = struct.unpack_from("=I", data, 4)[0]
        data = data[max(length, 4) + 3 & ~3 :]
    return found
