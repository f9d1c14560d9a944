# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of one number per client, in shared memory, so that a limit per client holds across all workers.

Each worker writes a table of its own and reads those of the others. The supervisor writes one for all old generations
together (totals.py), and a flag that says whether anything is in it, so without old generations nobody reads it. A
table has SETS sets of WAYS entries, so a lookup costs the same for any number of clients and the memory is bounded. In
a full set a new client replaces the entry with the smallest number, and the replaced client counts as 0 from then on.
That does not happen with up to 32,768 evenly spread clients. Keys are complete (limits.client_key()) and not hashes, so
no two clients share an entry.

The kernel allocates a page of a table on its first use. A reader may see an entry that is just being replaced: a moment
old, or the previous client's. That is wrong by one connection at most.
"""

from __future__ import annotations

import os
from array import array

SETS = 4096
WAYS = 8
CELLS = SETS * WAYS * 2  # of 64 bits: 512 KiB at most
HELD, RATE = "held", "rate"  # kinds of numbers: open connections; monotonic microseconds (limits.Rate)

_MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads neighbouring keys (Fibonacci hashing, Knuth 6.4)
_WORD = (1 << 64) - 1


class ClientTable:
    """The table of one worker, which begins at cell ``first`` of ``cells``, a memoryview of signed 64-bit integers."""

    def __init__(self, cells, first=0):
        self._cells = cells
        self._first = first

    def get(self, key):
        """Return the number of a client, 0 if the table does not have it."""
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
                return  # its entry was replaced before, by one with a greater number
            self._cells[start + WAYS + way] = 0  # no reader may see the old number under the new key
            self._cells[start + way] = key
        self._cells[start + WAYS + way] = number

    def _set_of(self, key):
        return self._first + ((key * _MIX & _WORD) >> 52) * WAYS * 2  # the upper 12 bits select one of SETS


class ClientNumbers:
    """The tables of all workers; only ``own`` is written.

    ``elsewhere`` is the table of old generations, which is read while ``flags[flag]`` is not 0.
    """

    def __init__(self, tables, own, elsewhere=None, flags=(0,), flag=0):
        self._own = own
        self._others = [table for table in tables if table is not own]
        self._elsewhere = elsewhere
        self._flags, self._flag = flags, flag

    def get(self, key):
        """Return the number of a client in this worker's own table."""
        return self._own.get(key)

    def put(self, key, number):
        """Set the number of a client in this worker's own table."""
        self._own.put(key, number)

    def elsewhere(self, key):
        """Return a client's numbers in the tables of the other workers, and in old generations if there are any."""
        numbers = [table.get(key) for table in self._others]
        if self._flags[self._flag]:
            numbers.append(self._elsewhere.get(key))
        return numbers


def pages_in_use(fd, start):
    """Yield (start, end) of the parts of a table in use, in bytes: reading any other page would allocate it."""
    at, end = start, start + CELLS * 8
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data up to the end
            return
        hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        if at < hole:
            yield at, hole
        at = hole


def entries(fd, start):
    """Yield (key, number) of all clients of the table that begins at byte ``start`` whose number is not 0."""
    for at, end in pages_in_use(fd, start):
        cells = array("q", os.pread(fd, end - at, at)).tolist()
        for first in range(0, len(cells), WAYS * 2):
            numbers = cells[first + WAYS : first + WAYS * 2]
            if any(numbers):
                yield from (pair for pair in zip(cells[first : first + WAYS], numbers) if pair[1])


def unshared():
    """Return ClientNumbers of a single table in private memory."""
    table = ClientTable(memoryview(bytearray(CELLS * 8)).cast("q"))
    return ClientNumbers([table], table)
