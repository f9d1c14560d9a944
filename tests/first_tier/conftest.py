# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet with both first tiers, and the table of what was measured."""

from __future__ import annotations

import os

import pytest

from tests.first_tier.fleet import HOSTS, Fleet
from tests.first_tier.namespaces import InNamespaces
from tests.lab.netns import NamespaceLab

LINE = "{:<44} {:<6} {:>10} {:>9} {:>10}  {}"
ROWS = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def deployed(tmp_path_factory):
    with NamespaceLab(f"ft{os.getpid()}", HOSTS) as lab:
        raised = InNamespaces(lab, tmp_path_factory.mktemp("tier"))
        try:
            raised.deploy()
            yield raised
        finally:
            raised.close()


@pytest.fixture
def fleet(deployed):
    """The fleet in namespaces; everything is whole."""
    deployed.wait_whole()
    return deployed


@pytest.fixture
def report(request):
    """Add a row: what happened, which first tier, seconds (worst, median) until all is served, how many times, more."""

    def add(name: str, tier: str, seconds: list[float], more: str = "") -> None:
        figures = [f"{max(seconds):.2f}", f"{sorted(seconds)[len(seconds) // 2]:.2f}"] if seconds else ["", ""]
        row = LINE.format(name, tier, *figures, len(seconds) or "", more).rstrip()
        request.config.stash.setdefault(ROWS, []).append(row)
        with (Fleet.logs / "table").open("a", encoding="utf-8") as table:
            table.write(f"{row}\n")

    return add


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("first tier: seconds until every new connection is served at once")
        for line in (LINE.format("what happens to a proxy", "tier", "worst s", "median", "times", "more"), *rows):
            terminalreporter.write_line(line)
