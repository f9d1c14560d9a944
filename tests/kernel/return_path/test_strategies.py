# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every return path strategy with two proxies and three backends: a reply goes to the proxy its request came through.

The documents are derived from services and variables, as by the roles.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import selectors
import socket
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._port_slices import slice_of

from tests.lab.netns import NamespaceLab
from tests.support import deployment
from tests.support.addresses import FAMILIES, address_of
from tests.support.deployment import (
    BACKENDS,
    PROXIES,
    WILDCARD,
    Deployment,
    by_strategy,
    echo_servers,
    replies,
    spoofed,
)
from tests.support.routing import PORT, TRANSPARENT, attempt, counters, handshake, snmp, watch
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["router", *PROXIES, *BACKENDS]

TCP, UDP = deployment.service("tcp", *BACKENDS), deployment.service("udp", *BACKENDS)
SERVICES = {"mark": [TCP, UDP], "address": [TCP, UDP], "fwmark_accept": [TCP]}
MATRIX = [(strategy, service["protocol"]) for strategy, services in SERVICES.items() for service in services]


@pytest.fixture(scope="module")
def lab(lab):
    deployment.watch_replies(lab)
    with echo_servers(lab, BACKENDS):
        yield lab


@pytest.fixture(scope="module")
def deployed(lab, request, tmp_path_factory):
    """The fleet with one strategy on all backends; UDP servers are bound to their addresses."""
    strategy = request.param
    fleet = Deployment(lab, tmp_path_factory.mktemp(strategy), SERVICES[strategy], by_strategy(lab, strategy))
    fleet.apply()
    targets = {
        (name, fleet.target(proxy, name, family)) for proxy in PROXIES for name in BACKENDS for family in FAMILIES
    }
    bound = [lab.servers.serve(lab[name], "udp", address) for name, address in sorted(targets)]
    yield fleet
    for sock in bound:
        lab.servers.stop_serving(sock)
    fleet.remove()


@pytest.fixture
def whole(deployed):
    """The deployment; in the end its backends are repaired by the engine."""
    yield deployed
    deployed.apply_backends()


@pytest.mark.parametrize(("deployed", "protocol"), MATRIX, indirect=["deployed"])
def test_each_reply_goes_to_the_proxy_it_came_from(lab, deployed, protocol, family):
    for proxy in PROXIES:
        before = replies(lab)
        for backend in BACKENDS:
            assert deployed.exchange(proxy, backend, family, protocol) == backend.encode()
        after = replies(lab)
        assert after[proxy] >= before[proxy] + len(BACKENDS)
        assert {**after, proxy: 0} == {**before, proxy: 0}, "nothing arrives anywhere else"


FAMILY_OPTION = {"ipv4": "-4", "ipv6": "-6"}
WORD = {"ipv4": "ip", "ipv6": "ip6"}
NUMBERS = itertools.count(100)


def stranger(lab, family: str) -> str:
    """A client that no test before had, whose replies the router counts: a half-open connection of an earlier test
    goes on answering for a while."""
    source = ("198.51.100.{0}" if family == "ipv4" else "2001:db8:ffff::{0}").format(next(NUMBERS))
    watch(lab["router"], f"leak_{family}", "prerouting priority -300", f"{WORD[family]} daddr {source} counter")
    return source


def leaked(lab) -> list[bool]:
    """Whether a reply to the last stranger passed the router, by family."""
    return [counters(lab["router"], f"leak_{family}")[f"leak_{family}"] > 0 for family in FAMILIES]


