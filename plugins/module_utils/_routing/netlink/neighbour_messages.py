# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Request and decode links and neighbours as netlink messages (linux/if_link.h, linux/neighbour.h)."""

from __future__ import annotations

import ipaddress
import socket
import struct

from .messages import attribute, attributes

RTM_GETLINK, RTM_NEWNEIGH, RTM_GETNEIGH = 18, 28, 30
IFLA_IFNAME, IFLA_LINKINFO, IFLA_EXT_MASK = 3, 18, 29
IFLA_INFO_KIND = 1
# Leaves out the statistics, which are most of a link's message.
RTEXT_FILTER_SKIP_STATS = 0x8
IFF_UP, IFF_POINTOPOINT, IFF_NOARP = 0x1, 0x10, 0x80
# linux/if_arp.h
ARPHRD_ETHER = 1
NDA_DST, NDA_LLADDR = 1, 2
# NUD_*: in the states REACHABLE, STALE, DELAY, PROBE and PERMANENT the address is usable.
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
# NTF_USE makes the kernel resolve an entry as if it had a packet to send to it.
NTF_USE = 0x01
# How the senders on a link are distinguished: by a MAC that ARP and ND find; by a MAC that has to be declared; by the
# link, which has one other end; not at all.
MAC, DECLARED_MAC, LINK, NOTHING = "mac", "declared", "link", "nothing"
# family, type, index, flags, flags to change
LINK_BODY = struct.Struct("=BxHiII")
# family, index, state, flags, type
NEIGHBOUR_BODY = struct.Struct("=BxxxiHBB")


def links(index: int = 0) -> bytes:
    """The body of a request for one link, or for all (0)."""
    mask = attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_SKIP_STATS))
    return LINK_BODY.pack(socket.AF_UNSPEC, 0, index, 0, 0) + mask


def link(body: bytes) -> tuple[str, bool]:
    """The name of a link, and whether it is up."""
    flags = LINK_BODY.unpack_from(body)[3]
    name = dict(attributes(body[LINK_BODY.size :]))[IFLA_IFNAME]
    return name.rstrip(b"\0").decode(errors="replace"), bool(flags & IFF_UP)


def sender_identity(body: bytes) -> str:
    """How the senders on a link are distinguished: MAC, DECLARED_MAC, LINK or NOTHING."""
    _family, hardware, _index, flags, _change = LINK_BODY.unpack_from(body)
    ethernet = hardware == ARPHRD_ETHER
    if ethernet and not flags & IFF_NOARP:
        return MAC
    if flags & IFF_POINTOPOINT:
        return LINK
    return DECLARED_MAC if ethernet else NOTHING


def is_bridge(body: bytes) -> bool:
    """Whether a link is a bridge."""
    info = dict(attributes(body[LINK_BODY.size :])).get(IFLA_LINKINFO, b"")
    return dict(attributes(info)).get(IFLA_INFO_KIND, b"").rstrip(b"\0") == b"bridge"


def neighbour(address: str, index: int, flags: int = 0) -> bytes:
    """The body of a request for one neighbour (Linux 5.0), or with NTF_USE of a request to resolve it."""
    packed = ipaddress.ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return NEIGHBOUR_BODY.pack(family, index, 0, flags, 0) + attribute(NDA_DST, packed)


def mac(body: bytes) -> str | None:
    """The MAC of a neighbour, in lower case with colons; None if it has not answered."""
    state = NEIGHBOUR_BODY.unpack_from(body)[2]
    address = dict(attributes(body[NEIGHBOUR_BODY.size :])).get(NDA_LLADDR, b"")
    return address.hex(":") if state & NUD_USABLE and address else None
