# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ancillary data of datagrams: the address that one was sent to or leaves from, and ICMP errors about earlier ones.

Pure: bytes of the kernel's structures in and out. Addresses are packed, as inet_pton() returns them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

# From linux/in.h; the socket module of Python 3.9 has neither.
IP_PKTINFO = 8
IP_RECVERR = 11
IPV6_RECVERR = 25  # linux/in6.h

_IPV4_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, address of the host, destination
_IPV6_PKTINFO = struct.Struct("=16si")  # struct in6_pktinfo: address, interface
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err of linux/errqueue.h

SPACE = socket.CMSG_SPACE(_IPV6_PKTINFO.size)  # bytes; the larger of the two
# The extended error, the address of the host that sent it, and the destination.
ERROR_SPACE = socket.CMSG_SPACE(_EXTENDED_ERROR.size + 28) + SPACE

_FROM_NETWORK = {2, 3}  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6: not an error of this host

#: Where the destination is in the data of a received control message.
DESTINATION = {socket.AF_INET: slice(8, 12), socket.AF_INET6: slice(0, 16)}

#: (level, option) by family: report the destination of each datagram; report ICMP errors.
REPORT_DESTINATION = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
REPORT_ERRORS = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR),
}


def leaving_from(address: bytes) -> tuple[tuple[int, int, bytes]]:
    """Return the ancillary data for sendmsg() with which a datagram leaves from ``address``."""
    if len(address) == 4:
        return ((socket.IPPROTO_IP, IP_PKTINFO, _IPV4_PKTINFO.pack(0, address, b"")),)
    return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IPV6_PKTINFO.pack(address, 0)),)


def read_error(family: socket.AddressFamily, messages: Iterable[tuple[int, int, bytes]]) -> tuple[int, bytes | None]:
    """Return (errno, destination) of the control messages of one entry of the error queue.

    The errno is 0 where the error did not come from the network. The destination is the packed address that the error
    was sent to, which is the source of the datagram that it is about; None where the kernel does not say.
    """
    number, destination = 0, None
    for level, kind, data in messages:
        if (level, kind) == REPORT_ERRORS[family]:
            reported, origin = _EXTENDED_ERROR.unpack_from(data)[:2]
            number = reported if origin in _FROM_NETWORK else 0
        elif kind in (IP_PKTINFO, socket.IPV6_PKTINFO):
            destination = data[DESTINATION[family]]
    return number, destination
