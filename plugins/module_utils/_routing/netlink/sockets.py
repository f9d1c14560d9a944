# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The TCP and UDP sockets of this host (sock_diag(7)): their addresses and marks.

The numbers are from linux/inet_diag.h, linux/sock_diag.h and net/tcp_states.h. The mark needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .messages import Netlink, attributes

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_MARK = 15
# struct inet_diag_req_v2: family, protocol, extensions, padding, states; then a struct inet_diag_sockid of zeros.
REQUEST = struct.Struct("=BBBxI48x")
# struct inet_diag_msg: family, state, (timer, retransmits), ports, addresses; then what is not read, and attributes.
MESSAGE = struct.Struct("=BB2x4s16s16s")
ATTRIBUTES_AT = 72
U32 = struct.Struct("=I")
PORTS = struct.Struct("!HH")
TIME_WAIT, CLOSE, LISTEN = 6, 7, 10
# A TCP socket in one of the other states may still send. Of UDP, those without a peer are in the state CLOSE.
TCP_STATES = 0x1FFE & ~(1 << TIME_WAIT | 1 << CLOSE | 1 << LISTEN)
UDP_STATES = 0x1FFE
IPV4_MAPPED = bytes(10) + b"\xff\xff"


class Socket(NamedTuple):
    """Addresses are packed, those of IPv4 in IPv4-mapped IPv6 as IPv4; ``peer`` is all zeros without a peer."""

    protocol: int
    local: bytes
    local_port: int
    peer: bytes
    peer_port: int
    mark: int


def living() -> Iterator[Socket]:
    """All TCP sockets of connections that have not ended, and all UDP sockets. OSError if they cannot be listed."""
    for protocol, states in ((socket.IPPROTO_TCP, TCP_STATES), (socket.IPPROTO_UDP, UDP_STATES)):
        for family in (socket.AF_INET, socket.AF_INET6):
            with Netlink(NETLINK_SOCK_DIAG) as netlink:
                for body in netlink.stream(SOCK_DIAG_BY_FAMILY, REQUEST.pack(family, protocol, 0, states)):
                    yield decode(body, protocol)


def decode(body: bytes, protocol: int) -> Socket:
    family, _state, ports, local, peer = MESSAGE.unpack_from(body)
    local_port, peer_port = PORTS.unpack(ports)
    if family == socket.AF_INET:
        local, peer = local[:4], peer[:4]
    elif local[:12] == IPV4_MAPPED:
        local, peer = local[12:], peer[12:]
    mark = next((U32.unpack(value)[0] for kind, value in attributes(body[ATTRIBUTES_AT:]) if kind == INET_DIAG_MARK), 0)
    return Socket(protocol, local, local_port, peer, peer_port, mark)
