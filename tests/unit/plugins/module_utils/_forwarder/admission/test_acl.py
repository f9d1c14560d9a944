# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clients the allowed and denied networks admit."""

from __future__ import annotations

import ipaddress

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission.acl import AccessList, Networks
from hypothesis import given
from hypothesis import strategies as st

TEST_ACCESS = [
    ([], [], "203.0.113.7", None),
    (["203.0.113.0/24"], [], "203.0.113.7", None),
    (["203.0.113.0/24"], [], "203.0.114.7", "client address is not allowed"),
    (["203.0.113.0/24"], [], "2001:db8::1", "client address is not allowed"),
    ([], ["203.0.113.7/32"], "203.0.113.7", "client address is denied"),
    ([], ["203.0.113.7/32"], "203.0.113.8", None),
    (["203.0.113.0/24"], ["203.0.113.7/32"], "203.0.113.7", "client address is denied"),
    (["::/0"], [], "203.0.113.7", "client address is not allowed"),
    (["2001:db8::/32", "10.0.0.0/8"], [], "2001:db8:ffff::1", None),
    ([], ["fe80::/10"], "fe80::1%eth0", "client address is denied"),
]


@pytest.mark.parametrize(("allow", "deny", "address", "refusal"), TEST_ACCESS)
def test_denied_networks_win_and_allowed_ones_exclude_the_rest(allow, deny, address, refusal):
    assert AccessList(allow, deny).refusal(address) == (refusal and ("denied", refusal))


def networks(version, bits):
    """Networks as they are written: also those of IPv6 whose number would be an IPv4 address."""
    make = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}[version]
    pairs = st.tuples(st.ip_addresses(v=version).map(int), st.integers(0, bits))
    return pairs.map(lambda pair: make(pair, strict=False))


@given(st.lists(st.one_of(networks(4, 32), networks(6, 128)), max_size=6), st.ip_addresses())
def test_membership_equals_that_of_ipaddress(found, address):
    wanted = any(address in network for network in found)
    assert (str(address) in Networks([str(network) for network in found])) is wanted
