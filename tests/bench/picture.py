# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of bench.json: for each work the peers' rate and CPU time a unit, ours being 1. Run beside the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

OURS = "l4proxy"
PANELS = {"rate": "rate (longer is better)", "cpu_per_unit": "CPU time a unit (shorter is better)"}


def shares(figures: dict[str, dict], name: str) -> dict[str, dict[str, float]]:
    """Return {work: {peer: its median / ours}} of one value, for the works in which ours has one."""
    found: dict[str, dict[str, float]] = {}
    for key, value in figures.items():
        work, _dot, rest = key.partition(".")
        peer, _dot, what = rest.rpartition(".")  # a peer's name may have dots, as haproxy-3.5
        ours = figures.get(f"{work}.{OURS}.{name}", {}).get("median")
        if what == name and ours and value["median"]:
            found.setdefault(work, {})[peer] = value["median"] / ours
    return found


def draw(source: Path, target: Path) -> None:
    """Draw the picture of the figures in ``source``."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figures = json.loads(source.read_text(encoding="utf-8"))["figures"]
    panels = {name: shares(figures, name) for name in PANELS}
    peers = list(dict.fromkeys(peer for found in panels.values() for one in found.values() for peer in one))
    rows = max(len(found) for found in panels.values())
    drawing, axes = pyplot.subplots(1, len(panels), figsize=(14, 1 + 0.14 * rows * len(peers)))
    for axis, (name, found) in zip(axes, panels.items()):
        height = 0.8 / max(1, len(peers))
        for number, peer in enumerate(peers):
            places = [row + number * height for row, work in enumerate(found) if peer in found[work]]
            axis.barh(places, [one[peer] for one in found.values() if peer in one], height, label=peer)
        axis.set_yticks([row + 0.4 for row in range(len(found))], list(found))
        axis.invert_yaxis()
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"{PANELS[name]}, {OURS} = 1")
    if peers:
        axes[0].legend()
    drawing.tight_layout()
    drawing.savefig(target)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
