# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures for people (a table) and for programs (tests/output/bench.json).

bench.json is one object: "meta" with versions, settings and the schema number, and "figures", whose keys are
WORK.PEER.rate|p50|p99|cpu_per_unit|rss|failed. A value is {"median", "spread", "rounds"}: rate in units a second (bit/s
for bulk), p50 and p99 in seconds, cpu_per_unit in CPU seconds (user and system, all processes of the peer) for each
unit (gigabyte, request, connection, datagram), rss in bytes for each connection, failed in units. The spread is
(most - least) / median of the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.measure import Figure
from tests.bench.works import Work

OUTPUT = Path(__file__).resolve().parents[1] / "output" / "bench.json"
SCHEMA = 1
OURS = "l4proxy"

Results = Mapping[str, Mapping[str, Mapping[str, Figure]]]

#: Heading, factor and format of a column.
COLUMNS = {
    "rate": ("rate", 1, "{:.4g}"),
    "p50": ("p50 ms", 1e3, "{:.2f}"),
    "p99": ("p99 ms", 1e3, "{:.2f}"),
    "cpu_per_unit": ("CPU us/unit", 1e6, "{:.4g}"),
    "rss": ("bytes/conn", 1, "{:.0f}"),
    "failed": ("failed", 1, "{:.0f}"),
}


def table(work: Work, measured: Mapping[str, Mapping[str, Figure]]) -> str:
    """Return the figures of a work as text, each with the ratio of ours to that peer's, and the spread."""
    names = [name for name in COLUMNS if any(name in found for found in measured.values())]
    heading = f"{work.name} (unit: {work.unit})"
    lines = [heading, "  " + f"{'':16}" + "".join(f"{COLUMNS[name][0]:>26}" for name in names)]
    ours = measured.get(OURS, {})
    for peer, found in measured.items():
        cells = "".join(f"{_cell(name, found.get(name), ours.get(name)):>26}" for name in names)
        lines.append(f"  {peer:16}{cells}")
    return "\n".join([*lines, ""])


def _cell(name: str, value: Figure | None, ours: Figure | None) -> str:
    if value is None:
        return "-"
    _heading, factor, form = COLUMNS[name]
    ratio = f" x{ours.median / value.median:.2f}" if ours and ours is not value and value.median else ""
    return f"{form.format(value.median * factor)}{ratio} ±{value.spread / 2:.0%}"


def document(results: Results, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of bench.json."""
    figures = {
        f"{work}.{peer}.{name}": asdict(value)
        for work, measured in results.items()
        for peer, found in measured.items()
        for name, value in found.items()
    }
    return {"meta": {"schema": SCHEMA, **meta}, "figures": figures}


def write(results: Results, meta: Mapping[str, Any]) -> Path:
    """Write bench.json; return its path."""
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(document(results, meta), indent=1) + "\n", encoding="utf-8")
    return OUTPUT