def handshakes(lab, fleet) -> list[str]:
    """The outcomes of handshakes of strangers through a with b, by family."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(attempt(lab["a"], stranger(lab, family), fleet.target("a", "b", family)))
            for family in FAMILIES
        ]
        return [connection.outcome() for connection in connections]


def take_away(lab, fleet, rule: str) -> None:
    """Remove a policy rule of b, in both families."""
    for family, option in FAMILY_OPTION.items():
        address = fleet.target("a", "b", family)
        lab["b"].run(f"ip {option} rule del {rule.format(address=address)}".split())


YES, NO, SILENT, ESTABLISHED = [True] * 2, [False] * 2, ["silent"] * 2, ["established"] * 2
BY_MARK, BY_ADDRESS = "fwmark 11/255", "from {address} iif lo"
SELECTORS = [("mark", BY_MARK), ("address", BY_ADDRESS), ("fwmark_accept", BY_MARK)]


@pytest.mark.parametrize(("deployed", "selector"), SELECTORS, indirect=["deployed"])
def test_without_the_lookup_rule_replies_are_dropped(lab, whole, selector):
    take_away(lab, whole, f"priority 1100 {selector}")
    assert handshakes(lab, whole) == SILENT
    assert leaked(lab) == NO, "the guard below it holds"


@pytest.mark.parametrize("deployed", ["address"], indirect=True)
def test_without_lookup_and_guard_rules_replies_leak(lab, whole):
    take_away(lab, whole, f"priority 1100 {BY_ADDRESS}")
    take_away(lab, whole, f"priority 1101 {BY_ADDRESS}")
    assert handshakes(lab, whole) == SILENT
    assert leaked(lab) == YES


@pytest.mark.parametrize("deployed", SERVICES, indirect=True)
def test_a_backend_without_a_default_route_loses_udp_with_strategy_mark_only(lab, deployed, request):
    """With strategy mark, a UDP reply is first routed without a mark, which needs a route."""
    b, router = lab["b"], lab["router"].on("inside")
    routes = [[option, "route", "{0}", "default", "via", address_of(router, f)] for f, option in FAMILY_OPTION.items()]
    for route in routes:
        b.run(["ip", *(word.format("del") for word in route)])
    try:
        assert handshakes(lab, deployed) == ESTABLISHED
        if request.node.callspec.params["deployed"] == "mark":
            before = snmp(b, "Ip", "OutNoRoutes")
            send_datagrams(lab, deployed)
            eventually(lambda: snmp(b, "Ip", "OutNoRoutes") > before)
    finally:
        for route in routes:
            b.run(["ip", *(word.format("add") for word in route)])


@pytest.mark.parametrize("deployed", ["fwmark_accept"], indirect=True)
def test_fwmark_accept_needs_its_sysctl(lab, whole):
    lab["b"].sysctl("net.ipv4.tcp_fwmark_accept", "0")
    assert handshakes(lab, whole) == SILENT
    assert leaked(lab) == YES


def send_datagrams(lab, fleet) -> None:
    for family in FAMILIES:
        with spoofed(lab["a"], stranger(lab, family), fleet.target("a", "b", family), "udp") as sock:
            sock.send(b"x")


@pytest.mark.parametrize("deployed", ["fwmark_accept"], indirect=True)
def test_fwmark_accept_does_not_mark_udp_replies(lab, deployed):
    """This is why the derivation refuses UDP with this strategy."""
    send_datagrams(lab, deployed)
    eventually(lambda: leaked(lab) == YES)


LENGTHS = {"ipv4": (24, 32), "ipv6": (64, 128)}


def with_prefix(lab, name: str, alone: bool) -> None:
    """Give a host its addresses with the prefix of their subnet, or alone, beside a route to that subnet (as DHCPv6 and
    router advertisements do)."""
    host, router = lab[name], lab["router"].on("inside")
    for family, option in FAMILY_OPTION.items():
        address, (subnet, whole) = address_of(host, family), LENGTHS[family]
        network = ipaddress.ip_network(f"{address}/{subnet}", strict=False)
        before, after = (subnet, whole) if alone else (whole, subnet)
        nodad = ["nodad"] if family == "ipv6" else []
        commands = [
            ["address", "del", f"{address}/{before}", "dev", host.dev],
            ["route", "flush", str(network), "dev", host.dev],
            ["address", "add", f"{address}/{after}", "dev", host.dev, *nodad],
            *([["route", "add", str(network), "dev", host.dev]] if alone else []),
            ["route", "replace", "default", "via", address_of(router, family)],
        ]
        for command in commands:
            host.run(["ip", option, *command])


def facts_alone(host) -> dict:
    """The facts of such a host."""
    found = deployment.facts(host)
    found[host.dev]["ipv4"]["prefix"] = "32"
    found[host.dev]["ipv6"][0]["prefix"] = "128"
    return {"ansible_facts": found}


def test_declared_prefix_lengths_work_with_host_routes(lab, tmp_path):
    names = ("a", "b")
    variables = {name: facts_alone(lab[name]) for name in names}
    declared = {"l4proxy_address": [f"{lab['b'].ipv4}/24", f"{lab['b'].ipv6}/64"]}
    undeclared = Deployment(lab, tmp_path, [deployment.service("tcp", "b")], variables, ["a"], ["b"])
    with pytest.raises(DerivationError, match=r"with the prefix length of its link \(\"198.18.0.11/24\"\)"):
        undeclared.apply()
    variables["b"].update(declared)
    fleet = Deployment(lab, tmp_path, [deployment.service("tcp", "b")], variables, ["a"], ["b"])
    try:
        for name in names:
            with_prefix(lab, name, alone=True)
        fleet.apply()
        assert handshakes(lab, fleet) == ESTABLISHED
        take_away(lab, fleet, f"priority 1100 {BY_MARK}")
        assert handshakes(lab, fleet) == SILENT
    finally:
        fleet.remove()
        for name in names:
            with_prefix(lab, name, alone=False)


CLIENT, CONNECTIONS = "198.51.100.200", 2000


def connecting(host, target: str, ports: tuple[int, int]) -> socket.socket:
    with host.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(*TRANSPARENT["ipv4"], 1)
    sock.setsockopt(socket.IPPROTO_IP, deployment.IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.IPPROTO_IP, deployment.IP_LOCAL_PORT_RANGE, struct.pack("=I", ports[1] << 16 | ports[0]))
    # RST instead of FIN: nothing lingers on either side.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.bind((CLIENT, 0))
    sock.connect_ex((target, PORT))
    return sock


def answered(sockets: list[socket.socket]) -> dict[bytes, int]:
    """The number of connections by answer, without failed ones."""
    found: dict[bytes, int] = {}
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map() and (ready := selector.select(PATIENCE)):
            for key, events in ready:
                if events & selectors.EVENT_WRITE and not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    key.fileobj.send(b"who is there?")
                    selector.modify(key.fileobj, selectors.EVENT_READ)
                    continue
                if events & selectors.EVENT_READ:
                    answer = key.fileobj.recv(100)
                    found[answer] = found.get(answer, 0) + 1
                selector.unregister(key.fileobj)
    return found


@pytest.mark.parametrize("deployed", ["mark"], indirect=True)
def test_two_proxies_use_different_ports_for_thousands_of_connections_of_one_client(lab, deployed, many_files):
    target = deployed.target("a", "b", "ipv4")
    ids = {proxy: lab[proxy].spec.number for proxy in PROXIES}
    slices = {proxy: slice_of(number, ids.values()) for proxy, number in ids.items()}
    sockets: list[socket.socket] = []
    try:
        for _number in range(CONNECTIONS):
            sockets += [connecting(lab[proxy], target, slices[proxy]) for proxy in PROXIES]
        assert answered(sockets) == {b"b": 2 * CONNECTIONS}
        ports = [{sock.getsockname()[1] for sock in sockets[start::2]} for start in (0, 1)]
        assert not ports[0] & ports[1]
    finally:
        for sock in sockets:
            sock.close()


DNS = deployment.service("udp", "b", proxies=["a"])


@pytest.fixture
def wildcard(lab, tmp_path):
    """A deployment with strategy address, and a UDP server on the wildcard address."""
    variables = by_strategy(lab, "address", ["b"], ["a"])
    fleet = Deployment(lab, tmp_path, [DNS], variables, proxies=["a"], backends=["b"])
    fleet.apply()
    bound = [lab.servers.serve(lab["b"], "udp", WILDCARD[family]) for family in FAMILIES]
    yield fleet
    for sock in bound:
        lab.servers.stop_serving(sock)
    fleet.remove()


def test_with_strategy_address_a_wildcard_udp_server_answers_correctly(lab, wildcard, family):
    before = replies(lab)
    assert wildcard.exchange("a", "b", family, "udp") == b"b"
    assert replies(lab) == {**before, "a": before["a"] + 1}


def test_without_the_rule_for_its_port_a_wildcard_udp_server_bypasses_the_proxy(lab, wildcard):
    for priority in (1100, 1101):
        take_away(lab, wildcard, f"priority {priority} iif lo ipproto udp sport {PORT}")
    send_datagrams(lab, wildcard)
    eventually(lambda: leaked(lab) == YES)


def test_without_the_routes_source_a_wildcard_udp_server_uses_the_wrong_address(lab, wildcard, family):
    a, b = lab["a"], lab["b"]
    wrong = f"{WORD[family]} saddr {address_of(b, family)} udp sport {PORT} counter"
    watch(a, "wrong", "prerouting priority -300", wrong)
    route = ["default", "via", address_of(a, family), "dev", b.dev, "table", "20411", "proto", "202"]
    b.run(["ip", FAMILY_OPTION[family], "route", "flush", "table", "20411"])
    b.run(["ip", FAMILY_OPTION[family], "route", "add", *route])
    with spoofed(a, stranger(lab, family), wildcard.target("a", "b", family), "udp") as sock:
        sock.send(b"x")
        eventually(lambda: counters(a, "wrong")["wrong"] > 0)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.fixture(scope="module")
def two_links():
    """The default route of b leaves by eth0, and the proxy is behind eth1."""
    lab = NamespaceLab(f"ksl{os.getpid()}", ["router", "a", "b"], {"b": ["outside", "inside"]})
    with lab, echo_servers(lab, ["b"]):
        yield lab


STRICT = [("mark", "1", "silent"), ("mark", "0", "established"), ("address", "1", "established")]


@pytest.mark.parametrize(("strategy", "rp_filter", "outcome"), STRICT)
def test_strict_rp_filter_breaks_some_strategies(two_links, tmp_path, strategy, rp_filter, outcome):
    """The filter comes before the mark, and checks the route to the client without it."""
    b, variables = two_links["b"], by_strategy(two_links, strategy, ["b"], ["a"])
    fleet = Deployment(two_links, tmp_path, [deployment.service("tcp", "b")], variables, proxies=["a"], backends=["b"])
    fleet.apply()
    b.sysctl(f"net.ipv4.conf.{b.on('inside').dev}.rp_filter", rp_filter)
    try:
        source = deployment.source_of(two_links["a"], "ipv4")
        assert handshake(two_links["a"], source, fleet.target("a", "b", "ipv4")) == outcome
    finally:
        fleet.remove()
