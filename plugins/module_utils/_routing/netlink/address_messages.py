# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses as netlink messages, written and read (linux/if_addr.h), and how ours are told from those of others.

An address of ours is a /32 or /128 that changes nothing but that the host has it: no prefix route, and no source of
what does not ask for it. For IPv4 that is scope host: a source of that scope is never chosen (inet_select_addr in
net/ipv4/devinet.c), a deprecated one of scope global is. For IPv6 it is a preferred lifetime of zero (RFC 6724, 5).

Whose it is tells the metric, which is that of a prefix route and says nothing where there is none (Linux 4.18): MARKER
and the protocol number, which nobody sets by accident. The address has the number as its protocol as well, which newer
tools show to people, but a kernel before 5.18 forgets that.
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
# family, length of the prefix, flags, scope, index of the interface
BODY = struct.Struct("=BBBBI")
U32 = struct.Struct("=I")
# preferred and valid lifetime in seconds, and two times that the kernel sets
LIFETIMES = struct.Struct("=IIII")


def encode(address: Address, protocol: int, index: int) -> bytes:
    """The body of a request to add or to remove an address of the interface with that index."""
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
    """An address with its owner: the number if it is one that this engine set, else 0. None for other families."""
    number, length, _flags, _scope, index = BODY.unpack_from(body)
    if number not in FAMILIES:
        return None
    family = FAMILIES[number]
    found = dict(attributes(body[BODY.size :]))
    packed = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
    metric = U32.unpack(found[IFA_RT_PRIORITY])[0] if IFA_RT_PRIORITY in found else 0
    ours = metric & ~0xFF == MARKER and length == BITS[family]
    value = Address(family, socket.inet_ntop(number, packed), link_name(index))
    return KernelObject(value, metric & 0xFF if ours else 0, family)
