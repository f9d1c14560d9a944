# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A virtual address moves to another proxy on purpose, and TCP streams of the proxy that it leaves go on."""

from __future__ import annotations

import contextlib
import json
import select
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _second_chance

from tests.support.addresses import address_of
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2"]
VIRTUAL = {"ipv4": "198.18.0.100", "ipv6": "2001:db8::100"}
BITS = {"ipv4": "32", "ipv6": "128"}
FREEBIND = {"ipv4": (socket.IPPROTO_IP, 15), "ipv6": (socket.IPPROTO_IPV6, 78)}
WILDCARD, BOUND, RANGE = 80, 81, 8005
TCP = {"protocol": "tcp", "datapath": "forwarder"}


def services(family):
    bound = VIRTUAL[family] if family == "ipv4" else f"[{VIRTUAL[family]}]"
    listen = [["0.0.0.0:80", "[::]:80"], [f"{bound}:{BOUND}"], ["0.0.0.0:8000-8010", "[::]:8004-8012"]]
    return [{**TCP, "name": str(number), "listen": one} for number, one in enumerate(listen)]


def listeners(lab, name, family):
    version = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    any_ = "0.0.0.0" if family == "ipv4" else "::"
    found = []
    with lab[name].inside():
        for address, port in ((any_, WILDCARD), (VIRTUAL[family], BOUND), (any_, RANGE)):
            listener = socket.socket(version)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(*FREEBIND[family], 1)
            listener.settimeout(PATIENCE)
            listener.bind((address, port))
            listener.listen()
            found.append(listener)
    return found


def connect(lab, family, servers):
    """Connect to each listener; return pairs (client's socket, server's socket)."""
    pairs = []
    for server in servers:
        with lab["client"].inside():
            sock = socket.create_connection((VIRTUAL[family], server.getsockname()[1]), PATIENCE)
        pairs.append((sock, server.accept()[0]))
    return pairs


def alive(pairs):
    """How many pairs still exchange data in both directions."""
    number = 0
    for sock, served in pairs:
        sock.setblocking(True)
        with contextlib.suppress(OSError):
            sock.sendall(b"up")
            # The data arrives at the server, or a reset at the client.
            readable = select.select([sock, served], [], [], PATIENCE)[0]
            if readable == [served] and served.recv(9) == b"up":
                served.sendall(b"down")
                number += sock.recv(9) == b"down"
    return number


def address(lab, name, verb, family, *more):
    lab[name].run(["ip", "address", verb, f"{VIRTUAL[family]}/{BITS[family]}", "dev", "eth0", *more])


def forget(lab, family):
    """The router asks again who has the address; a new holder announces itself as well."""
    lab["router"].run(["ip", f"-{family[-1]}", "neigh", "flush", "to", VIRTUAL[family]])


def plan(lab, family, seconds=60):
    links = {name: json.loads(lab[name].run(["ip", "-json", "address"]).stdout) for name in ("a", "a2")}
    source, peer = address_of(lab["a"], family), address_of(lab["a2"], family)
    entry = {"family": family, "interface": "eth0", "source": source, "peers": {"a2": peer}}
    virtual = [{"name": "web", "families": [{**entry, "addresses": [VIRTUAL[family]]}]}]
    return _second_chance.plan(virtual, "a", links, services(family), seconds)


def open_window(lab, family, seconds=60):
    move = plan(lab, family, seconds)
    lab["a2"].run(["nft", "-f", "-"], input=move["others"]["a2"])
    lab["a"].run(["ip", "-batch", "-"], input=move["keep"])
    lab["a"].run(["nft", "-f", "-"], input=move["quiet"])


@pytest.fixture
def fleet(lab, family):
    """The listeners of a and a2, and the address at a."""
    address(lab, "a", "add", family, *(["nodad"] if family == "ipv6" else []))
    both = [listeners(lab, name, family) for name in ("a", "a2")]
    forget(lab, family)
    yield both
    for listener in (*both[0], *both[1]):
        listener.close()
    lab["a"].run(["ip", "address", "flush", "dev", "lo", "dynamic", "deprecated"])
    for name in ("a", "a2"):
        lab[name].run(["nft", "flush", "ruleset"])
        lab[name].run(["ip", "address", "flush", "dev", "eth0", "to", VIRTUAL[family]])


def move(lab, family):
    address(lab, "a", "del", family)
    address(lab, "a2", "add", family, *(["nodad"] if family == "ipv6" else []))
    forget(lab, family)


@pytest.mark.parametrize("chance", [True, False])
def test_streams_go_on_at_the_proxy_that_the_address_leaves(lab, family, fleet, chance):
    mine, others = fleet
    before = connect(lab, family, mine)
    assert alive(before) == 3
    if chance:
        open_window(lab, family)
    move(lab, family)
    # a2 serves new clients at every listener, and keeps serving them.
    new = connect(lab, family, others)
    assert alive(new) == 3
    # Control: without the window a2 resets them.
    assert alive(before) == (3 if chance else 0)
    if chance:
        assert plan(lab, family)["holders"] == {"web": ["a2"]}
        assert alive(new) == alive(before) == 3


def test_a_window_ends_by_itself(lab, family, fleet):
    before = connect(lab, family, fleet[0])
    open_window(lab, family, seconds=2)
    move(lab, family)
    assert alive(before) == 3
    eventually(lambda: VIRTUAL[family] not in lab["a"].run(["ip", "address", "show", "dev", "lo"]).stdout)
    assert VIRTUAL[family] not in lab["a"].run(["ip", f"-{family[-1]}", "route", "show", "dev", "lo"]).stdout
    eventually(lambda: alive(before) == 0)


ANNOUNCED = {"ipv4": "198.18.9.1", "ipv6": "2001:db8:9::1"}


def test_streams_at_an_announced_address_go_on_when_its_route_changes(lab, family, monkeypatch):
    """Both proxies have the address on lo, and the router chooses one of them. Both have streams at it.

    Those of the proxy that leaves go on at wildcard listeners; those of the other proxy go on everywhere.
    """
    monkeypatch.setitem(VIRTUAL, family, ANNOUNCED[family])
    links = {name: json.loads(lab[name].run(["ip", "-json", "address"]).stdout) for name in ("a", "a2")}
    route = ["ip", f"-{family[-1]}", "route", "replace", f"{VIRTUAL[family]}/{BITS[family]}", "via"]
    for name in ("a", "a2"):
        lab[name].run(["ip", "address", "add", f"{VIRTUAL[family]}/{BITS[family]}", "dev", "lo"])
    try:
        mine, others = (listeners(lab, name, family) for name in ("a", "a2"))
        lab["router"].run([*route, address_of(lab["a2"], family)])
        stay = connect(lab, family, others)
        lab["router"].run([*route, address_of(lab["a"], family)])
        before = connect(lab, family, mine)
        move = _second_chance.plan([], "a", links, services(family), 60, [VIRTUAL[family]])
        assert (move["keep"], move["quiet"]) == ("", "")
        lab["a2"].run(["nft", "-f", "-"], input=move["others"]["a2"])
        lab["router"].run([*route, address_of(lab["a2"], family)])
        assert alive(connect(lab, family, others)) == alive(stay) == 3
        bound = before.pop(1)
        assert alive(before) == 2
        lab["a2"].run(["nft", "flush", "ruleset"])
        assert alive([*before, bound]) == 0, "control"
    finally:
        for name in ("a", "a2"):
            lab[name].run(["ip", "address", "flush", "dev", "lo", "to", VIRTUAL[family]])
