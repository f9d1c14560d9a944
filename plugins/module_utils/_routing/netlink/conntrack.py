# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connections that conntrack knows, with a ctnetlink request that lists only those with a mark.

Needs CAP_NET_ADMIN, and a kernel with connection tracking. The numbers are from linux/netfilter/nfnetlink.h,
nfnetlink_conntrack.h and nf_conntrack_tcp.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .messages import AF, Netlink, attribute, attributes

# NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET
GET = 1 << 8 | 1
NETLINK_NETFILTER = 12
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_PROTOINFO, CTA_MARK, CTA_MARK_MASK = 1, 2, 4, 8, 21
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
# Source and destination have the numbers 1 and 2 over IPv4, 3 and 4 over IPv6; likewise the ports after the protocol.
CTA_IP_SRC, CTA_IP_DST = (1, 3), (2, 4)
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
# TCP_CONNTRACK_TIME_WAIT and TCP_CONNTRACK_CLOSE: such a connection sends nothing any more.
ENDED = (7, 8)
# struct nfgenmsg: family, version, resource id
GENERIC = struct.Struct("=BBH")
U32 = struct.Struct("!I")


def request(mark: int, mask: int, family: int = socket.AF_UNSPEC) -> bytes:
    """The body of a request for the connections of a family (default: all) whose mark is ``mark`` under ``mask``."""
    filter = attribute(CTA_MARK, U32.pack(mark)) + attribute(CTA_MARK_MASK, U32.pack(mask))
    return GENERIC.pack(family, 0, 0) + filter


def carries(body: bytes, mark: int, mask: int) -> bool:
    """Whether it is such a connection and has not ended. (Kernels before 3.15 ignore the filter.)"""
    parts = dict(attributes(body[GENERIC.size :]))
    actual = U32.unpack(parts[CTA_MARK])[0] if CTA_MARK in parts else 0
    return actual & mask == mark and tcp_state(parts.get(CTA_PROTOINFO, b"")) not in ENDED


def tcp_state(info: bytes) -> int | None:
    """The state in CTA_PROTOINFO; None if it is not of TCP."""
    inner = dict(attributes(dict(attributes(info)).get(CTA_PROTOINFO_TCP, b"")))
    return inner[CTA_PROTOINFO_TCP_STATE][0] if CTA_PROTOINFO_TCP_STATE in inner else None


class Flow(NamedTuple):
    """A connection: addresses are packed; ``server`` is who answers, which differs from ``target`` after a DNAT."""

    protocol: int
    source: bytes
    source_port: int
    target: bytes
    target_port: int
    server: bytes


def living(mark: int = 0, mask: int = 0, family: str | None = None) -> Iterator[Flow]:
    """The connections with a mark that have not ended, by default all. OSError if they cannot be listed."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        for body in netlink.stream(GET, request(mark, mask, AF[family] if family else socket.AF_UNSPEC)):
            if carries(body, mark, mask):
                yield decode(body)


def decode(body: bytes) -> Flow:
    parts = dict(attributes(body[GENERIC.size :]))
    sent, answered = (dict(attributes(parts.get(kind, b""))) for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
    ends, reply = (dict(attributes(part.get(CTA_TUPLE_IP, b""))) for part in (sent, answered))
    ports = dict(attributes(sent.get(CTA_TUPLE_PROTO, b"")))
    # ICMP has no ports.
    source_port, target_port = (
        int.from_bytes(ports.get(kind, b""), "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT)
    )
    protocol = ports.get(CTA_PROTO_NUM, b"\0")[0]
    return Flow(
        protocol, _one(ends, CTA_IP_SRC), source_port, _one(ends, CTA_IP_DST), target_port, _one(reply, CTA_IP_SRC)
    )


def _one(parts: dict[int, bytes], kinds: tuple[int, int]) -> bytes:
    return next((parts[kind] for kind in kinds if kind in parts), b"")
