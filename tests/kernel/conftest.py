# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which pyroute2 the engines are tested with; and what most of the forwarder's tests begin with."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.kernel import forwarder_lab as fl
from tests.lab.netns import cli_environment

#: Set by the gate that runs these tests with the pyroute2 of other Debian releases.
WANTED = "L4PROXY_TEST_PYROUTE2"


def pytest_report_header() -> str:
    return f"pyroute2: {version('pyroute2')}"


@pytest.fixture(scope="session", autouse=True)
def _the_pyroute2_that_was_asked_for():
    wanted = os.environ.get(WANTED, version("pyroute2"))
    assert version("pyroute2") == wanted
    # So do the processes that run on the hosts: the keeper, and what else a test starts there.
    ask = "from importlib.metadata import version; print(version('pyroute2'))"
    assert subprocess.check_output([sys.executable, "-c", ask], env=cli_environment(), text=True).strip() == wanted


# -- the forwarder's tests; ``lab`` and ``forwarder`` are fixtures of each file ----------------------------------------


@pytest.fixture(scope="module")
def servers(lab):
    """nginx on port 8080 of every backend, by name; the body of its answers is that name."""
    return {name: lab.nginx(name, ports=[8080]) for name in fl.BACKENDS}


@pytest.fixture
def listener(lab, request):
    """The test itself is the server: a listener on b, port 9000 or the file's LISTENER, of the test's ``family``."""
    port = getattr(request.module, "LISTENER", 9000)
    family = request.getfixturevalue("family") if "family" in request.fixturenames else "ipv4"
    with fl.listen(lab, "b", port, family) as listener:
        yield listener


@pytest.fixture
def new_lines(forwarder):
    """A function that returns the log lines of the connections of this test."""
    before = forwarder.settled()
    return lambda count: forwarder.connections(before + count)[before:]
