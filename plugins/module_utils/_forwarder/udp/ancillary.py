# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels beside a datagram: the address it was sent to or leaves from, and what ICMP said about an earlier one.

Pure: bytes of the kernel's structures in and out. An address is packed, as inet_pton() gives it.
"""

from __future__ import annotations

import socket
import struct

# From linux/in.h; the socket module of Python 3.9 has neither.
IP_PKTINFO = 8
IP_RECVERR = 11
IPV6_RECVERR = 25  # linux/in6.h

_IPV4_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, address of the host, destination
_IPV6_PKTINFO = struct.Struct("=16si")  # struct in6_pktinfo: address, interface
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err of linux/errqueue.h

SPACE = socket.CMSG_SPACE(_IPV6_PKTINFO.size)  # bytes; the larger of the two
# The extended error and, behind it, the address of who complained; the destination beside them.
ERROR_SPACE = socket.CMSG_SPACE(_EXTENDED_ERROR.size + 28) + SPACE

_FROM_NETWORK = {2, 3}  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6: not this host's own opinion

# Where the destination stands in the data of a received control message.
DESTINATION = {socket.AF_INET: slice(8, 12), socket.AF_INET6: slice(0, 16)}

# Socket options that have the kernel tell: (level, option) of the destination and of errors, by family.
TELL_DESTINATION = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
TELL_ERRORS = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR),
}


def leaving_from(address):
    """Return what sendmsg() takes as ancillary data so that a datagram leaves from ``address``."""
    if len(address) == 4:
        return ((socket.IPPROTO_IP, IP_PKTINFO, _IPV4_PKTINFO.pack(0, address, b"")),)
    return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IPV6_PKTINFO.pack(address, 0)),)


def read_error(family, messages):
    """Return (errno, destination) of the control messages of one entry of the error queue.

    The errno is 0 when the error did not come from the network. The destination is the packed address the complaint was
    sent to, which is the source of the datagram it is about; None when it is not told.
    """
    number, destination = 0, None
    for level, kind, data in messages:
        if (level, kind) == TELL_ERRORS[family]:
            told, origin = _EXTENDED_ERROR.unpack_from(data)[:2]
            number = told if origin in _FROM_NETWORK else 0
        elif kind in (IP_PKTINFO, socket.IPV6_PKTINFO):
            destination = data[DESTINATION[family]]
    return number, destination
