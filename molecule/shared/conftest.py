# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: the scenario's lab, which molecule's create step has started, and playbook runs against it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import ansible
from tests.lab.containers import ContainerLab

PREFIX = os.environ["L4PROXY_LAB_PREFIX"]
INVENTORY = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "inventory.yml"
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


@pytest.fixture(scope="session")
def lab():
    """Attach to the running lab, and leave it running."""
    return ContainerLab.attach(PREFIX)


@pytest.fixture(scope="session")
def play():
    """Run a playbook against the scenario's fleet: play("site", "--check") -> Run."""

    def run(name, *arguments, **options):
        return ansible.play(PREFIX, f"trueip.l4proxy.{name}", [INVENTORY], *arguments, **options)

    return run


@pytest.fixture(scope="session")
def scratch():
    """A directory that lasts as long as the scenario, so that a step can leave files for a later one."""
    return EPHEMERAL
