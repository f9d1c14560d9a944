# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of one number per client: bounded in size, written by one worker, read by all."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import client_tables
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.integers(-(2**63), 2**63 - 1).filter(bool)


def empty_table():
    cells = memoryview(bytearray(client_tables.CELLS * 8)).cast("q")
    return client_tables.ClientTable(cells), cells


@given(st.dictionaries(KEYS, st.integers(1, 2**62), max_size=client_tables.WAYS))
def test_a_table_is_a_dictionary_as_long_as_no_set_is_full(numbers):
    table, _cells = empty_table()
    for key, number in numbers.items():
        table.put(key, number)
    assert {key: table.get(key) for key in numbers} == numbers
    assert table.get(next(iter(set(range(1, 20)) - set(numbers)))) == 0


@pytest.mark.parametrize("stride", [1, 256, 1 << 16, 1 << 32])
def test_neighbouring_keys_are_spread_over_the_sets(stride):
    """Clients come from networks. Half as many as there are entries nearly all find an entry."""
    table, _cells = empty_table()
    keys = [(7 << 40) + number * stride for number in range(client_tables.SETS * client_tables.WAYS // 2)]
    for key in keys:
        table.put(key, 1)
    assert sum(table.get(key) for key in keys) > 0.97 * len(keys)


def test_a_full_set_replaces_its_smallest_number():
    table, cells = empty_table()
    start = table._set_of(1)
    rivals = [key for key in range(1, 200_000) if table._set_of(key) == start][: client_tables.WAYS + 1]
    for number, key in enumerate(rivals, 1):
        table.put(key, number)
    assert [table.get(key) for key in rivals] == [0, *range(2, client_tables.WAYS + 2)]
    table.put(rivals[0], 0)  # setting 0 for a replaced client replaces no other one
    assert table.get(rivals[1]) == 2
    assert sum(map(bool, cells)) == 2 * client_tables.WAYS


def test_each_worker_writes_its_own_table_and_reads_the_others():
    tables = [empty_table()[0] for _worker in range(3)]
    workers = [client_tables.ClientNumbers(tables, own) for own in tables]
    for number, worker in enumerate(workers, 1):
        worker.put(7, number)
    seen = [(worker.get(7), sorted(worker.elsewhere(7))) for worker in workers]
    assert seen == [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])]
