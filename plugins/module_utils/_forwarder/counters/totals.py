# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters summed over all generations, so that no counter decreases because of a reload.

The shared memory of a generation is closed after its last process. Its counters are added to totals, which the
supervisor keeps over an exec. They are keyed by names and not by positions, which differ between generations.
"""

from __future__ import annotations

import time
from array import array

from . import client_tables
from .shared_memory import CLIENTS_ELSEWHERE, GAUGES, TIMES

SAMPLE_VALID = 60.0  # seconds for which a round-trip time says something


class GenerationTotals:
    """The counters of ended generations: {(kind, name): {field: number}}.

    ``kind`` is worker, service or target; ``name`` is (), (service,) or (service, backend, family).
    """

    def __init__(self, records=()):
        self._counters: dict[tuple, dict[str, int]] = {}
        for kind, name, field, value in records:
            self._counters.setdefault((kind, tuple(name)), {})[field] = value

    def records(self):
        """Return all counters as JSON, for the constructor."""
        return [
            [kind, list(name), field, value]
            for (kind, name), numbers in self._counters.items()
            for field, value in numbers.items()
        ]

    def fold(self, region):
        """Add the counters of a region that will be closed."""
        for key, numbers in counted(region):
            counters = {field: value for field, value in numbers.items() if value and field not in GAUGES | TIMES}
            if counters:
                _add(self._counters.setdefault(key, {}), counters)

    def totals(self, regions):
        """Return the Totals of the ended generations and of ``regions``."""
        sums = {key: dict(numbers) for key, numbers in self._counters.items()}
        for region in regions:
            for key, numbers in counted(region):
                if key in sums:
                    _add(sums[key], numbers)
                else:
                    sums[key] = numbers
        return Totals(sums, round_trips(regions, time.monotonic()))


def _add(numbers, more):
    """Add ``more`` to ``numbers``, field by field; of two times keep the later one."""
    for field, value in more.items():
        before = numbers.get(field, 0)
        numbers[field] = max(before, value) if field in TIMES else before + value


class Totals:
    """Numbers by kind, name and field; a missing number is 0. ``round_trips`` are those of round_trips()."""

    def __init__(self, sums, round_trips):
        self._sums = sums
        self.round_trips = round_trips

    def of(self, kind, name):
        """Return {field: number} of one name, without fields that were never counted."""
        return self._sums.get((kind, name), {})

    def worker(self, field):
        """Return a number summed over all workers."""
        return self.of("worker", ()).get(field, 0)

    def service(self, name, field):
        """Return a number of a service."""
        return self.of("service", (name,)).get(field, 0)

    def target(self, service, backend, family, field):
        """Return a number of a backend in one family."""
        return self.of("target", (service, backend, family)).get(field, 0)


def names_of(region):
    """Return {kind: the names in the order of their cells in a row}."""
    return {"worker": [()], "service": [(name,) for name in region.services], "target": region.targets}


def counted(region):
    """Yield ((kind, name), {field: sum over the rows of workers}) of a region; for times the latest."""
    rows = [region.row(slot) for slot in range(region.slots)]
    sums, latest = list(map(sum, zip(*rows))), list(map(max, zip(*rows)))
    for kind, names in names_of(region).items():
        offsets = {field: offset for (of_kind, field), offset in region.offsets.items() if of_kind == kind}
        columns = [
            (latest if field in TIMES else sums)[offset : offset + len(names)] for field, offset in offsets.items()
        ]
        for name, values in zip(names, zip(*columns)):
            yield (kind, name), dict(zip(offsets, values))


def round_trips(regions, now):
    """Return {target: smoothed round-trip time in microseconds}; without those that have no sample for SAMPLE_VALID s.

    A worker's number weighs as much as the connections that it has open to the target.
    """
    sums: dict[tuple, tuple[int, int]] = {}
    for region in regions:
        if ("target", "sampled") not in region.offsets:  # in a record of an early version
            continue
        for slot in range(region.slots):
            starts = [region.cell(slot, "target", field) for field in ("sampled", "rtt_microseconds", "active")]
            columns = [region.cells[start : start + len(region.targets)].tolist() for start in starts]
            if not any(columns[0]):
                continue
            for name, sampled, microseconds, active in zip(region.targets, *columns):
                if microseconds and now - sampled / 1000 <= SAMPLE_VALID:
                    total, weight = sums.get(name, (0, 0))
                    sums[name] = total + microseconds * max(1, active), weight + max(1, active)
    return {name: round(total / weight) for name, (total, weight) in sums.items()}


def publish_elsewhere(region, others, left=None, moving=()):
    """Write what ``others``, the regions of other generations, have open to the supervisor's row of ``region``.

    ``left`` is one of them: what its slots ``moving`` have open is in their rows of ``region`` already.
    """
    others = list(others)
    _publish_clients(region, others, left, moving)
    names = names_of(region)
    for kind, field in (("service", "sessions"), ("target", "active")):
        open_now: dict[tuple, int] = {}
        for other in others:
            for name, number in _open(other, kind, field, moving if other is left else ()):
                open_now[name] = open_now.get(name, 0) + number
        start = region.cell(region.slots, kind, field)
        numbers = [open_now.get(name, 0) for name in names[kind]] if open_now else [0] * len(names[kind])
        region.cells[start : start + len(numbers)] = memoryview(array("q", numbers))


def _publish_clients(region, others, left, moving):
    """Write the numbers of connections of each client in ``others`` to the supervisor's tables of ``region``."""
    anything = False
    for service in region.elsewhere:
        numbers: dict[int, int] = {}
        for other in others:
            slots = [slot for slot in range(other.slots) if not (other is left and slot in moving)]
            for key, number in other.held(service, slots):
                numbers[key] = numbers.get(key, 0) + number
        if region.cells[CLIENTS_ELSEWHERE] or numbers:
            _write_clients(region, service, numbers)
        anything = anything or bool(numbers)
    region.cells[CLIENTS_ELSEWHERE] = int(anything)


def _write_clients(region, service, numbers):
    """Change the supervisor's table of a service to ``numbers``, entry by entry: workers read it meanwhile."""
    table = region.elsewhere_table(service)
    before = dict(client_tables.entries(region.fd, region.elsewhere[service]))
    for key in before.keys() - numbers.keys():
        table.put(key, 0)
    for key, number in numbers.items():
        if before.get(key) != number:
            table.put(key, number)


def _open(region, kind, field, except_slots):
    """Yield (name, number) of the open sessions or connections of the workers of a region."""
    names = names_of(region)[kind]
    starts = [region.cell(slot, kind, field) for slot in range(region.slots) if slot not in except_slots]
    columns = [region.cells[start : start + len(names)].tolist() for start in starts]
    for name, numbers in zip(names, zip(*columns)):
        number = sum(numbers)
        if number:
            yield name, number
