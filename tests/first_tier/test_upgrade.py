# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook `rolling_update_proxies` upgrades three proxies, deployed by `site` in containers, under load."""

from __future__ import annotations

import os
import time

import pytest

from tests.first_tier.fleet import ADDRESSES, HOSTS, PROXIES, Fleet
from tests.lab import earlier
from tests.lab.containers import ContainerLab
from tests.walk.fleet import STREAM

SETTLE = 3.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with ContainerLab(f"tier{os.getpid()}", HOSTS) as lab:
        raised = Fleet(lab, tmp_path_factory.mktemp("tier"))
        try:
            raised.deploy()
            yield raised
        finally:
            raised.end()
            raised.router.stop()


def test_rolling_upgrade(fleet, report):
    """Three proxies, one after the other, with 200 connections a second and 50 streams that live for 15 s."""
    newer = earlier.newer(fleet.directory / "newer")
    with fleet.load(200, *ADDRESSES, streams=[(STREAM, 50)], life=15):
        began = time.time()
        fleet.play("rolling_update_proxies", "--extra-vars", "l4proxy_update_timeout=60", collections=newer)
        took = time.time() - began
        time.sleep(SETTLE)
        failed, broken = fleet.failed(began), fleet.broken(began)
        for name in ADDRESSES:
            counts = [sum(item["to"] in ADDRESSES[name] for item in items) for items in (failed, broken)]
            more = f"{counts[0]} connections failed, {counts[1]} streams broke, in {took:.0f} s"
            report("all three are upgraded in turn", name, [fleet.outage(name, began)], more)
    assert {fleet.status(name)["version"] for name in PROXIES} == {earlier.NEWER}
    assert not failed, failed[:5]
    assert not broken, broken[:5]
