# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._vrrp import parse

from tests.unit.tables import rows

HEADER = bytes([0x31, 100, 254, 1, 0, 50, 0, 0])
IPV4, IPV6 = bytes([198, 18, 0, 100]), bytes([0x20, 0x01, 0x0D, 0xB8]) + bytes(11) + b"\1"
PACKETS = [
    ("version 3", HEADER + IPV4, "ipv4", (100, 254, 3, ("198.18.0.100",))),
    ("version 2 with a password", b"\x21" + HEADER[1:] + IPV4 + b"password", "ipv4", (100, 254, 2, ("198.18.0.100",))),
    ("IPv6", HEADER + IPV6, "ipv6", (100, 254, 3, ("2001:db8::1",))),
    ("fewer addresses than it says", HEADER[:3] + b"\xff" + HEADER[4:] + IPV4 + b"\1\2", "ipv4",
     (100, 254, 3, ("198.18.0.100",))),
    ("no address", HEADER, "ipv6", (100, 254, 3, ())),
    ("another type", b"\x32" + HEADER[1:], "ipv4", None),
    ("another version", b"\x41" + HEADER[1:], "ipv4", None),
    ("too short", HEADER[:7], "ipv4", None),
    ("empty", b"", "ipv4", None),
]  # fmt: skip


@pytest.mark.parametrize(("payload", "family", "expected"), **rows(PACKETS))
def test_an_advertisement_is_read_whatever_a_stranger_sends(payload, family, expected):
    found = parse(payload, "eth0", family, "198.18.0.21")
    assert (found and (found.vrid, found.priority, found.version, found.addresses)) == expected
