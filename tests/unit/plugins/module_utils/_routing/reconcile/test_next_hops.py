# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which next hop a route with fallbacks has."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Route
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import next_hops

A, A2, A3, OTHER = "198.18.0.11", "198.18.0.12", "198.18.0.13", "198.18.0.99"
WANTED = Route("ipv4", 20711, via=A, dev="eth0", fallback=(A2, A3))

# the live next hop, who answers (absent: not known), the next hop that the route should have
TEST_CHOICES = [
    (A, {A: True, A2: True}, A),
    (A, {A: False, A2: True, A3: True}, A2),
    (A, {A: False, A2: False, A3: True}, A3),
    (A, {A: False, A3: True}, A3),
    (A2, {A: True, A2: True}, A),
    # It does not move from one living fallback to another, nor from one that is only not known.
    (A3, {A: False, A2: True, A3: True}, A3),
    (A3, {A: False, A2: True}, A3),
    (A3, {A: False, A2: True, A3: False}, A2),
    # Nothing is known, as after a start: it stays.
    (A2, {}, A2),
    (A2, {A2: False, A3: True}, A2),
    (None, {}, A),
    (OTHER, {}, A),
    # Nobody answers: it stays.
    (A, {A: False, A2: False, A3: False}, A),
    (A2, {A: False, A2: False, A3: False}, A2),
    (A, {A: False}, A),
]


@pytest.mark.parametrize(("live", "answering", "hop"), TEST_CHOICES)
def test_a_route_leaves_a_dead_next_hop_for_a_living_one(live, answering, hop):
    listed = [Route("ipv4", 20711, via=live, dev="eth0")] if live else []
    expected = Route("ipv4", 20711, via=hop, dev="eth0")
    assert next_hops.choose([WANTED], listed, answering.get) == (expected,)


def test_a_route_without_fallbacks_stays():
    plain = Route("ipv4", 20111, via=A, dev="eth0")
    assert next_hops.choose([plain], [plain], {A: False, A2: True}.get) == (plain,)


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (None, False),
        (Route("ipv4", 20711, via=A, dev="eth0"), True),
        (Route("ipv4", 20711, via=A, dev="eth1"), False),
        (Route("ipv4", 20711, via=A2, dev="eth1"), True),
        (Route("ipv4", 20711, via=A2, dev="eth0", mtu=1400), False),
        (Route("ipv4", 20711, via=OTHER, dev="eth0"), False),
    ],
)
def test_any_next_hop_is_as_wanted(live, expected):
    assert next_hops.is_as_wanted(live, WANTED) == expected
