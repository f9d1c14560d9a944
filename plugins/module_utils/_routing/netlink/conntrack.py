# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Count the connections that carry a mark, with a ctnetlink request that lists only these.

Needs CAP_NET_ADMIN, and a kernel with connection tracking. The numbers are from linux/netfilter/nfnetlink.h,
nfnetlink_conntrack.h and nf_conntrack_tcp.h.
"""

from __future__ import annotations

import socket
import struct

from .messages import Netlink, attribute, attributes

# NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_GET
GET = 1 << 8 | 1
NETLINK_NETFILTER = 12
CTA_PROTOINFO, CTA_MARK, CTA_MARK_MASK = 4, 8, 21
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
# TCP_CONNTRACK_TIME_WAIT and TCP_CONNTRACK_CLOSE: such a connection sends nothing any more.
ENDED = (7, 8)
# struct nfgenmsg: family, version, resource id
GENERIC = struct.Struct("=BBH")
U32 = struct.Struct("!I")


def request(mark: int, mask: int) -> bytes:
    """The body of a request for the connections whose mark is ``mark`` under ``mask``."""
    filter = attribute(CTA_MARK, U32.pack(mark)) + attribute(CTA_MARK_MASK, U32.pack(mask))
    return GENERIC.pack(socket.AF_UNSPEC, 0, 0) + filter


def carries(body: bytes, mark: int, mask: int) -> bool:
    """Whether it is such a connection and has not ended. (Kernels before 3.15 ignore the filter.)"""
    parts = dict(attributes(body[GENERIC.size :]))
    actual = U32.unpack(parts[CTA_MARK])[0] if CTA_MARK in parts else 0
    return actual & mask == mark and _tcp_state(parts.get(CTA_PROTOINFO, b"")) not in ENDED


def _tcp_state(info: bytes) -> int | None:
    inner = dict(attributes(dict(attributes(info)).get(CTA_PROTOINFO_TCP, b"")))
    return inner[CTA_PROTOINFO_TCP_STATE][0] if CTA_PROTOINFO_TCP_STATE in inner else None


def count(mark: int, mask: int) -> int | None:
    """The number of connections with a mark that have not ended; None if it cannot be read."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return sum(carries(body, mark, mask) for body in netlink.dump(GET, request(mark, mask)))
    except OSError:
        return None
