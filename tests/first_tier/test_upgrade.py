# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook `rolling_update_proxies` upgrades three proxies, deployed by `site` in containers, under load."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tests.first_tier.fleet import ADDRESSES, HOSTS, PROXIES, Fleet
from tests.lab import earlier
from tests.lab.containers import ContainerLab
from tests.support.router import FLAG
from tests.walk.fleet import STREAM

SETTLE = 3.0
TABLE, FIRST_ID = "100", 9000


class Resilient(threading.Thread):
    """Gives the router resilient next hops, which FRR cannot: a group that follows the next hops of FRR's routes.

    Without it, the router moves streams of the other proxies too when one leaves or returns, and those are reset.
    """

    def __init__(self, fleet: Fleet):
        super().__init__(daemon=True)
        self.fleet, self.host, self._ending = fleet, fleet.lab["router"], threading.Event()
        self._ids: dict[str, int] = {}
        self._now: dict[str, set[str]] = {}

    def run(self) -> None:
        while not self._ending.wait(0.05):
            self.follow()

    def follow(self) -> None:
        for number, (flag, address) in enumerate(zip(FLAG.values(), ADDRESSES["bgp"])):
            hops = self.fleet.router.next_hops(address)
            if not hops or hops == self._now.get(address):
                continue
            for hop in hops - self._ids.keys():
                self._ids[hop] = FIRST_ID + 10 + len(self._ids)
                self.host.run(["ip", "nexthop", "add", "id", str(self._ids[hop]), "via", hop, "dev", "eth1"])
            members, group = "/".join(str(self._ids[hop]) for hop in sorted(hops)), str(FIRST_ID + number)
            kind = ["type", "resilient", "buckets", "128"]
            self.host.run(["ip", "nexthop", "replace", "id", group, "group", members, *kind])
            self.host.run(["ip", flag, "route", "replace", address, "nhid", group, "table", TABLE])
            self._now[address] = hops

    def __enter__(self) -> Resilient:
        self.follow()
        for flag, address in zip(FLAG.values(), ADDRESSES["bgp"]):
            self.host.run(["ip", flag, "rule", "add", "pref", "100", "to", address, "lookup", TABLE])
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self.join()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with ContainerLab(f"tier{os.getpid()}", HOSTS) as lab:
        raised = Fleet(lab, tmp_path_factory.mktemp("tier"))
        # Two cores run five hosts, the load and Ansible: some process gets no turn for 300 ms, which BFD takes for a
        # power cut. A planned move needs no BFD.
        for peer in raised.variables["l4proxy_announce"]["peers"]:
            peer["bfd"] = False
        try:
            raised.deploy()
            yield raised
        finally:
            raised.end()
            raised.router.stop()


def test_rolling_upgrade(fleet, report):
    """Three proxies, one after the other, with 200 connections a second and 50 streams that live for 15 s."""
    newer = earlier.newer(fleet.directory / "newer")
    with Resilient(fleet) as router, fleet.load(200, *ADDRESSES, streams=[(STREAM, 50)], life=15):
        began = time.time()
        fleet.play("rolling_update_proxies", "--extra-vars", "l4proxy_update_timeout=60", collections=newer)
        took = time.time() - began
        time.sleep(SETTLE)
        assert router.is_alive()
        failed, broken = fleet.failed(began), fleet.broken(began)
        for name in ADDRESSES:
            counts = [sum(item["to"] in ADDRESSES[name] for item in items) for items in (failed, broken)]
            more = f"{counts[0]} connections failed, {counts[1]} streams broke, in {took:.0f} s"
            report("all three are upgraded in turn", name, [fleet.outage(name, began)], more)
    assert {fleet.status(name)["version"] for name in PROXIES} == {earlier.NEWER}
    assert not failed, failed[:5]
    assert not broken, broken[:5]
