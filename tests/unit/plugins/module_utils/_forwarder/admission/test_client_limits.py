# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of clients in tables of a bounded size."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import client_limits
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.integers(-(2**63), 2**63 - 1).filter(bool)


def table():
    cells = memoryview(bytearray(client_limits.CELLS * 8)).cast("q")
    return client_limits.Table(cells), cells


@given(st.dictionaries(KEYS, st.integers(1, 2**62), max_size=client_limits.WAYS))
def test_a_table_is_a_dictionary_while_no_set_is_full(wanted):
    found, _cells = table()
    for key, number in wanted.items():
        found.put(key, number)
    assert {key: found.get(key) for key in wanted} == wanted
    assert found.get(next(iter(set(range(1, 20)) - set(wanted)))) == 0


@pytest.mark.parametrize("stride", [1, 256, 1 << 16, 1 << 32])
def test_neighbours_are_spread_over_the_sets(stride):
    """Networks are what clients come in: half as many as there are entries all find a place."""
    found, _cells = table()
    keys = [(7 << 40) + number * stride for number in range(client_limits.SETS * client_limits.WAYS // 2)]
    for key in keys:
        found.put(key, 1)
    assert sum(found.get(key) for key in keys) > 0.97 * len(keys)


def test_a_full_set_forgets_its_smallest_number():
    found, cells = table()
    start = found._set_of(1)
    rivals = [key for key in range(1, 200_000) if found._set_of(key) == start][: client_limits.WAYS + 1]
    for number, key in enumerate(rivals, 1):
        found.put(key, number)
    assert [found.get(key) for key in rivals] == [0, *range(2, client_limits.WAYS + 2)]
    found.put(rivals[0], 0)  # it leaves, and nobody has to go for that
    assert found.get(rivals[1]) == 2
    assert sum(map(bool, cells)) == 2 * client_limits.WAYS


def test_a_book_writes_its_own_table_and_reads_the_others():
    tables = [table()[0] for _worker in range(3)]
    books = [client_limits.Book(tables, own) for own in tables]
    for number, book in enumerate(books, 1):
        book.put(7, number)
    assert [(book.get(7), sorted(book.elsewhere(7))) for book in books] == [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])]
