# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses are announced to a router while the forwarder is healthy: keeper, forwarder and FRR are the real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time

import jinja2
import pytest

from tests.lab.netns import REPOSITORY
from tests.support.addresses import FAMILIES
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.keeping import keeping
from tests.support.router import ASN, FLAG, PROXIES_ASN, Frr, Router
from tests.support.waiting import FACTOR, eventually

pytestmark = pytest.mark.skipif(not shutil.which("vtysh"), reason="FRR is not installed")

HOSTS = ["client", "router", "a", "b"]
PORT = 80
ADDRESS = {"ipv4": "203.0.113.80", "ipv6": "2001:db8:80::80"}
DOCUMENT = {
    **{"schema": 1, "owner": "announce", "protocol": 205},
    "announce": [{"family": family, "address": ADDRESS[family]} for family in FAMILIES],
}
# Seconds in which an unhealthy proxy leaves.
LEAVES = 2.0 * FACTOR


def frr_conf(lab) -> str:
    """frr.conf of a, from the template of the role."""
    templates = jinja2.FileSystemLoader(REPOSITORY / "roles" / "announce" / "templates")
    environment = jinja2.Environment(loader=templates, trim_blocks=True, autoescape=False)
    peers = [
        {"address": getattr(lab["router"].on("inside"), family), "asn": ASN, "family": family, "bfd": True}
        for family in FAMILIES
    ]
    values = {"asn": PROXIES_ASN, "router_id": lab["a"].ipv4, "communities": ["65001:80"], "peers": peers}
    addresses = {family: [ADDRESS[family]] for family in FAMILIES}
    return environment.get_template("frr.conf.j2").render(_announce_frr={**values, "addresses": addresses})


@pytest.fixture(scope="module")
def router(lab):
    ours, router = Frr(lab["a"], frr_conf(lab)), Router(lab, ["a"])
    try:
        ours.start()
        router.start()
        router.proxy = ours
        yield router
    finally:
        router.stop()
        ours.stop()


class Proxy:
    """A keeper, and a forwarder that can be replaced, on a."""

    def __init__(self, lab, keeper):
        self._lab, self.keeper, self.forwarder = lab, keeper, None
        keeper.admin_socket.parent.mkdir()
        self.start_forwarder()

    def start_forwarder(self) -> None:
        listen = [{"address": ADDRESS[family], "port": PORT} for family in FAMILIES]
        config = make_config(make_service(self._lab, "web", PORT, 8080, backends=["b"], listen=listen))
        self.forwarder = Forwarder(self._lab, config, directory=self.keeper.admin_socket.parent).serve()

    @property
    def announced(self) -> dict:
        return self.keeper.state.get("announced") or {}


@pytest.fixture(scope="module")
def running(lab, router, tmp_path_factory):
    with keeping(lab, "a", tmp_path_factory.mktemp("keeper"), DOCUMENT) as keeper:
        proxy = Proxy(lab, keeper)
        yield proxy
        proxy.forwarder.stop(signal.SIGKILL)
    lab.engine.remove(lab["a"], "announce")


@pytest.fixture
def proxy(router, running):
    """A healthy proxy that the router sends clients to, in both families."""
    arrive(router)
    return running


def here(router, family: str) -> bool:
    return bool(router.next_hops(ADDRESS[family]))


def arrive(router) -> None:
    def show():
        return router.ask("show bgp ipv4 unicast summary") + router.proxy.ask("show bgp ipv4 unicast")

    eventually(lambda: all(here(router, family) for family in FAMILIES), "the router has both addresses", show)


def leave(router, since: float) -> None:
    eventually(lambda: not any(here(router, family) for family in FAMILIES), "the router has none")
    assert time.monotonic() - since < LEAVES


def community(router, family: str) -> str:
    entry = json.loads(
        router.ask(f"show bgp {family} unicast {ADDRESS[family]}/{32 if family == 'ipv4' else 128} json")
    )
    return entry["paths"][0].get("community", {}).get("string", "") if entry.get("paths") else ""


def test_clients_reach_a_healthy_proxy_at_the_address(lab, router, proxy):
    for family in FAMILIES:
        with lab["client"].inside():
            socket.create_connection((ADDRESS[family], PORT), timeout=5).close()
        assert community(router, family) == "65001:80"
    assert proxy.announced["state"] == "announced"
    assert proxy.forwarder.status()["services"][0]["absent"] == []


def test_a_keeper_that_restarts_withdraws_nothing(router, proxy):
    proxy.keeper.stop()
    time.sleep(1.0)
    assert all(here(router, family) for family in FAMILIES)
    proxy.keeper.start()
    eventually(lambda: proxy.announced.get("state") == "announced")
    assert "not announced" not in proxy.keeper.log


def test_a_proxy_whose_forwarder_has_ended_leaves_and_another_one_brings_it_back(router, proxy):
    since = time.monotonic()
    proxy.forwarder.stop(signal.SIGKILL)
    leave(router, since)
    assert "no forwarder listens" in proxy.announced["why"]
    proxy.start_forwarder()
    arrive(router)
    assert "not announced: no forwarder listens" in proxy.keeper.log


@pytest.mark.parametrize("who", ["supervisor", "workers"])
def test_a_proxy_whose_forwarder_hangs_leaves_until_it_goes_on(router, proxy, who):
    pids = [proxy.forwarder.process.pid] if who == "supervisor" else proxy.forwarder.workers()
    since = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        leave(router, since)
        assert proxy.announced["state"] == "not announced"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_withdrawn_proxy_leaves_with_graceful_shutdown_and_comes_back_after_rejoin(router, proxy):
    assert proxy.forwarder.ask("withdraw", reason="update")["ok"]
    for family in FAMILIES:
        eventually(lambda family=family: "65001:80 graceful" in community(router, family))
    eventually(lambda: not any(here(router, family) for family in FAMILIES))
    assert "(update)" in proxy.announced["why"]
    assert proxy.forwarder.ask("rejoin")["ok"]


def test_an_address_that_is_put_on_lo_is_announced_no_more_and_the_keeper_says_so(lab, router, proxy):
    """The reason for the local route: FRR prefers the connected route of an address to the token."""
    for family in FAMILIES:
        lab["a"].run(["ip", "addr", "add", ADDRESS[family], "dev", "lo"])
    eventually(lambda: not any(here(router, family) for family in FAMILIES))
    for family in FAMILIES:
        eventually(lambda family=family: f"{ADDRESS[family]} is on lo as well" in str(proxy.keeper.state["problems"]))
        lab["a"].run(["ip", "addr", "del", ADDRESS[family], "dev", "lo"])


def test_nothing_else_is_announced_and_nothing_is_accepted(lab, router, proxy):
    for family, other in (("ipv4", "203.0.113.99"), ("ipv6", "2001:db8:80::99")):
        route = [FLAG[family], "route", "{}", "blackhole", other, "proto", "static", "metric", "1"]
        lab["a"].run(["ip", *(part.format("add") for part in route)])
        time.sleep(1.0)
        assert here(router, family)
        assert not router.next_hops(other)
        assert "proto bgp" not in lab["a"].run(["ip", FLAG[family], "route"]).stdout
        lab["a"].run(["ip", *(part.format("del") for part in route)])
