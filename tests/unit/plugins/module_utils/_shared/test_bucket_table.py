# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maglev's table: shares by weight, few moves, the same for ever. (In any order of backends: test_algorithms.py.)"""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.bucket_table import SIZES, fill, owner, size_for
from hypothesis import given
from hypothesis import strategies as st

names_and_weights = st.dictionaries(
    st.text("abcdef0123456789.:-", min_size=1, max_size=8), st.integers(1, 300), min_size=1, max_size=30
)


def owners(backends: dict) -> list[str]:
    """The name of the owner of each bucket."""
    names = list(backends)
    return [names[index] for index in fill(names, list(backends.values()))]


@given(names_and_weights)
def test_each_backend_has_its_share_within_two_percent_and_at_least_one_bucket(backends):
    table = owners(backends)
    found, total = Counter(table), sum(backends.values())
    assert found.keys() == backends.keys()
    for name, weight in backends.items():
        exact = len(table) * weight / total
        assert abs(found[name] - exact) <= 2 + 0.02 * exact


@given(names_and_weights.filter(lambda backends: len(backends) > 1), st.data())
def test_a_backend_that_leaves_or_gets_another_weight_moves_little_more_than_its_share(backends, data):
    table, name = owners(backends), data.draw(st.sampled_from(sorted(backends)))
    weight = data.draw(st.integers(0, 300))
    after = owners({**backends, name: weight} if weight else {one: backends[one] for one in backends if one != name})
    rest = sum(backends.values()) - backends[name]
    change = abs(backends[name] / (rest + backends[name]) - weight / (rest + weight))
    moved = sum(before != now for before, now in zip(table, after)) / len(table)
    assert moved <= change + 0.05


@given(names_and_weights, st.data())
def test_when_a_backend_cannot_serve_only_its_own_clients_move(backends, data):
    table, everybody = fill(list(backends), list(backends.values())), range(len(backends))
    candidates = data.draw(st.sets(st.sampled_from(everybody), min_size=1))
    for bucket in range(0, len(table), 41):
        index, now = table[bucket], owner(table, bucket, candidates)
        assert now in candidates
        assert now == index or index not in candidates


@pytest.mark.parametrize("count", [3, 10, 40])
def test_the_clients_of_a_lost_backend_are_shared_by_all_others(count):
    table = fill([f"web{number}" for number in range(count)], [1] * count)
    for lost in range(count):
        left = [index for index in range(count) if index != lost]
        found = Counter(owner(table, bucket, left) for bucket in range(len(table)))
        assert all(found[index] == pytest.approx(len(table) / len(left), rel=0.1) for index in left)


@pytest.mark.parametrize(
    ("count", "size"), [(1, 4093), (40, 4093), (41, 16381), (163, 16381), (164, 65537), (16384, 65537)]
)
def test_the_size_follows_from_the_number_of_backends(count, size):
    assert size_for(count) == size
    assert all(size % divisor for divisor in range(2, 257)), "prime"
    assert size in SIZES


# Equal on every proxy and version: these may never change. The second is without the first backend.
@pytest.mark.parametrize(("backends", "digests"), [
    ({"web1": 1, "web2": 1, "web3": 1}, ["42f686db2dcf3df7", "6d123da9921624f8"]),
    ({"b": 3, "c": 1, "d:8080": 65535}, ["6b79a998d77d36b4", "e32b8d2809fd83df"]),
    ({f"b{number}": 1 + number % 3 for number in range(50)}, ["2e570d88c515780f", "fffdc037d23db339"]),
])  # fmt: skip
def test_the_table_is_fixed(backends, digests):
    names = list(backends)
    table = fill(names, list(backends.values()))
    without = [owner(table, bucket, range(1, len(names))) for bucket in range(len(table))]
    texts = [" ".join(names[index] for index in indexes) for indexes in (table, without)]
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == digests
