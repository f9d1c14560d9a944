# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Methods rules and socket_mark of local delivery: what each delivers, and what it lets pass."""

from __future__ import annotations

import contextlib
import json
import math
import time
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry

from tests.lab import wiring
from tests.support import deployment
from tests.support.addresses import FAMILIES, address_of
from tests.support.deployment import WILDCARD, Deployment, ask, echo_servers, service, source_of, spoofed
from tests.support.doctor import doctor_facts
from tests.support.routing import PORT, attempt, handshake, listing, local_delivery
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b", "c"]


@pytest.fixture(scope="module")
def lab(lab):
    with echo_servers(lab, ["b", "c", "client"], ["tcp", "udp"]):
        yield lab


@pytest.fixture
def fleet(lab, tmp_path):
    services = [service("tcp", "b", "c"), service("udp", "b", "c")]
    made = Deployment(lab, tmp_path, services, {}, proxies=["a"], backends=["b", "c"])
    made.apply_backends()
    yield made
    made.remove()


def outcomes(lab, host: str, client: str, server: str) -> list[str]:
    """The outcomes of spoofed handshakes from a host, by family."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(attempt(lab[host], address_of(lab[client], f), address_of(lab[server], f)))
            for f in FAMILIES
        ]
        return [connection.outcome() for connection in connections]


ESTABLISHED = ["established"] * 2
HOUR = 3600.0
UNLIMITED = {"drain": math.inf}


@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_a_client_that_is_a_backend_reaches_another_one(lab, fleet, method):
    fleet.apply_proxies(method)
    assert outcomes(lab, "a", "b", "c") == ESTABLISHED


def test_rules_for_every_interface_cut_off_a_client_that_is_a_backend(lab, fleet):
    """Packets that a sends from b's address would be delivered to a itself."""
    fleet.engine.apply(lab["a"], local_delivery(lab["b"], lab["c"]))
    assert "established" not in outcomes(lab, "a", "b", "c")


@pytest.fixture
def router(lab):
    """a is a router, and b's route to the client leads through it."""
    a, b = lab["a"], lab["b"]
    forwarding = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
    # The way back is direct, so that b's replies do not depend on a.
    for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
        a.sysctl(forwarding[family], "1")
        b.run(["ip", option, "route", "add", address_of(lab["client"], family), "via", address_of(a, family)])
    yield a
    for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
        b.run(["ip", option, "route", "del", address_of(lab["client"], family), "via", address_of(a, family)])
        a.sysctl(forwarding[family], "0")


def test_with_method_socket_mark_a_proxy_can_route_for_its_backends(lab, fleet, router):
    fleet.apply_proxies("socket_mark")
    assert outcomes(lab, "b", "b", "client") == ESTABLISHED


def test_with_method_rules_a_proxy_cannot_route_for_its_backends(lab, fleet, router):
    fleet.apply_proxies("rules")
    assert "established" not in outcomes(lab, "b", "b", "client")


@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_replies_reach_the_spoofed_socket(fleet, method):
    fleet.apply_proxies(method)
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            assert fleet.exchange("a", "b", family, protocol) == b"b"


@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_without_rules_replies_do_not_reach_the_spoofed_socket(lab, fleet, method):
    fleet.apply_proxies(method)
    for option in ("-4", "-6"):
        while lab["a"].run(["ip", option, "rule", "del", "priority", "1100"], check=False).returncode == 0:
            pass
    assert outcomes(lab, "a", "client", "b") == ["silent"] * 2


def stored(fleet) -> str:
    return (fleet.directory / "a" / "local_delivery.json").read_text()


def test_a_change_of_method_breaks_no_stream_and_the_old_method_goes(lab, fleet, family):
    """The new method serves the old connections too, so nothing keeps the old one."""
    fleet.apply_proxies("rules")
    with spoofed(lab["a"], source_of(lab["a"], family), address_of(lab["b"], family), "tcp") as live:
        for method in ("socket_mark", "rules"):
            fleet.apply_proxies(method, **UNLIMITED, now=time.time())
            assert ask(live) == b"b"
            assert "retiring" in stored(fleet)
            fleet.apply_proxies(method, **UNLIMITED, now=time.time() + HOUR)
            assert ask(live) == b"b"
            assert "retiring" not in stored(fleet)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_connections_to_a_removed_backend_live_until_they_end(lab, fleet, method, family, protocol):
    fleet.apply_proxies(method)
    with contextlib.ExitStack() as stack:
        old, other = (
            stack.enter_context(spoofed(lab["a"], source_of(lab["a"], family), address_of(lab[name], family), protocol))
            for name in ("c", "b")
        )
        fleet.services = [service("tcp", "b"), service("udp", "b")]
        for later in (0, HOUR, 1000 * HOUR):
            fleet.apply_proxies(method, **UNLIMITED, now=time.time() + later)
            assert (ask(old), ask(other)) == (b"c", b"b")
        old.close()

        def gone() -> bool:
            fleet.apply_proxies(method, **UNLIMITED, now=time.time() + HOUR)
            return "retiring" not in stored(fleet)

        eventually(gone)
        assert ask(other) == b"b"
        assert outcomes(lab, "a", "client", "c") == (["silent"] * 2 if method == "rules" else ESTABLISHED)


def with_second(facts: dict, address: str) -> dict:
    return {**facts, "eth0": {**facts["eth0"], "ipv4_secondaries": [{"address": address, "prefix": "24"}]}}


