# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each balancing algorithm distributes connections by weight, within its bounds."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import algorithms
from hypothesis import given
from hypothesis import strategies as st

CLIENTS = [f"203.0.{number // 250}.{number % 250}" for number in range(20_000)]


class Load:
    """Connections by index, as the algorithms see them."""

    def __init__(self, count):
        self.connections = [0] * count

    def all(self):
        return list(self.connections)


def make(name, weights, names=None):
    load = Load(len(weights))
    algorithm = algorithms.ALGORITHMS[name](names or [f"b{n}" for n in range(len(weights))], list(weights), load)
    algorithm.weights_changed()
    return algorithm, load, tuple(range(len(weights)))


# The orders that nginx's documentation of the algorithm and its commit message give.
@pytest.mark.parametrize(("weights", "order"), [
    ((1, 1, 1), "012012"),
    ((5, 1, 1), "0010200"),
    ((1, 2), "101101"),
    ((4, 3, 2), "012010210"),
    ((7,), "000"),
])  # fmt: skip
def test_smooth_weighted_round_robin(weights, order):
    algorithm, _load, candidates = make("round_robin", weights)
    assert "".join(str(algorithm.choose(candidates, "")) for _turn in order) == order


def test_least_connections_shares_short_connections_by_weight():
    algorithm, _load, candidates = make("least_connections", (1, 3))
    assert Counter(algorithm.choose(candidates, "") for _turn in range(40)) == {0: 10, 1: 30}


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (1, 2, 5)])
def test_random_shares_short_connections_by_weight(weights):
    random.seed(5)
    algorithm, _load, candidates = make("random", weights)
    count = 20_000
    taken = Counter(algorithm.choose(candidates, "") for _turn in range(count))
    for index, weight in enumerate(weights):
        # Four standard deviations of a binomial distribution.
        part = weight / sum(weights)
        assert taken[index] == pytest.approx(count * part, abs=4 * (count * part * (1 - part)) ** 0.5)


def test_random_with_two_choices_is_far_more_even_than_one_and_takes_the_only_candidate():
    """n balls into n bins: one choice fills the fullest with about 6 at n = 1000, two choices with 3 or 4."""
    random.seed(6)
    algorithm, load, candidates = make("random", [1] * 1000)
    for _connection in range(1000):
        load.connections[algorithm.choose(candidates, "")] += 1
    assert max(load.connections) <= 4
    algorithm, load, _candidates = make("random", (1, 1))
    load.connections = [100, 0]
    assert {algorithm.choose((0,), "") for _turn in range(10)} == {0}


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2), (3, 1, 1), (1000, 3000)])
def test_source_hash_shares_clients_by_weight(weights):
    algorithm, _load, candidates = make("source_hash", weights)
    taken = Counter(algorithm.choose(candidates, client) for client in CLIENTS)
    for index, weight in enumerate(weights):
        assert taken[index] / len(CLIENTS) == pytest.approx(weight / sum(weights), rel=0.25)


def test_source_hash_loses_only_the_clients_of_the_one_that_is_gone():
    algorithm, _load, candidates = make("source_hash", [1] * 10)
    before = {client: algorithm.choose(candidates, client) for client in CLIENTS}
    left = tuple(index for index in candidates if index != 4)
    after = {client: algorithm.choose(left, client) for client in CLIENTS}
    moved = [client for client in CLIENTS if before[client] != after[client]]
    assert all(before[client] == 4 for client in moved)
    assert len(moved) / len(CLIENTS) == pytest.approx(1 / 10, rel=0.25)
    spread = Counter(after[client] for client in moved)
    assert len(spread) == 9, "the lost clients are shared by all that are left"
    assert max(spread.values()) < 3 * len(moved) / 9


def test_source_hash_is_the_same_whatever_the_order_and_the_config_of_others():
    names = [f"b{n}" for n in range(6)]
    one, _load, candidates = make("source_hash", [1] * 6, names)
    other, _load, _candidates = make("source_hash", [1] * 6, names[::-1])
    fewer, _load, few = make("source_hash", [1] * 5, names[:5])
    moved = 0
    for client in CLIENTS[:2000]:
        chosen = names[one.choose(candidates, client)]
        assert names[::-1][other.choose(candidates, client)] == chosen
        without = names[:5][fewer.choose(few, client)]
        moved += chosen != without
        assert without == chosen or chosen == "b5"
    assert moved / 2000 == pytest.approx(1 / 6, rel=0.3)


# Equal on every proxy, worker, restart and version: these may never change.
TEST_FIXED = [("203.0.113.7", 2), ("203.0.113.8", 1), ("2001:db8::7", 0), ("198.51.100.250", 1)]


@pytest.mark.parametrize(("client", "index"), TEST_FIXED)
def test_source_hash_is_fixed(client, index):
    algorithm, _load, candidates = make("source_hash", (1, 1, 1), ["web1", "web2", "web3"])
    assert algorithm.choose(candidates, client) == index


def test_the_ring_is_bounded_whatever_the_weights_are():
    algorithm, _load, candidates = make("source_hash", (65535, 1, 1))
    assert len(algorithm._points) <= algorithms.MAX_POINTS + 2
    taken = Counter(algorithm.choose(candidates, client) for client in CLIENTS)
    assert taken[0] > 0.99 * len(CLIENTS)


some_weights = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.ip_addresses().map(str), min_size=1, max_size=20),
    st.data(),
)
def test_source_hash_moves_nobody_but_the_clients_of_those_that_are_gone(weights, clients, data):
    algorithm, _load, everybody = make("source_hash", weights)
    first = {client: algorithm.choose(everybody, client) for client in clients}
    left = data.draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True))
    for client in clients:
        moved = algorithm.choose(tuple(left), client)
        assert moved in left
        assert moved == first[client] or first[client] not in left
    order = data.draw(st.permutations(everybody))
    other, _load, _all = make("source_hash", [weights[index] for index in order], [f"b{index}" for index in order])
    assert {client: order[other.choose(everybody, client)] for client in clients} == first


@given(some_weights, st.integers(1, 200))
def test_round_robin_is_never_more_than_one_round_from_its_weights(weights, turns):
    algorithm, _load, candidates = make("round_robin", weights)
    found = Counter(algorithm.choose(candidates, "") for _turn in range(turns))
    for index, weight in enumerate(weights):
        assert abs(found[index] - turns * weight / sum(weights)) < len(weights)


@given(some_weights, st.data())
def test_least_connections_gives_to_nobody_who_has_more_to_do_than_another(weights, data):
    algorithm, load, candidates = make("least_connections", weights)
    for _step in range(data.draw(st.integers(1, 60))):
        index = algorithm.choose(candidates, "")
        assert load.connections[index] / weights[index] == min(
            connections / weight for connections, weight in zip(load.connections, weights)
        )
        load.connections[index] += 1
        busy = [number for number in candidates if load.connections[number]]
        if data.draw(st.booleans()):
            load.connections[data.draw(st.sampled_from(busy))] -= 1


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_a_ring_that_follows_another_one_is_the_ring_that_is_made_anew(weights, names, data):
    before, _load, _all = make("source_hash", weights, "cdefgh"[: len(weights)])
    new_weights = data.draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
    kept = {old: names.index(name) for old, name in enumerate("cdefgh"[: len(weights)]) if name in names}
    after = algorithms.SourceHash(names, new_weights, None)
    after.follow(before, kept)
    after.weights_changed()
    anew, _load, _all = make("source_hash", new_weights, names)
    assert (after._points, after._owners) == (anew._points, anew._owners)
