# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters as JSON in the state file (process/state_file.py): {kind: {"fields": [str], "rows": [[name, [int]]]}}.

``kind`` is worker, service, target or health; ``name`` is [], [service] or [service, backend, family]. A row has the
numbers of the fields, and rows of zeros are left out. Gauges and times are not stored. Pure.
"""

from __future__ import annotations

from typing import Any

from ..._shared.integers import is_whole
from .shared_memory import GAUGES, TIMES, Region
from .totals import GenerationTotals, Totals, names_of

HEALTH = "health"
HEALTH_FIELDS = ("checks", "server_failures", "path_failures")  # counters among the states that the checker writes
HIGHEST = 1 << 62  # a sum of two must fit into a cell


def dump(totals: Totals, region: Region) -> dict[str, Any]:
    """Return the counters of everything that the config of ``region``, the live generation's, has."""
    tables = {}
    for kind, names in names_of(region).items():
        fields = [name for of_kind, name in region.offsets if of_kind == kind and name not in GAUGES | TIMES]
        numbers = (totals.of(kind, name) for name in names)
        tables[kind] = _table(fields, names, ([one.get(field, 0) for field in fields] for one in numbers))
    places = range(len(region.targets))
    columns = [[region.state(field, number) for number in places] for field in HEALTH_FIELDS]
    tables[HEALTH] = _table(list(HEALTH_FIELDS), region.targets, map(list, zip(*columns)))
    return tables


def _table(fields, names, rows):
    return {"fields": fields, "rows": [[list(name), row] for name, row in zip(names, rows) if any(row)]}


def check(tables: Any) -> None:
    """Raise ValueError if ``tables`` are not what dump() of any version returns."""
    if not isinstance(tables, dict):
        raise ValueError("counters: is not an object")
    for kind, table in tables.items():
        kind = kind[:20]  # it may be anything
        if not (isinstance(table, dict) and isinstance(table.get("rows"), list) and _are_names(table.get("fields"))):
            raise ValueError(f"counters: {kind}: is not a table of fields and rows")
        for row in table["rows"]:
            if not (isinstance(row, list) and len(row) == 2 and _are_names(row[0]) and _are_counts(row[1])):
                raise ValueError(f"counters: {kind}: a row is not a name and its numbers")
            if len(row[1]) != len(table["fields"]):
                raise ValueError(f"counters: {kind}: a row has not a number for each field")


def _are_names(value):
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_counts(value):
    return isinstance(value, list) and all(is_whole(one, 0, HIGHEST) for one in value)


def restore(tables: dict[str, Any], region: Region) -> GenerationTotals:
    """Return the checked ``tables`` as totals, as far as the config of ``region`` has their names.

    The counters of health checks are written to ``region``.
    """
    records = []
    for kind, names in names_of(region).items():
        known = {name for of_kind, name in region.offsets if of_kind == kind and name not in GAUGES | TIMES}
        for name, numbers in _rows(tables, kind, set(names)):
            records += [(kind, name, field, number) for field, number in numbers.items() if field in known]
    places = {target: number for number, target in enumerate(region.targets)}
    for name, numbers in _rows(tables, HEALTH, places):
        for field in numbers.keys() & set(HEALTH_FIELDS):
            region.set_state(field, places[name], numbers[field])
    return GenerationTotals(records)


def _rows(tables, kind, names):
    """Yield (name, {field: number}) of the rows of a kind that have one of these names."""
    table = tables.get(kind, {"fields": [], "rows": []})
    for name, numbers in table["rows"]:
        if tuple(name) in names:
            yield tuple(name), dict(zip(table["fields"], numbers))
