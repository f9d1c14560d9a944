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
    kind = algorithms.HASH_TABLES.get(name) or algorithms.ALGORITHMS[name]
    algorithm = kind(names or [f"b{n}" for n in range(len(weights))], list(weights), load)
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


# How far a share may be from its weight. 20,000 clients in the shares of 1/10 alone differ by 6 %: three deviations.
TABLES = [("ring", 0.25), ("maglev", 0.06)]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2), (3, 1, 1), (1000, 3000)])
@pytest.mark.parametrize(("table", "error"), TABLES)
def test_source_hash_shares_clients_by_weight(table, error, weights):
    algorithm, _load, candidates = make(table, weights)
    taken = Counter(algorithm.choose(candidates, client) for client in CLIENTS)
    for index, weight in enumerate(weights):
        assert taken[index] / len(CLIENTS) == pytest.approx(weight / sum(weights), rel=error)


@pytest.mark.parametrize(("table", "error"), TABLES)
def test_source_hash_loses_only_the_clients_of_the_one_that_is_gone(table, error):
    algorithm, _load, candidates = make(table, [1] * 10)
    before = {client: algorithm.choose(candidates, client) for client in CLIENTS}
    left = tuple(index for index in candidates if index != 4)
    after = {client: algorithm.choose(left, client) for client in CLIENTS}
    moved = [client for client in CLIENTS if before[client] != after[client]]
    assert all(before[client] == 4 for client in moved)
    assert len(moved) / len(CLIENTS) == pytest.approx(1 / 10, rel=error)
    spread = Counter(after[client] for client in moved)
    assert len(spread) == 9, "the lost clients are shared by all that are left"
    assert max(spread.values()) < (1 + 8 * error) * len(moved) / 9


def test_a_weight_that_sinks_at_run_time_moves_clients_away_from_its_backend_alone():
    """An agent may say another percentage each second."""
    algorithm, _load, candidates = make("ring", (2, 4, 4, 4))
    before = {client: algorithm.choose(candidates, client) for client in CLIENTS}
    points = list(algorithm._counts)
    algorithm._weights[0] = 0.5
    algorithm.weights_changed()
    assert algorithm._counts[1:] == points[1:]
    moved = [client for client in CLIENTS if algorithm.choose(candidates, client) != before[client]]
    assert {before[client] for client in moved} == {0}
    assert len(moved) / len(CLIENTS) == pytest.approx(1 / 7 - 1 / 29, rel=0.25)


def test_the_ring_is_the_same_whatever_the_order_and_the_config_of_others():
    names = [f"b{n}" for n in range(6)]
    one, _load, candidates = make("ring", [1] * 6, names)
    other, _load, _candidates = make("ring", [1] * 6, names[::-1])
    fewer, _load, few = make("ring", [1] * 5, names[:5])
    moved = 0
    for client in CLIENTS[:2000]:
        chosen = names[one.choose(candidates, client)]
        assert names[::-1][other.choose(candidates, client)] == chosen
        without = names[:5][fewer.choose(few, client)]
        moved += chosen != without
        assert without == chosen or chosen == "b5"
    assert moved / 2000 == pytest.approx(1 / 6, rel=0.3)


# Equal on every proxy, worker, restart and version: these may never change.
TEST_FIXED = [
    ("203.0.113.7", 2, 2), ("203.0.113.8", 1, 2), ("2001:db8::7", 0, 0), ("198.51.100.250", 1, 2),
    ("fe80::1%eth0", 0, 1)
]  # fmt: skip


@pytest.mark.parametrize(("client", "ring", "maglev"), TEST_FIXED)
def test_source_hash_is_fixed(client, ring, maglev):
    for table, index in (("ring", ring), ("maglev", maglev)):
        algorithm, _load, candidates = make(table, (1, 1, 1), ["web1", "web2", "web3"])
        assert (table, algorithm.choose(candidates, client)) == (table, index)


def test_the_ring_is_bounded_whatever_the_weights_are():
    algorithm, _load, candidates = make("ring", (65535, 1, 1))
    assert len(algorithm._points) <= algorithms.MAX_POINTS + 2
    taken = Counter(algorithm.choose(candidates, client) for client in CLIENTS)
    assert taken[0] > 0.99 * len(CLIENTS)


some_weights = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@given(
    st.sampled_from(sorted(algorithms.HASH_TABLES)),
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.ip_addresses().map(str), min_size=1, max_size=20),
    st.data(),
)
def test_source_hash_moves_nobody_but_the_clients_of_those_that_are_gone(table, weights, clients, data):
    algorithm, _load, everybody = make(table, weights)
    first = {client: algorithm.choose(everybody, client) for client in clients}
    left = data.draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True))
    for client in clients:
        moved = algorithm.choose(tuple(left), client)
        assert moved in left
        assert moved == first[client] or first[client] not in left
    order = data.draw(st.permutations(everybody))
    other, _load, _all = make(table, [weights[index] for index in order], [f"b{index}" for index in order])
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
    st.sampled_from([("ring", ("_points", "_owners")), ("maglev", ("_table",))]),
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_a_table_that_follows_another_one_is_the_table_that_is_made_anew(table, weights, names, data):
    kind, fields = table
    before, _load, _all = make(kind, weights, "cdefgh"[: len(weights)])
    new_weights = data.draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
    kept = {old: names.index(name) for old, name in enumerate("cdefgh"[: len(weights)]) if name in names}
    after = algorithms.HASH_TABLES[kind](names, new_weights, None)
    after.follow(before, kept)
    after.weights_changed()
    anew, _load, _all = make(kind, new_weights, names)
    assert [getattr(after, field) for field in fields] == [getattr(anew, field) for field in fields]


@pytest.mark.parametrize("table", sorted(algorithms.HASH_TABLES))
@pytest.mark.parametrize(("weights", "most"), [((1, 1, 1), 51), ((3, 2, 1), 75)])
def test_a_bounded_load_spreads_one_client_within_the_factor_of_its_average(table, weights, most):
    """100 connections: 150 % of a third are 50 (of a half 75), and the next connection counts."""
    algorithm, load, candidates = make(table, weights)
    passed_over = []
    choose = algorithms.bounded(algorithm.choose, 150, weights, load, passed_over.append)
    assert {algorithm.choose(candidates, CLIENTS[0]) for _connection in range(100)} == {
        algorithm.choose(candidates, CLIENTS[0])
    }
    for _connection in range(100):
        load.connections[choose(candidates, CLIENTS[0])] += 1
    assert max(load.connections) <= most
    assert {*passed_over} == {algorithm.choose(candidates, CLIENTS[0])}
    assert len(passed_over) == 100 - load.connections[passed_over[0]]


@given(some_weights, st.integers(101, 300), st.data())
def test_a_bounded_load_always_finds_a_backend_within_its_bound(weights, percent, data):
    algorithm, load, everybody = make("maglev", weights)
    choose = algorithms.bounded(algorithm.choose, percent, weights, load, [].append)
    load.connections = data.draw(st.lists(st.integers(0, 50), min_size=len(weights), max_size=len(weights)))
    candidates = tuple(data.draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True)))
    index = choose(candidates, data.draw(st.ip_addresses().map(str)))
    average = (sum(load.connections[one] for one in candidates) + 1) / sum(weights[one] for one in candidates)
    assert index in candidates
    assert load.connections[index] < average * weights[index] * percent / 100
