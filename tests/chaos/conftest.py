# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet under load, and the table of results."""

from __future__ import annotations

import os

import pytest

from tests.chaos import fleet as fleets
from tests.lab.containers import ContainerLab

ROW = "{:<42} {:>8} {:>8} {:>12} {:>6} {:>12} {:>9} {:>7} {:>12}  {:<36} {}"
TITLES = (
    "fault",
    "healed s",
    "repairs",
    "connections",
    "lost",
    "lost, kernel",
    "slowest s",
    "leaked",
    "streams lost",
    "their longest silence, s",
    "caused by (keeper)",
)
ROWS = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    with ContainerLab(f"chaos{os.getpid()}") as lab, fleets.under_load(lab, tmp_path_factory.mktemp("chaos")) as raised:
        yield raised


@pytest.fixture
def report(request):
    """A function that adds a row to the table: its name, seconds, repairs, a Noticed, and who caused the repairs."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda name, healed, repairs, noticed, who: rows.append((name, healed, repairs, *noticed.cells, who))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section(f"chaos, with {fleets.RATE} connections a second")
        for row in (TITLES, *rows):
            terminalreporter.write_line(ROW.format(*row))
