# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of all generations together, so that no counter falls because of a reload.

A generation's region ends with its last process; what it had counted is folded into the ledger, which the supervisor
hands on when it re-execs. Totals are keyed by names, never by places: the next generation may order things otherwise.
"""

from __future__ import annotations

from .shared import GAUGES, TIMES


class Ledger:
    """What ended generations have counted: {(kind, name, field): number}.

    ``kind`` is worker, service or target; ``name`` is (), (service,) or (service, backend, family).
    """

    def __init__(self, records=()):
        self._kept = {(kind, tuple(name), field): value for kind, name, field, value in records}

    def records(self):
        """Return everything as JSON, for the constructor."""
        return [[kind, list(name), field, value] for (kind, name, field), value in self._kept.items()]

    def fold(self, region):
        """Take over what a region has counted; it will be closed."""
        for key, value in counted(region):
            if key[2] not in GAUGES | TIMES and value:
                self._kept[key] = self._kept.get(key, 0) + value

    def totals(self, regions):
        """Return the Totals of the ledger and of regions that still live."""
        found = dict(self._kept)
        for region in regions:
            for key, value in counted(region):
                found[key] = max(found.get(key, 0), value) if key[2] in TIMES else found.get(key, 0) + value
        return Totals(found)


class Totals:
    """Numbers by kind, name and field; what was never counted is 0."""

    def __init__(self, found):
        self._found = found

    def worker(self, field):
        """Return a number of all workers."""
        return self._found.get(("worker", (), field), 0)

    def service(self, name, field):
        """Return a number of a service."""
        return self._found.get(("service", (name,), field), 0)

    def target(self, service, backend, family, field):
        """Return a number of a backend in one family."""
        return self._found.get(("target", (service, backend, family), field), 0)


def counted(region):
    """Yield (key, sum over the workers' rows) of every cell of a region; of times, the latest."""
    rows = [region.row(slot) for slot in range(region.slots)]
    sums, latest = [sum(column) for column in zip(*rows)], [max(column) for column in zip(*rows)]
    names = {"worker": [()], "service": [(name,) for name in region.services], "target": region.targets}
    for (kind, field), offset in region.offsets.items():
        values = latest if field in TIMES else sums
        for index, name in enumerate(names[kind]):
            yield (kind, name, field), values[offset + index]


def elsewhere(region, others):
    """Write to the supervisor's row of ``region`` what generations that still drain have open."""
    open_now = {}
    for other in others:
        for key, value in counted(other):
            if key[2] in GAUGES and value:
                open_now[key] = open_now.get(key, 0) + value
    names = {"service": [(name,) for name in region.services], "target": region.targets}
    for kind, field in (("service", "sessions"), ("target", "active")):
        for index, name in enumerate(names[kind]):
            region.cells[region.cell(region.slots, kind, field, index)] = open_now.get((kind, name, field), 0)
