# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections conntrack must forget, by protocol, state of their backend, and options of the service."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.service_connections import (
    ServiceConnections,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.conntrack_entries import Entry

ADDRESSES = {"address": "198.18.0.11", "b": "198.18.0.21", "c": "198.18.0.22", "gone": "198.18.0.23"}
ADDRESSES6 = {name: "2001:db8::" + text.rpartition(".")[2] for name, text in ADDRESSES.items()}
NUMBERS = {"tcp": 6, "udp": 17}
TIME_WAIT, ESTABLISHED = 7, 3


def service(protocol="tcp", family="ipv4", **details) -> KernelService:
    addresses = ADDRESSES if family == "ipv4" else ADDRESSES6
    servers = tuple(Server(name, addresses[name], 8080) for name in "bc")
    return KernelService("web", family, protocol, addresses["address"], 80, servers, **details)


def entry(server="b", protocol="tcp", family="ipv4", **details) -> Entry:
    addresses = ADDRESSES if family == "ipv4" else ADDRESSES6
    kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
    address, end = (socket.inet_pton(kind, addresses[name]) for name in ("address", server))
    port = 80 if server == "address" else 8080
    state = ESTABLISHED if protocol == "tcp" else None
    known = Entry(NUMBERS[protocol], address[:-1] + b"\x63", 5000, address, 80, end, port, state, True)
    return known._replace(**details)


RESET, TRY_ALL = {"on_down": "reset"}, {"on_all_down": "try_all"}
# (protocol, options of the service, states of backends, the server of the connection, its details, whether it is stale)
STALE = [
    ("tcp", {}, {}, "b", {}, False),
    ("tcp", {}, {"b": "down"}, "b", {}, False),
    ("tcp", {}, {"b": "down"}, "b", {"replied": False}, True),
    ("tcp", {}, {"b": "down"}, "c", {"replied": False}, False),
    ("tcp", RESET, {"b": "down"}, "b", {}, True),
    ("tcp", RESET, {"b": "down"}, "b", {"state": TIME_WAIT}, False),
    ("tcp", RESET, {"b": "down"}, "c", {}, False),
    ("tcp", RESET, {"b": "out"}, "b", {}, False),
    ("tcp", RESET, {}, "gone", {}, False),
    ("tcp", {}, {}, "gone", {"replied": False}, True),
    ("tcp", {}, {}, "address", {}, False),
    ("tcp", {}, {}, "address", {"replied": False}, True),
    ("udp", {}, {}, "b", {}, False),
    ("udp", {}, {}, "b", {"replied": False}, False),
    ("udp", {}, {"b": "down"}, "b", {}, True),
    ("udp", {}, {"b": "down"}, "c", {}, False),
    ("udp", {}, {"b": "out"}, "b", {}, False),
    ("udp", {}, {"b": "down", "c": "down"}, "b", {}, True),
    ("udp", TRY_ALL, {"b": "down", "c": "down"}, "b", {}, False),
    ("udp", TRY_ALL, {"b": "down", "c": "out"}, "b", {}, False),
    ("udp", {}, {}, "gone", {}, True),
    ("udp", {}, {}, "address", {}, True),
    ("udp", {"retiring": True}, {"b": "down"}, "b", {}, False),
    ("udp", {}, {"b": "down"}, "b", {"port": 81}, False),
    ("udp", {}, {"b": "down"}, "b", {"address": b"\xc6\x12\x00\x0c"}, False),
]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(("protocol", "options", "said", "server", "details", "stale"), STALE)
def test_which_connections_are_stale(family, protocol, options, said, server, details, stale):
    connections = ServiceConnections([service(protocol, family, **options)], States({"web": said}))
    assert connections.is_stale(entry(server, protocol, family, **details)) is stale


def test_only_connections_of_some_servers_can_become_stale_by_themselves():
    services = [service(), replace(service("udp"), name="dns"), replace(service("udp", "ipv6"), retiring=True)]
    states = States({"web": {"b": "down"}, "dns": {"c": "out"}})
    suspects = {(6, "address", 80), (6, "b", 8080), (17, "address", 80)}
    packed = {(protocol, socket.inet_aton(ADDRESSES[name]), port) for protocol, name, port in suspects}
    assert ServiceConnections(services, states).suspects == packed


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_backend_that_a_service_has_lost_keeps_its_connections_while_it_retires(protocol):
    live, states = service(protocol), States({"web": {"b": "down"}})
    gone = replace(live, servers=(Server("gone", ADDRESSES["gone"], 8080),), retiring=True)
    connections = ServiceConnections([gone, live], states)
    of_gone, of_b = (entry(name, protocol, replied=False) for name in ("gone", "b"))
    assert [connections.is_stale(one) for one in (of_gone, of_b)] == [False, True]
    assert [connections.names_of(one) for one in (of_gone, of_b)] == [(live, "gone"), (live, "b")]


def test_open_connections_are_counted_by_backend_without_those_that_have_ended():
    entries = [entry(), entry(client_port=1), entry("c"), entry("c", state=TIME_WAIT), entry("gone"), entry(port=81)]
    unanswered = entry("gone", replied=False)
    counts, stale = ServiceConnections([service()], States()).open([*entries, unanswered])
    assert counts == {("web", "b"): 2, ("web", "c"): 1}
    assert stale == [unanswered]
