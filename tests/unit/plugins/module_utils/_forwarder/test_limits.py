# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a client and a service may have, and that remembering clients costs a bounded memory."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import limits
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.limits import PER_CLIENT, RATE, Gate, Rate
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.options import Limits
from hypothesis import given
from hypothesis import strategies as st


def test_a_client_that_has_all_it_may_have_gets_another_when_one_ends():
    gate = Gate(Limits(connections_per_client=2), lambda: 0)
    assert [gate.enter("203.0.113.7", 0) for _connection in range(3)] == [None, None, PER_CLIENT]
    assert gate.enter("203.0.113.8", 0) is None
    gate.leave("203.0.113.7")
    assert [gate.enter("203.0.113.7", 0) for _connection in range(2)] == [None, PER_CLIENT]


def test_the_addresses_of_one_64_are_one_client():
    gate = Gate(Limits(connections_per_client=1), lambda: 0)
    assert gate.enter("2001:db8:1:2::1", 0) is None
    assert gate.enter("2001:db8:1:2:ffff::1", 0) == PER_CLIENT
    assert gate.enter("2001:db8:1:3::1", 0) is None


def test_clients_that_left_are_forgotten():
    gate = Gate(Limits(connections_per_client=1), lambda: 0)
    for number in range(300):
        address = f"203.0.113.{number % 256}"
        assert gate.enter(address, 0) is None
        gate.leave(address)
    assert gate._per_client == {}


@pytest.mark.parametrize(("total", "full"), [(9, False), (10, True), (11, True)])
def test_a_service_is_full_when_all_workers_together_have_its_connections(total, full):
    assert Gate(Limits(connections=10), lambda: total).full is full


def test_without_a_number_nobody_is_refused():
    gate = Gate(Limits(rate_per_client=1000.0), lambda: 10**9)
    assert not gate.full
    assert {gate.enter("203.0.113.7", 0) for _connection in range(900)} == {None}


def test_a_rate_admits_a_seconds_worth_at_once_and_then_its_pace():
    gate = Gate(Limits(rate_per_client=5.0), lambda: 0)
    assert [gate.enter("203.0.113.7", 100.0) for _connection in range(6)] == [None] * 5 + [RATE]
    assert gate.enter("203.0.113.7", 100.1) == RATE
    assert gate.enter("203.0.113.7", 100.25) is None


@given(st.floats(0.1, 100), st.lists(st.floats(0, 2), max_size=200))
def test_no_client_gets_more_than_its_rate(rate, pauses):
    bucket, now, admitted = Rate(rate), 0.0, 0
    for pause in pauses:
        now += pause
        admitted += bucket.admit("c", now)
    assert admitted <= max(1.0, rate) + now * rate + 1e-6


def test_a_flood_of_addresses_is_remembered_in_a_bounded_memory(monkeypatch):
    monkeypatch.setattr(limits, "MOST_CLIENTS", 100)
    bucket = Rate(1.0)
    for number in range(1000):
        assert bucket.admit(number, 0.0)
    assert len(bucket) == 100
    assert not bucket.admit(999, 0.0), "the latest are those that are remembered"
