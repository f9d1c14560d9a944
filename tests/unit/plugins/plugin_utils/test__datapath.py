# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import notes
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config

from tests.unit.tables import rows

from .fleet_data import BOTH, FAST, OTHER, WEB, errors, fleet, hostvars, view


@pytest.mark.parametrize("datapath", ["forwarder", None])
def test_version_0_1_0_reads_the_config_of_services_that_the_forwarder_serves(datapath):
    service = {**WEB, **({"datapath": datapath} if datapath else {})}
    config = forwarder_config(fleet("a", [service, FAST]), "a", {})
    assert [one.get("datapath") for one in config["services"]] == [None, "kernel"]


B, AUTO = {"host": "b", "port": 8443}, {**FAST, "datapath": "auto"}
PATH = "l4proxy_services[0].backends[0]: "
SHARED = f"{PATH}port 8443 of b is also a backend of service other (l4proxy_services[1].backends[0]), which "
REMEDY = "use another port for one of the two, or use datapath: forwarder"
ADDRESSES = {"return_path_strategy": "address", "return_path_addresses": {"a": "198.18.0.121", "a2": "198.18.0.122"}}
# What a kernel service cannot have in a fleet: the services, variables of backend b, and the fault. With auto such a
# service has the forwarder, for the same reason.
REFUSED = [
    ("another address of clients", [FAST, OTHER], {},
     f"{SHARED}clients reach at 198.18.0.101:443 and not at 198.18.0.100:443, so the kernel would not know which IPv4 "
     f"address its packets have to get; {REMEDY}"),
    ("another port of clients, at another proxy", [{**FAST, "proxies": ["a"]}, {**OTHER, "proxies": ["a2"],
     "listen": ["198.18.0.100:444"]}], {}, f"{SHARED}clients reach at 198.18.0.100:444 and not at 198.18.0.100:443"),
    ("two datapaths", [FAST, {**OTHER, "datapath": "forwarder"}], {},
     f"{SHARED}the forwarder serves, and a backend's port can have only one datapath; {REMEDY}"),
    ("two datapaths, a range of ports", [FAST, {**OTHER, "datapath": "forwarder", "listen": ["0.0.0.0:8440-8449"],
     "backends": ["b"]}], {}, f"{SHARED}the forwarder serves"),
    ("a service that chooses", [FAST, {**OTHER, "datapath": "auto"}], {}, f"{SHARED}the forwarder serves"),
    ("an address for each proxy", [FAST], ADDRESSES,
     f"{PATH}with return_path_strategy: address, each of the proxies a, a2 uses another address of b, so a connection "
     "could not outlive its proxy; set return_path_strategy: mark on b, or use datapath: forwarder"),
    ("an address for each proxy, perhaps", [FAST], {**ADDRESSES, "return_path_strategy": "auto"},
     f"{PATH}with return_path_strategy: address"),
    ("a backend that is a proxy", [{**FAST, "backends": ["a2:8443", "b:8443"]}], {},
     f"{PATH}a2 is also a proxy of service fast, and a proxy cannot be its own backend, so the proxies would not "
     "choose the same backend for a client; remove it from the backends, name other proxies in "
     "l4proxy_services[0].proxies, or use datapath: forwarder"),
]  # fmt: skip


@pytest.mark.parametrize(("services", "backend", "expected"), **rows(REFUSED))
def test_what_the_kernel_cannot_have_in_a_fleet_is_refused_and_auto_chooses_the_forwarder(services, backend, expected):
    variables = hostvars(b=backend)
    both = {**BOTH, "backends": ["a2", "b", "c", "d"]}
    assert errors(forwarder_config, fleet("a", services, variables, **both), "a", {})[0].startswith(expected)
    chosen = notes(fleet("a", [{**services[0], "datapath": "auto"}, *services[1:]], variables, **both), "a")[0]
    # Two services that choose do not know of each other, so both have the forwarder.
    assert chosen.startswith(f"service fast: datapath forwarder: {expected.partition('which ')[0]}")


