# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which session ends in a full table: none of a service below its share, and conversations last."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import eviction
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp.eviction import EvictionQueue, FairShares

NOW = 100.0


@dataclass(eq=False)
class Flow:
    """What eviction.py reads of a flow_table.Flow; by default a request 10 seconds ago without a response."""

    name: str = ""
    datagrams: int = 1
    datagrams_seen: int = 1
    answered: bool = False
    started: float = NOW - 10
    alive: bool = True


@pytest.mark.parametrize(("flow", "number"), [
    (Flow(), 0),
    (Flow(datagrams_seen=0), 0),
    (Flow(datagrams=2, answered=True), 1),
    (Flow(datagrams=2, datagrams_seen=0, answered=True), 1),
    (Flow(started=NOW - 0.5), 2),
    (Flow(datagrams=30, datagrams_seen=30, answered=True), 3),
    (Flow(datagrams=30, datagrams_seen=30), 3),
    (Flow(datagrams=30, datagrams_seen=28, answered=True), 4),
])  # fmt: skip
def test_unanswered_requests_go_first_then_short_exchanges_then_conversations(flow, number):
    assert eviction.eviction_class(flow, NOW) == number


@pytest.mark.parametrize(("most", "names"), [(1, "a"), (2, "ab"), (4, "abcd"), (99, "abcde")])
def test_within_a_class_the_first_to_evict_are_the_first_of_the_given_order(most, names):
    datagrams = {"d": 30, "b": 2, "a": 1, "e": 40, "c": 2}
    flows = [Flow(name, count, count, answered=count > 1) for name, count in datagrams.items()]
    assert "".join(flow.name for flow in eviction.first_to_evict(flows, NOW, most)) == names


def test_the_queue_skips_flows_that_have_moved_or_ended_and_may_be_empty():
    flows = [Flow(name) for name in map(str, range(64))]
    queue = EvictionQueue(lambda: flows)
    assert queue.next(NOW) is flows[0]
    flows[1].datagrams += 1
    flows[2].alive = False
    assert queue.next(NOW) is flows[3]
    assert EvictionQueue(list).next(NOW) is None


@pytest.mark.parametrize(("held", "service", "loser"), [
    ({"dns": 30, "game": 0, "log": 0}, "dns", "dns"),
    ({"dns": 30, "game": 0, "log": 0}, "game", "dns"),
    ({"dns": 19, "game": 11, "log": 0}, "game", "game"),
    ({"dns": 19, "game": 9, "log": 2}, "game", "dns"),
    ({"dns": 19, "game": 9, "log": 2}, "log", "dns"),
    ({"dns": 10, "game": 10, "log": 10}, "log", "log"),
])  # fmt: skip
def test_a_service_below_its_share_takes_a_place_from_the_one_with_most(held, service, loser):
    shares = FairShares(30)
    for name, count in held.items():
        shares.add_service(name)
        for _flow in range(count):
            shares.enter(name, Flow(name))
    assert shares.loser(service) == loser
    assert shares.flow_to_evict(service, NOW).name == loser
    assert len(shares) == 30


def test_with_more_services_than_places_the_one_that_has_a_place_loses_it():
    shares = FairShares(1)
    for name in ("a", "b", "c"):
        shares.add_service(name)
    shares.enter("a", Flow("a"))
    assert [shares.loser(name) for name in "abc"] == ["a"] * 3


def test_the_flow_in_which_nothing_has_moved_for_longest_is_evicted_first():
    shares, first, second = FairShares(2), Flow("first"), Flow("second")
    shares.add_service("dns")
    for flow in (first, second):
        shares.enter("dns", flow)
    shares.reorder("dns", [second, first])
    assert shares.flow_to_evict("dns", NOW) is second
    shares.leave("dns", second)
    assert list(shares) == [first]
