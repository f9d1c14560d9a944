# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is next: the order of the smooth weighted round robin, failures, and never the same backend twice."""

from __future__ import annotations

from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import balancer, health
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import Backend
from hypothesis import given
from hypothesis import strategies as st

CLIENT = "203.0.113.7"


def backends(*weights):
    made = [Backend(name=f"b{n}", ipv4=f"198.18.0.{n + 1}", port=80, weight=w) for n, w in enumerate(weights)]
    return balancer.Backends(made, "round_robin")


# The orders nginx's own documentation of the algorithm and its commit message give.
TEST_ORDER = [
    ((1, 1, 1), "012012"),
    ((5, 1, 1), "0010200"),
    ((1, 2), "101101"),
    ((4, 3, 2), "012010210"),
    ((7,), "000"),
]


@pytest.mark.parametrize(("weights", "order"), TEST_ORDER)
def test_smooth_weighted_round_robin(weights, order):
    some = backends(*weights)
    assert "".join(str(some.next(CLIENT, (), 0.0)) for _turn in order) == order


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_a_full_round_gives_each_backend_exactly_its_weight(weights):
    some = backends(*weights)
    for _round in range(2):
        chosen = Counter(some.next(CLIENT, (), 0.0) for _turn in range(sum(weights)))
        assert [chosen[index] for index in range(len(weights))] == weights


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_one_connection_never_gets_the_same_backend_twice_and_gets_all(weights, data):
    some = backends(*weights)
    now, tried = 0.0, ()
    while True:
        index = some.next(CLIENT, tried, now)
        if index is None:
            break
        assert index not in tried
        tried += (index,)
        if data.draw(st.booleans()):
            some.health.failed(index, now)
        now += data.draw(st.floats(0, 10))
    assert sorted(tried) == list(range(len(weights)))


def test_a_backend_that_failed_is_skipped_then_tried_by_one():
    some = backends(1, 1)
    assert some.health.failed(0, 100.0) is True
    assert {some.next(CLIENT, (), 100.0 + t) for t in (0, 1, 2, health.SKIP - 0.01)} == {1}
    due = 100.0 + health.SKIP
    turns = [some.next(CLIENT, (), due) for _turn in range(10)]
    assert turns.count(0) == 1, "one trial, and the others wait for its outcome"
    assert some.health.failed(0, due + 1) is False, "it was known already"
    assert {some.next(CLIENT, (), due + 1 + t) for t in (0, 1, 2)} == {1}
    assert some.health.succeeded(0) is True
    assert some.health.all_well
    assert Counter(some.next(CLIENT, (), due + 2) for _turn in range(10)) == {0: 5, 1: 5}


def test_when_all_fail_all_are_tried():
    some = backends(1, 1, 1)
    for index in range(3):
        some.health.failed(index, 0.0)
    assert {some.next(CLIENT, (), 1.0) for _turn in range(3)} == {0, 1, 2}


def test_an_absent_backend_does_not_make_up_for_its_absence():
    some = backends(1, 1)
    for _turn in range(50):
        assert some.next(CLIENT, (0,), 0.0) == 1
    assert Counter(some.next(CLIENT, (), 0.0) for _turn in range(4)) == {0: 2, 1: 2}
