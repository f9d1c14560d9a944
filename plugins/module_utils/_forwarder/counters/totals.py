# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of all generations together, so that no counter falls because of a reload.

A generation's shared memory ends with its last process. Its counters are added to these totals, which the supervisor
keeps across a re-exec. Totals are keyed by names, never by places: the next generation may order things otherwise.
"""

from __future__ import annotations

from array import array

from .shared_memory import GAUGES, TIMES


class GenerationTotals:
    """What ended generations have counted: {(kind, name): {field: number}}.

    ``kind`` is worker, service or target; ``name`` is (), (service,) or (service, backend, family).
    """

    def __init__(self, records=()):
        self._kept: dict[tuple, dict[str, int]] = {}
        for kind, name, field, value in records:
            self._kept.setdefault((kind, tuple(name)), {})[field] = value

    def records(self):
        """Return everything as JSON, for the constructor."""
        return [
            [kind, list(name), field, value]
            for (kind, name), numbers in self._kept.items()
            for field, value in numbers.items()
        ]

    def fold(self, region):
        """Take over what a region has counted; it will be closed."""
        for key, numbers in counted(region):
            grown = {field: value for field, value in numbers.items() if value and field not in GAUGES | TIMES}
            if grown:
                _add(self._kept.setdefault(key, {}), grown)

    def totals(self, regions):
        """Return the Totals of the generation_totals and of regions that still live."""
        found = {key: dict(numbers) for key, numbers in self._kept.items()}
        for region in regions:
            for key, numbers in counted(region):
                if key in found:
                    _add(found[key], numbers)
                else:
                    found[key] = numbers
        return Totals(found)


def _add(numbers, more):
    """Add ``more`` to ``numbers``, field by field; of times the later one is kept."""
    for field, value in more.items():
        before = numbers.get(field, 0)
        numbers[field] = max(before, value) if field in TIMES else before + value


class Totals:
    """Numbers by kind, name and field; what was never counted is 0."""

    def __init__(self, found):
        self._found = found

    def of(self, kind, name):
        """Return {field: number} of one name; what was never counted is not in it."""
        return self._found.get((kind, name), {})

    def worker(self, field):
        """Return a number of all workers."""
        return self.of("worker", ()).get(field, 0)

    def service(self, name, field):
        """Return a number of a service."""
        return self.of("service", (name,)).get(field, 0)

    def target(self, service, backend, family, field):
        """Return a number of a backend in one family."""
        return self.of("target", (service, backend, family)).get(field, 0)


def _names(region):
    """Return {kind: the names of its places in a row, in their order}."""
    return {"worker": [()], "service": [(name,) for name in region.services], "target": region.targets}


def counted(region):
    """Yield ((kind, name), {field: sum over the workers' rows}) of everything in a region; of times, the latest."""
    rows = [region.row(slot) for slot in range(region.slots)]
    sums, latest = list(map(sum, zip(*rows))), list(map(max, zip(*rows)))
    for kind, names in _names(region).items():
        offsets = {field: offset for (of_kind, field), offset in region.offsets.items() if of_kind == kind}
        columns = [
            (latest if field in TIMES else sums)[offset : offset + len(names)] for field, offset in offsets.items()
        ]
        for name, values in zip(names, zip(*columns)):
            yield (kind, name), dict(zip(offsets, values))


def elsewhere(region, others):
    """Write to the supervisor's row of ``region`` what generations that still drain have open."""
    names = _names(region)
    for kind, field in (("service", "sessions"), ("target", "active")):
        open_now: dict[tuple, int] = {}
        for other in others:
            for name, number in _open(other, kind, field):
                open_now[name] = open_now.get(name, 0) + number
        start = region.cell(region.slots, kind, field)
        numbers = [open_now.get(name, 0) for name in names[kind]] if open_now else [0] * len(names[kind])
        region.cells[start : start + len(numbers)] = memoryview(array("q", numbers))


def _open(region, kind, field):
    """Yield (name, number) of what the workers of a region have open of one kind."""
    names = _names(region)[kind]
    starts = [region.cell(slot, kind, field) for slot in range(region.slots)]
    columns = [region.cells[start : start + len(names)].tolist() for start in starts]
    for name, numbers in zip(names, zip(*columns)):
        number = sum(numbers)
        if number:
            yield name, number
