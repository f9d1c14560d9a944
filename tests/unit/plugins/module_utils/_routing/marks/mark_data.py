# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks of every kind, and any marks at all: what both engines must give back as they got it."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark
from hypothesis import strategies as st

MARKS = (
    Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11", "2001:db8::11")),
    Mark("a2", 12, 255, (), ("198.18.0.12",)),
    Mark("a3", 13, 255, ("02:00:00:00:00:12", "02:00:00:00:00:14"), ("198.18.0.13", "198.18.0.14")),
    Mark("uplink", 14, 255, iif="eth1"),
    Mark("a5", 15, 255, ("02:00:00:00:00:15",), ("198.18.0.15",), conntrack=False, oif="eth0"),
    Mark("sockets", 16, 255, transparent=True),
)

_letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_names = st.text(f"{_letters}_.-", min_size=1, max_size=100).filter(lambda name: name[0] in _letters)
_links = st.text(f"{_letters}_.-", min_size=1, max_size=15)
_macs = st.integers(1, 2**40 - 1).map(lambda number: f"02:{number.to_bytes(5, 'big').hex(':')}")
_ports = st.sampled_from(["tcp/80", "tcp/8080", "udp/80", "udp/65535"])
_addresses = st.ip_addresses().map(str)


@st.composite
def _sets(draw) -> tuple[Mark, ...]:
    """Marks under one mask or, as while one mask takes over from another, under two; they share nothing else."""
    masks = st.integers(1, 2**32 - 1) | st.sampled_from([0xFF, 0xFFFF0000, 0xFFFFFFFF])
    mask_of: dict[int, int] = {}
    for mask in draw(st.lists(masks, min_size=1, max_size=2)):
        number = st.integers(1, 2**32 - 1).map(lambda bits, mask=mask: bits & mask).filter(bool)
        for one in draw(st.lists(number, max_size=4, unique=True)):
            mask_of.setdefault(one, mask)
    return tuple(_mark(draw, index, one, mask) for index, (one, mask) in enumerate(sorted(mask_of.items())))


def _mark(draw, index: int, number: int, mask: int) -> Mark:
    name = f"{index}{draw(_names)}"[:100]
    kind = draw(st.sampled_from(["mac", "silent", "iif", "transparent"]))
    if kind == "transparent":
        return Mark(name, number, mask, transparent=True)
    via = tuple(draw(st.lists(_addresses, min_size=kind == "silent", max_size=3)))
    macs = tuple(draw(st.lists(_macs, min_size=1, max_size=3))) if kind == "mac" else ()
    iif = f"{index}{draw(_links)}"[:15] if kind == "iif" else None
    ports = tuple(draw(st.lists(_ports, max_size=3))) if via else ()
    return Mark(name, number, mask, macs, via, iif, conntrack=draw(st.booleans()), last_sender=ports)


mark_sets = _sets()