ACCEPTED = [
    ("another protocol", [FAST, {**OTHER, "protocol": "udp"}], {}),
    ("another port", [FAST, {**OTHER, "backends": ["b:8444"]}], {}),
    ("another family", [{**FAST, "listen": ["198.18.0.100:443"]}, {**OTHER, "listen": ["[2001:db8::7]:443"]}], {}),
    ("another backend", [FAST, {**OTHER, "backends": ["d:8443"]}], {}),
    ("the same address at another proxy", [{**FAST, "proxies": ["a"]}, {**FAST, "name": "x", "proxies": ["a2"]}], {}),
    ("an address for its only proxy", [{**FAST, "proxies": ["a"]}], ADDRESSES),
]


@pytest.mark.parametrize(("services", "backend"), **rows(ACCEPTED))
def test_what_the_kernel_can_tell_apart_is_accepted(services, backend):
    assert forwarder_config(fleet("a", services, hostvars(b=backend), **BOTH), "a", {})


def stored(datapath, *hosts):
    """Variables of hosts on which an earlier run has stored the service, in the run or outside of it."""
    config = {"services": [{"name": "fast", **({"datapath": datapath} if datapath else {})}]}
    return {host: {"__l4proxy_known": {"forwarder": config}} for host in hosts}


SEND = {**AUTO, "backends": [{**B, "send_proxy": "v2"}]}
CHOICES = [
    ("nothing needs the forwarder", AUTO, {}, "kernel: nothing that the service asks for needs the forwarder"),
    ("an option needs it", SEND, {}, "forwarder: l4proxy_services[0].backends[0].send_proxy: the kernel sends no"),
    ("a wildcard needs it", {**AUTO, "listen": ["0.0.0.0:443"]}, {}, "forwarder: l4proxy_services[0].listen[0]: "),
    ("an earlier run has it", AUTO, stored(None, "a"),
     "forwarder: an earlier run has applied it; set datapath: kernel to change it"),
    ("an earlier run has the kernel", AUTO, stored("kernel", "a2"),
     "kernel: an earlier run has applied it; set datapath: forwarder to change it"),
    ("an earlier run was interrupted", AUTO, {**stored("kernel", "a"), **stored(None, "a2")}, "kernel: an earlier run"),
    ("an option needs it by now", SEND, stored("kernel", "a"), "forwarder: l4proxy_services[0].backends[0].send_proxy"),
]  # fmt: skip


@pytest.mark.parametrize(("service", "variables", "expected"), **rows(CHOICES))
@pytest.mark.parametrize("host", ["a", "b"])
def test_auto_keeps_what_an_earlier_run_has_applied_and_else_prefers_the_kernel(host, service, variables, expected):
    """Every host of the fleet finds the same, though only those in the run have read stored documents."""
    own = (variables.get("a") or {}).get("__l4proxy_known") or {}
    seen = fleet(host, [service], hostvars(**variables), **BOTH, known=own if host == "a" else {})
    assert notes(seen, "a")[0].startswith(f"service fast: datapath {expected}")


def test_an_unknown_datapath_is_refused_once():
    found = errors(forwarder_config, fleet("a", [{**FAST, "datapath": "ebpf"}]), "a", {})
    assert found == ["l4proxy_services[0].datapath: 'ebpf' is not a datapath; use forwarder, kernel, auto"]


@pytest.mark.parametrize(("address", "expected"), [("198.18.0.100", 0), ("198.18.0.102", 1)])
def test_a_note_says_where_a_listen_address_differs_between_the_proxies(address, expected):
    other = json.dumps([{**FAST, "listen": [f"{address}:443", "[2001:db8::100]:443"]}])
    seen = {"__l4proxy_fleet": view("a2", services=other, **BOTH)}
    found = notes(fleet("a", [FAST], hostvars(a2=seen), **BOTH), "a")
    differs = (
        "service fast: clients use 198.18.0.100:443 at a, but 198.18.0.102:443 at a2, so its connections cannot move "
        "to another proxy"
    )
    assert found == [differs][:expected]
