# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Downgrade and upgrade of a fleet under load, by the playbook of each version: no client is refused.

An upgrade keeps drain states and counters, also from version 0.1.0. No service has a key that it does not know.
"""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.chaos.fleet import INVENTORY
from tests.chaos.load import PATIENCE as CONNECTION
from tests.lab import ansible, earlier
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def collections(fleet, inventory, tmp_path_factory):
    """Directories of the collection by version; None is this checkout. Changes by other tests are undone first."""
    directory = tmp_path_factory.mktemp("earlier")
    earlier.unpack(directory)
    # As the operations guide says. The second run removes the setting that local delivery needed beside such services.
    for _run in range(2):
        more = ("-e", "forwarder_kernel_datapath_drain=0")
        run = ansible.play(fleet.lab.prefix, "trueip.l4proxy.site", [inventory], *more)
        assert run.status == 0, run.output
    assert "kernel_datapath.json" not in fleet.sh("a", "ls /etc/l4proxy/routing.d")
    # Until the keeper has removed that setting, after 40 s.
    eventually(lambda: "retiring" not in fleet.sh("a", "cat /etc/l4proxy/routing.d/*"), patience=90)
    return {earlier.REVISION: directory, "this version": None}


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    """The fleet without kernel services."""
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    path.write_text(re.sub(" *datapath: kernel\n", "", INVENTORY.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def test_an_earlier_version_changes_nothing_if_there_are_kernel_services(fleet, collections):
    run = ansible.play(fleet.lab.prefix, "trueip.l4proxy.site", [INVENTORY], collections=collections[earlier.REVISION])
    assert (run.status, run.changed) == (2, {}), run.output
    assert "datapath" in run.output


@pytest.mark.parametrize("version", [earlier.REVISION, "this version"])
def test_a_change_of_version_refuses_no_client(fleet, inventory, report, collections, version):
    upgrade = collections[version] is None
    if upgrade:
        fleet["a"].run(["l4proxy", "drain", "all", "d"])
    drained, accepted = known(fleet)
    leaked, began = fleet.leaked("all"), time.time()
    for changes in (True, False):
        run = ansible.play(fleet.lab.prefix, "trueip.l4proxy.site", [inventory], collections=collections[version])
        assert run.status == 0, run.output
        assert bool(run.changed) == changes, run.output
    if upgrade:
        after = known(fleet)
        assert after[0] == drained != set()
        assert after[1] >= accepted > 0
        fleet["a"].run(["l4proxy", "ready", "all", "d"])
    until = time.time()
    eventually(lambda: time.time() > until + CONNECTION)
    noticed = fleet.noticed(began, until, fleet.leaked("all") - leaked)
    report(f"to {version}", f"{until - began:.0f}", "-", noticed, "")
    assert noticed.connections
    assert (noticed.lost, noticed.lost_by_kernel, noticed.leaked) == (0, 0, 0)


def known(fleet):
    """Return (the drained backends, the number of accepted connections) of the forwarder that runs."""
    services = json.loads(fleet["a"].run(["l4proxy", "status", "--json"]).stdout)["services"]
    backends = [backend for service in services for backend in service["backends"]]
    drained = {backend["name"] for backend in backends if backend["admin"] == "draining"}
    return drained, sum(service["connections"] for service in services)
