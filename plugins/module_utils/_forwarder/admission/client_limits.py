# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One number for each client, in memory that all workers of a generation see: so a limit of a client is one for all.

Every worker has a table of its own, which it alone writes, and reads those of the others. A table is SETS sets of WAYS
entries, so that looking a client up costs the same however many there are, and its memory has an end: where a set is
full, the entry with the smallest number makes room. The number of whoever was forgotten counts for nothing elsewhere;
32,768 clients that are evenly spread do not get there. Keys are whole (limits.client_key), never hashes of them: nobody
pays for somebody else.

A page is given to a table when it is first touched. What a reader sees while an entry changes hands may be a moment
old or of the entry before it; it costs or gives a client one connection.
"""

from __future__ import annotations

SETS = 4096
WAYS = 8
CELLS = SETS * WAYS * 2  # of 64 bits: 512 KiB at most
HELD, RATE = "held", "rate"  # what the numbers are: connections, or monotonic microseconds

_MIX = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: neighbours get far from each other (Knuth, 6.4)
_WORD = (1 << 64) - 1


class Table:
    """The table that begins at cell ``first`` of ``cells``, a memoryview of signed 64-bit integers."""

    def __init__(self, cells, first=0):
        self._cells = cells
        self._first = first

    def get(self, key):
        """Return the number of a client, 0 when there is none."""
        start = self._set_of(key)
        keys = self._cells[start : start + WAYS].tolist()
        return self._cells[start + WAYS + keys.index(key)] if key in keys else 0

    def put(self, key, number):
        """Set the number of a client."""
        start = self._set_of(key)
        keys, numbers = (self._cells[at : at + WAYS].tolist() for at in (start, start + WAYS))
        way = keys.index(key) if key in keys else numbers.index(min(numbers))
        if keys[way] != key:
            if number < numbers[way]:
                return  # it was forgotten, and so it stays
            self._cells[start + WAYS + way] = 0  # not the old number under the new name
            self._cells[start + way] = key
        self._cells[start + WAYS + way] = number

    def _set_of(self, key):
        return self._first + ((key * _MIX & _WORD) >> 52) * WAYS * 2  # 52: the upper 12 bits name one of SETS


class Book:
    """The tables of all workers, of which ``own`` is written."""

    def __init__(self, tables, own):
        self._own = own
        self._others = [table for table in tables if table is not own]

    def get(self, key):
        """Return this worker's own number of a client."""
        return self._own.get(key)

    def put(self, key, number):
        """Set this worker's own number of a client."""
        self._own.put(key, number)

    def elsewhere(self, key):
        """Return the numbers the other workers have of a client."""
        return [table.get(key) for table in self._others]


def alone():
    """Return the Book of a worker that shares nothing."""
    table = Table(memoryview(bytearray(CELLS * 8)).cast("q"))
    return Book([table], table)
