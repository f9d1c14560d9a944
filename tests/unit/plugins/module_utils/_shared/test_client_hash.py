# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hash of a client is the kernel's; tests/kernel/forwarder/test_source_hash.py asks the kernel."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.client_hash import client_hash, scale


# Equal on every proxy and version, and in nftables: these may never change.
@pytest.mark.parametrize(("address", "expected"), [
    ("203.0.113.7", 0x9a3a2b7c),
    ("0.0.0.0", 0xecc1bc04),
    ("255.255.255.255", 0x321e8f4c),
    ("2001:db8::7", 0x44998e5b),
    ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0x0327d056),
    ("fe80::1", 0x348b3866),
    ("fe80::1%eth0", 0x348b3866),
])  # fmt: skip
def test_the_hash_of_an_address_is_fixed(address, expected):
    assert client_hash(address) == expected


def test_a_number_is_scaled_to_equal_parts():
    assert [scale(number, 3) for number in (0, 0x55555555, 0x55555556, 0xAAAAAAAB, 0xFFFFFFFF)] == [0, 0, 1, 2, 2]
