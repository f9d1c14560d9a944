# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Request and decode routes as netlink messages (rtnetlink(7), linux/rtnetlink.h).

A router may have a million routes of others, so only those of one owner or one table are requested. This needs strict
checking (Linux 4.20); an older kernel lists all routes, so callers have to filter the list as well.
"""

from __future__ import annotations

import struct
from typing import Any

from ..document import formatting
from ..document.model import KernelObject, Route
from .messages import AF, address_text, attribute, attributes, link_name

RTM_DELROUTE, RTM_GETROUTE = 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_FLOW, RTA_TABLE, RTA_VIA, RTA_ENCAP, RTA_NH_ID = 9, 11, 15, 18, 22, 30
RTAX_MTU, RTAX_ADVMSS = 2, 8
RTNH_F_ONLINK = 0x4
RTM_F_CLONED = 0x200
# RTN_* and RT_SCOPE_*
TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
SCOPES = {0: "global", 253: "link", 254: "host"}
# Attributes that we never write: a route with one of them is not ours.
OTHER_DETAILS = {RTA_MULTIPATH, RTA_FLOW, RTA_VIA, RTA_ENCAP, RTA_NH_ID}
METRICS = {RTAX_MTU: "mtu", RTAX_ADVMSS: "advmss"}
# family, dst_len, src_len, tos, table, protocol, scope, type, flags
BODY = struct.Struct("=BBBBBBBBI")
U32 = struct.Struct("=I")


def listing(family: str, protocol: int = 0, table: int = 0, learnt: bool = False) -> bytes:
    """The body of a request for the routes of a family, a protocol and a table (0: any).

    ``learnt``: the routes that the kernel has learnt from redirects and path MTUs, instead of these.
    """
    head = BODY.pack(AF[family], 0, 0, 0, 0, protocol, 0, 0, RTM_F_CLONED if learnt else 0)
    return head + (attribute(RTA_TABLE, U32.pack(table)) if table else b"")


def is_learnt(body: bytes) -> bool:
    return bool(BODY.unpack_from(body)[-1] & RTM_F_CLONED)


def decode(body: bytes, family: str) -> KernelObject | None:
    """A route with its owner; None for a learnt one.

    A route that the model cannot express has no value: it is not ours, whatever its protocol.
    """
    _family, length, _src_len, tos, short_table, protocol, scope, kind, flags = BODY.unpack_from(body)
    if is_learnt(body):
        return None
    parts = dict(attributes(body[BODY.size :]))
    table = _number(parts, RTA_TABLE) or short_table
    described: dict[str, Any] = {
        "dst": f"{address_text(parts[RTA_DST])}/{length}" if RTA_DST in parts else "default",
        "via": address_text(parts[RTA_GATEWAY]) if RTA_GATEWAY in parts else None,
        "dev": link_name(_number(parts, RTA_OIF)) if RTA_OIF in parts else None,
    }
    metrics = {number: U32.unpack(value)[0] for number, value in attributes(parts.get(RTA_METRICS, b""))}
    value = None
    plain = kind in TYPES and scope in SCOPES and not tos and not OTHER_DETAILS & parts.keys()
    if plain and metrics.keys() <= METRICS.keys():
        value = Route(
            family=family,
            table=table,
            type=TYPES[kind],
            src=address_text(parts[RTA_PREFSRC]) if RTA_PREFSRC in parts else None,
            metric=_number(parts, RTA_PRIORITY),
            scope=SCOPES[scope],
            onlink=bool(flags & RTNH_F_ONLINK),
            **described,
            **{METRICS[number]: metric for number, metric in metrics.items()},
        )
    line = (
        formatting.route(value) if value else f"{formatting.ip_command(family)} route {described['dst']} table {table}"
    )
    return KernelObject(value, protocol, family, table, line)


def _number(parts: dict[int, bytes], kind: int) -> int:
    return U32.unpack(parts[kind])[0] if kind in parts else 0
