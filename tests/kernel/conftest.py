# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which pyroute2 the engines are tested with, and refuses another one than was asked for."""

from __future__ import annotations

import os
from importlib.metadata import version

import pytest

#: Set by the gate that runs these tests with the pyroute2 of other Debian releases.
WANTED = "L4PROXY_TEST_PYROUTE2"


def pytest_report_header() -> str:
    return f"pyroute2: {version('pyroute2')}"


@pytest.fixture(scope="session", autouse=True)
def _the_pyroute2_that_was_asked_for():
    wanted = os.environ.get(WANTED, version("pyroute2"))
    assert version("pyroute2") == wanted