@pytest.mark.parametrize("strategy", ["mark", "address", "fwmark_accept"])
@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_two_hosts_can_be_proxy_and_backend_of_each_other(lab, tmp_path, strategy, method):
    """Each forwards to the other; their own traffic is not affected."""
    both = ("b", "c")
    protocols = ("tcp",) if strategy == "fwmark_accept" else ("tcp", "udp")
    variables = {
        name: {
            "return_path_strategy": strategy,
            "return_path_addresses": {other: [f"198.18.0.{number}", f"2001:db8::{number}"]},
            "ansible_facts": with_second(deployment.facts(lab[name]), f"198.18.0.{number + 10}"),
        }
        for name, other, number in (("b", "c", 121), ("c", "b", 122))
    }
    fleet = Deployment(lab, tmp_path, [service(one, *both) for one in protocols], variables, both, both)
    before = [listing(lab[name]) for name in both]
    # A second address on each host.
    for name, number in (("b", 131), ("c", 132)):
        lab[name].run(["ip", "addr", "add", f"198.18.0.{number}/24", "dev", "eth0"])
    try:
        fleet.apply_backends()
        fleet.apply_proxies(method)
        for proxy, backend in (both, both[::-1]):
            for family in FAMILIES:
                for protocol in protocols:
                    assert fleet.exchange(proxy, backend, family, protocol) == backend.encode()
            # Direct clients of the host, its own connections, and connections to itself.
            for host, client, server in (
                ("client", "client", proxy),
                (proxy, proxy, "client"),
                (proxy, proxy, backend),
            ):
                assert outcomes(lab, host, client, server) == ESTABLISHED
            assert outcomes(lab, proxy, proxy, proxy) == ESTABLISHED
    finally:
        fleet.remove()
        for name, number in (("b", 131), ("c", 132)):
            lab[name].run(["ip", "addr", "del", f"198.18.0.{number}/24", "dev", "eth0"])
    assert [listing(lab[name]) for name in both] == before


ROUTES = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
DOCKER, BOX = {"ipv4": "172.17.0.1", "ipv6": "fd00:17::1"}, {"ipv4": "172.17.0.2", "ipv6": "fd00:17::2"}
PREFIX = {"ipv4": "16", "ipv6": "64"}


@pytest.fixture
def box(lab):
    """A container of a, behind a bridge; a routes for it."""
    a, netns = lab["a"], f"{lab.prefix}-box"
    wiring.run(["ip", "netns", "add", netns])
    made = SimpleNamespace(name="box", **BOX, inside=lambda: wiring.inside(netns))
    try:
        a.run(["ip", "link", "add", "docker0", "type", "bridge"])
        a.run(["ip", "link", "add", "box0", "type", "veth", "peer", "name", "eth0", "netns", netns])
        a.run(["ip", "link", "set", "box0", "master", "docker0", "up"])
        for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
            more = "nodad" if family == "ipv6" else ""
            for host, dev, own in ((a.netns, "docker0", DOCKER), (netns, "eth0", BOX)):
                wiring.ip_batch(
                    [f"addr add {own[family]}/{PREFIX[family]} dev {dev} {more}", f"link set {dev} up"], host
                )
            wiring.ip_batch([f"route add default via {DOCKER[family]}"], netns)
            a.sysctl(ROUTES[family], "1")
            network = f"{DOCKER[family].rpartition('.' if family == 'ipv4' else ':')[0]}"
            network = f"{network}.0/{PREFIX[family]}" if family == "ipv4" else f"{network}:/{PREFIX[family]}"
            lab["router"].run(["ip", option, "route", "add", network, "via", address_of(a, family)])
        for family in FAMILIES:
            lab.servers.serve(made, "tcp", WILDCARD[family])
        yield made
    finally:
        for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
            lab["router"].run(["ip", option, "route", "flush", "via", address_of(a, family)], check=False)
            a.sysctl(ROUTES[family], "0")
        for dev in ("box0", "docker0"):
            a.run(["ip", "link", "del", dev], check=False)
        wiring.run(["ip", "netns", "del", netns])


# (method, method of an earlier run, whether the container's own traffic works)
HOSTED = [("rules", "rules", False), ("socket_mark", None, True), ("auto", None, True), ("auto", "rules", True)]


@pytest.mark.parametrize(("method", "before", "works"), HOSTED)
def test_a_container_of_the_proxy_can_be_its_backend(lab, box, tmp_path, method, before, works):
    a = lab["a"]
    docker = {"device": "docker0", "type": "bridge", "ipv4": {"address": DOCKER["ipv4"], "prefix": "16"}}
    docker["ipv6"] = [{"address": DOCKER["ipv6"], "prefix": "64"}]
    backends = [f"{BOX['ipv4']}:{PORT}", f"[{BOX['ipv6']}]:{PORT}", f"b:{PORT}"]
    services = [{**service("tcp"), "backends": backends}]
    variables = {"a": {"ansible_facts": {**deployment.facts(a), "docker0": docker}}}
    fleet = Deployment(lab, tmp_path, services, variables, proxies=["a"], backends=["b"])
    fleet.settings = [f"/proc/sys/{name.replace('.', '/')}:1" for name in ROUTES.values()]
    if before:
        fleet.apply_proxies(before)
        fleet.known = {"local_delivery": json.loads((tmp_path / "a" / "local_delivery.json").read_text())}
    try:
        fleet.apply_proxies(method)
        client = {family: address_of(lab["client"], family) for family in FAMILIES}
        for family in FAMILIES:
            assert handshake(a, client[family], BOX[family]) == "established", "the service"
            out = handshake(box, BOX[family], client[family])
            assert (out == "established") == works, "the container's own way out"
        facts = doctor_facts(a, fleet.engine, tmp_path / "a")
        found = [finding for finding in registry.examine(facts) if finding.id == "ip_forward"]
        failed = {(finding.subject, "socket_mark" in finding.fix) for finding in found if finding.status == "fail"}
        assert failed == (set() if works else {(BOX["ipv4"], True), (BOX["ipv6"], True)})
    finally:
        fleet.remove()
