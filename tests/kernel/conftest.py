# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pyroute2 the engines are tested with; and the lab of a file, and the family of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.lab.netns import NamespaceLab, cli_environment
from tests.support.addresses import FAMILIES
from tests.support.routing import Engine, left_as_found

#: Set by the gate that runs these tests with the pyroute2 of other Debian releases.
WANTED = "L4PROXY_TEST_PYROUTE2"

#: The files that take longest, longest first. They start first, so that none of them is still running at the end alone.
LONGEST = """
    ansible/test_inventories forwarder/test_bans ansible/test_examples keeper/test_repairs marks/test_deployed
    forwarder/test_balance doctor/test_foreign_marks doctor/test_hidden_clients marks/test_path forwarder/test_bulk
    keeper/test_kernel_services marks/test_last_sender takeover/test_needs keeper/test_foreign_rules
    forwarder/test_health forwarder/test_restart doctor/test_faults forwarder/test_reload
    return_path/test_strategy_change forwarder/test_workers forwarder/test_metrics marks/test_engines
    return_path/test_strategies return_path/test_port_collisions return_path/test_boot forwarder/test_state_file
    forwarder/test_udp_sessions forwarder/test_in_place forwarder/test_health_servers forwarder/test_kernel_services
    local_delivery/test_own_traffic
""".split()  # noqa: SIM905  # a list would be one a line


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first. (xdist would begin with those that have most tests: --no-loadscope-reorder.)"""
    rank = {f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get("/".join(item.path.parts[-2:]), len(rank)))


def pytest_report_header() -> str:
    return f"pyroute2: {version('pyroute2')}"


@pytest.fixture(scope="session", autouse=True)
def _the_pyroute2_that_was_asked_for():
    wanted = os.environ.get(WANTED, version("pyroute2"))
    assert version("pyroute2") == wanted
    # So do the processes that run on the hosts: the keeper, and what else a test starts there.
    ask = "from importlib.metadata import version; print(version('pyroute2'))"
    assert subprocess.check_output([sys.executable, "-c", ask], env=cli_environment(), text=True).strip() == wanted


@pytest.fixture(scope="module")
def lab(request, tmp_path_factory):
    """The hosts that the file names in HOSTS, with nothing configured; ``lab.engine`` is the routing engine."""
    with NamespaceLab(f"k{os.getpid()}", request.module.HOSTS) as lab:
        lab.engine = Engine(tmp_path_factory.mktemp("engine"))
        yield lab


@pytest.fixture
def b(lab):
    """Host b. Objects of the return path are removed in the end, and nothing else may have changed."""
    with left_as_found(lab, "b") as host:
        yield host


@pytest.fixture(params=FAMILIES)
def family(request):
    """A test that has this argument runs once for each address family."""
    return request.param
