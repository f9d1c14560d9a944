# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet of the walk, and its table."""

from __future__ import annotations

import os

import pytest

from tests.lab.containers import ContainerLab
from tests.walk import fleet as fleets

LINE = "{:<34} {:>7} {:>11} {:>6} {:>9} {:>8} {:>6} {:>6}  {:<44} {}"
COUNTS = ["seconds", "connections", "failed", "slowest s", "streams", "flows", "ended"]
TITLES = ["step", *COUNTS, "old generations", "how"]
ROWS = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """The fleet, deployed and under load."""
    with ContainerLab(f"walk{os.getpid()}", fleets.HOSTS) as lab:
        raised = fleets.Fleet(lab, tmp_path_factory.mktemp("walk"))
        raised.serve("b", "c", "d")
        # nginx on d too, which is no backend yet.
        raised.hosts("backends")["d"] = {}
        raised.play(str(fleets.WEB_SERVERS))
        del raised.hosts("backends")["d"]
        raised.play("site")
        raised.begin()
        try:
            yield raised
        finally:
            raised.end()


@pytest.fixture
def report(request):
    """A function that adds a row to the table, and to .build/walk/table."""

    def add(row: fleets.Row) -> None:
        rows = request.config.stash.setdefault(ROWS, [])
        rows.append(row)
        (fleets.LOGS / "table").write_text("".join(f"{line}\n" for line in lines(rows)), encoding="utf-8")

    return add


def lines(rows: list[fleets.Row]) -> list[str]:
    """The table."""
    return [LINE.format(*cells).rstrip() for cells in (TITLES, *(row.cells() for row in rows))]


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        head = f"{fleets.RATE} connections a second, {fleets.SESSIONS} streams, {fleets.SESSIONS} UDP sessions"
        terminalreporter.section(f"walk, with {head}, {fleets.WORKERS} workers; broken streams and flows by step")
        for line in lines(rows):
            terminalreporter.write_line(line)
