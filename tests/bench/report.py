# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures for people (a table) and for programs (tests/output/bench.json).

bench.json is one object: "meta" with versions, settings and the schema number, and "figures", whose keys are
WORK.PEER.rate|p50|p99|cpu_per_unit|total_per_unit|rss|failed. A value is {"median", "spread", "rounds"}: rate in units
a second (bit/s for bulk), p50 and p99 in seconds, cpu_per_unit in CPU seconds (user and system, all processes of the
peer) for each unit (gigabyte, request, connection, datagram), total_per_unit the same of client, peer, server and
kernel together, rss in bytes for each connection, failed in units. The spread is (most - least) / median of the rounds.
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
OURS, KERNEL = "l4proxy", "kernel"
#: No proxies: the ends of the scale.
DIRECT, DNAT = "direct", "dnat"

Results = Mapping[str, Mapping[str, Mapping[str, Figure]]]

#: Heading, factor and format of a column.
COLUMNS = {
    "rate": ("rate", 1, "{:.4g}"),
    "p50": ("p50 ms", 1e3, "{:.2f}"),
    "p99": ("p99 ms", 1e3, "{:.2f}"),
    "cpu_per_unit": ("CPU us/unit", 1e6, "{:.4g}"),
    "total_per_unit": ("all CPU us/unit", 1e6, "{:.4g}"),
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


def _least(found: Mapping[str, Mapping[str, Figure]], name: str) -> str | None:
    """Return the peer with the lowest value, or the highest rate, among proxies that are not ours."""
    ours = (OURS, KERNEL, DIRECT, DNAT, "l4proxy-before")
    peers = [peer for peer, values in found.items() if peer not in ours and name in values]
    sign = -1 if name == "rate" else 1
    return min(peers, key=lambda peer: sign * found[peer][name].median, default=None)


def cards(results: Results) -> str:
    """Return which of our two datapaths is ahead of the best other proxy, and by how much, as text.

    Of each work: both rates as multiples of that proxy's, what each datapath adds to the CPU of the direct path divided
    by what that proxy adds, and the total CPU of the kernel datapath divided by that of bare DNAT. The best proxy is
    the one with the highest rate, or with the least CPU; they may be two.
    """
    heading = ("work", "best proxies (rate, CPU)", "forwarder: rate", "adds", "kernel: rate", "adds", "all / dnat")
    row = "  {:22}{:36}{:>16}{:>8}{:>14}{:>8}{:>12}".format
    lines, ahead = ["which datapath is ahead of the best proxy", row(*heading)], {OURS: [], KERNEL: []}
    for work, found in results.items():
        fast, frugal = _least(found, "rate"), _least(found, "total_per_unit")
        if fast is None or frugal is None:
            continue
        cells = []
        for peer in (OURS, KERNEL):
            if peer not in found:
                cells += ["-", "-"]
                continue
            rate = found[peer]["rate"].median / found[fast]["rate"].median
            adds = _added(found, peer) / _added(found, frugal)
            cells += [f"x{rate:.2f}", f"x{adds:.2f}"]
            if rate >= 1 and adds <= 1:
                ahead[peer].append(work)
        both = KERNEL in found and DNAT in found
        totals = [found[peer]["total_per_unit"].median for peer in (KERNEL, DNAT)] if both else []
        cells.append(f"x{totals[0] / totals[1]:.2f}" if totals else "-")
        lines.append(row(work, fast if fast == frugal else f"{fast}, {frugal}", *cells))
    names = {OURS: "forwarder", KERNEL: "kernel"}
    lines += [
        f"  ahead by rate and by CPU, {names[peer]}: {', '.join(found) or 'nowhere'}" for peer, found in ahead.items()
    ]
    return "\n".join([*lines, ""])


def _added(found: Mapping[str, Mapping[str, Figure]], peer: str) -> float:
    """Return the CPU seconds a unit that a peer adds to the direct path; all of them where that was not measured."""
    base = found[DIRECT]["total_per_unit"].median if DIRECT in found else 0.0
    return found[peer]["total_per_unit"].median - base


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
