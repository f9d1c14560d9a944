# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``ip route get`` for a packet with the protocol and ports that policy rules select by.

pyroute2 (0.7.2 and 0.9.7) silently drops ``ip_proto``, ``sport`` and ``dport`` from such a request, so its answer is
for another packet. The message is small and therefore built here (rtnetlink(7), linux/rtnetlink.h).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from ..document.model import ip_protocol
from .messages import HEADER, NLMSG_ERROR, Netlink, attribute, attributes, link_index, link_name, message

RTM_GETROUTE = 26
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC = 1, 2, 3, 4, 5, 7
RTA_TABLE, RTA_MARK, RTA_VIA, RTA_IP_PROTO, RTA_SPORT, RTA_DPORT = 15, 16, 18, 27, 28, 29
RTM_F_LOOKUP_TABLE = 0x1000
# linux/in_route.h, shown by ip(8) as <redirected>
RTCF_REDIRECTED = 0x00040000
# RTN_* of linux/rtnetlink.h
TYPES = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
TYPES.update({6: "blackhole", 7: "unreachable", 8: "prohibit"})
# The errors of rules and routes of these types (fib_props in net/ipv4/fib_semantics.c, fib4_rule_action).
ERRORS = {errno.EACCES: "prohibit", errno.ENETUNREACH: "unreachable", errno.EHOSTUNREACH: "unreachable"}


@dataclass(frozen=True)
class RouteAnswer:
    """What the kernel would do with a packet.

    ``type`` is unicast, local, unreachable, prohibit, broadcast, ... or ``refused`` (rp_filter or a martian source,
    if an incoming interface was given). ``error`` is the name of the errno if there is no route (ENETUNREACH).
    ``redirected``: the route was learnt from an ICMP redirect (IPv4).
    """

    type: str
    via: str | None = None
    dev: str | None = None
    src: str | None = None
    table: int | None = None
    error: str | None = None
    redirected: bool = False


def request(
    dst: str,
    src: str | None = None,
    iif: int | None = None,
    oif: int | None = None,
    mark: int | None = None,
    ip_proto: object | None = None,
    sport: int | None = None,
    dport: int | None = None,
) -> bytes:
    """The RTM_GETROUTE message; interfaces by index, ``ip_proto`` by name or number."""
    target = ipaddress.ip_address(dst)
    family, bits = (socket.AF_INET, 32) if target.version == 4 else (socket.AF_INET6, 128)
    parts = [attribute(RTA_DST, target.packed)]
    if src is not None:
        parts.append(attribute(RTA_SRC, ipaddress.ip_address(src).packed))
    for kind, number in ((RTA_IIF, iif), (RTA_OIF, oif), (RTA_MARK, mark)):
        if number is not None:
            parts.append(attribute(kind, struct.pack("=I", number)))
    if ip_proto is not None:
        parts.append(attribute(RTA_IP_PROTO, struct.pack("=B", ip_protocol(ip_proto))))
    for kind, number in ((RTA_SPORT, sport), (RTA_DPORT, dport)):
        if number is not None:
            parts.append(attribute(kind, struct.pack("!H", number)))
    source_bits = bits if src is not None else 0
    body = struct.pack("=BBBBBBBBI", family, bits, source_bits, 0, 0, 0, 0, 0, RTM_F_LOOKUP_TABLE) + b"".join(parts)
    return message(RTM_GETROUTE, 0, body)


def parse(reply: bytes) -> RouteAnswer:
    """Decode a reply; ``dev`` is the index of the interface, as text."""
    kind = HEADER.unpack_from(reply)[1]
    if kind == NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, 16)
        name = errno.errorcode.get(-code, str(-code))
        return RouteAnswer(ERRORS.get(-code, "refused"), error=name)
    fields = struct.unpack_from("=BBBBBBBBI", reply, 16)
    parts = dict(attributes(reply[28:]))
    gateway = parts.get(RTA_GATEWAY) or parts.get(RTA_VIA, b"")[2:]
    numbers = {kind: struct.unpack("=I", parts[kind])[0] for kind in (RTA_OIF, RTA_TABLE) if kind in parts}
    return RouteAnswer(
        type=TYPES.get(fields[7], str(fields[7])),
        via=_address(gateway),
        dev=str(numbers[RTA_OIF]) if RTA_OIF in numbers else None,
        src=_address(parts.get(RTA_PREFSRC, b"")),
        table=numbers.get(RTA_TABLE),
        redirected=bool(fields[8] & RTCF_REDIRECTED),
    )


def _address(packed: bytes) -> str | None:
    return str(ipaddress.ip_address(packed)) if len(packed) in (4, 16) else None


def route_get(
    dst: str,
    src: str | None = None,
    iif: str | None = None,
    mark: int | None = None,
    ip_proto: object | None = None,
    sport: int | None = None,
    dport: int | None = None,
    oif: str | None = None,
) -> RouteAnswer:
    """The route that a packet would take. Interfaces by name; OSError (ENODEV) if there is none of that name."""
    links = [None if name is None else link_index(name) for name in (iif, oif)]
    with Netlink() as netlink:
        answer = parse(netlink.exchange(request(dst, src, links[0], links[1], mark, ip_proto, sport, dport)))
    values = {**answer.__dict__, "dev": link_name(int(answer.dev)) if answer.dev else None}
    return RouteAnswer(**values)
