# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encode and decode addresses as netlink messages (linux/if_addr.h), and recognise ours.

Our addresses are a /32 or /128 with no side effects: no prefix route, and a source only for sockets bound to it. For
IPv4, they have scope host, which is never chosen as a source (inet_select_addr in net/ipv4/devinet.c), while a
deprecated address of scope global is. For IPv6, their preferred lifetime is zero (RFC 6724, 5).

The metric shows the owner: MARKER and the protocol number, which nobody sets by accident. It is the metric of a prefix
route and has no effect without one (Linux 4.18). The address also has the number as its protocol, which newer tools
show, but a kernel before 5.18 ignores it.
"""

from __future__ import annotations

import socket
import struct

from ..document.model import Address, KernelObject
from .messages import AF, attribute, attributes, link_name

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 1, 2, 6, 8, 9, 11
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RT_SCOPE_UNIVERSE, RT_SCOPE_HOST = 0, 254
FOREVER = 0xFFFFFFFF
# "L4p" in ASCII; the last byte is the protocol number.
MARKER = 0x4C347000
FAMILIES = {number: family for family, number in AF.items()}
BITS = {"ipv4": 32, "ipv6": 128}
# family, prefix length, flags, scope, interface index
BODY = struct.Struct("=BBBBI")
U32 = struct.Struct("=I")
# preferred and valid lifetime in seconds, and two times set by the kernel
LIFETIMES = struct.Struct("=IIII")


def encode(address: Address, protocol: int, index: int) -> bytes:
    """The body of a request to add or remove an address of the interface with this index."""
    packed = socket.inet_pton(AF[address.family], address.address)
    flags = IFA_F_NOPREFIXROUTE
    parts = [attribute(IFA_LOCAL, packed), attribute(IFA_ADDRESS, packed)]
    scope = RT_SCOPE_HOST
    if address.family == "ipv6":
        scope, flags = RT_SCOPE_UNIVERSE, flags | IFA_F_NODAD
        parts.append(attribute(IFA_CACHEINFO, LIFETIMES.pack(0, FOREVER, 0, 0)))
    parts += [attribute(IFA_FLAGS, U32.pack(flags)), attribute(IFA_RT_PRIORITY, U32.pack(MARKER | protocol))]
    parts.append(attribute(IFA_PROTO, bytes([protocol])))
    return BODY.pack(AF[address.family], BITS[address.family], 0, scope, index) + b"".join(parts)


def decode(body: bytes) -> KernelObject | None:
    """An address with its owner: its protocol number if it is one of ours, else 0. None for other families."""
    number, length, _flags, _scope, index = BODY.unpack_from(body)
    if number not in FAMILIES:
        return None
    family = FAMILIES[number]
    parts = dict(attributes(body[BODY.size :]))
    packed = parts.get(IFA_LOCAL) or parts[IFA_ADDRESS]
    metric = U32.unpack(parts[IFA_RT_PRIORITY])[0] if IFA_RT_PRIORITY in parts else 0
    ours = metric & ~0xFF == MARKER and length == BITS[family]
    value = Address(family, socket.inet_ntop(number, packed), link_name(index))
    return KernelObject(value, metric & 0xFF if ours else 0, family)
