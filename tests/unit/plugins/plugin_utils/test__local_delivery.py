# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import (
    applied_method,
    choose,
    local_delivery,
)

from tests.unit.tables import rows

from .fleet_data import WEB, errors, facts, fleet, hostvars


def test_an_address_outside_the_inventory_has_rules_too():
    document = local_delivery(fleet("a", [{**WEB, "backends": ["198.51.100.44:80", "b:80"]}]), "a")
    assert {rule["src"] for rule in document["rules"]} == {"198.51.100.44", "198.18.0.21", "2001:db8::21"}


def test_rules_match_protocols_and_the_interface_towards_the_backend_and_no_ports():
    document = local_delivery(fleet("a"), "a")
    assert (document["owner"], document["protocol"]) == ("local_delivery", 201)
    for source, protocols in (("198.18.0.21", ["icmp", "tcp", "udp"]), ("2001:db8::21", ["ipv6-icmp", "tcp", "udp"])):
        assert sorted(rule["ip_proto"] for rule in document["rules"] if rule["src"] == source) == protocols
    placed = {(rule["iif"], rule["priority"], rule["table"]) for rule in document["rules"]}
    assert placed == {("eth0", 1100, 20100)}
    assert not any("sport" in rule for rule in document["rules"])
    routes = [(route["family"], route["type"], route["dev"]) for route in document["routes"]]
    assert routes == [("ipv4", "local", "lo"), ("ipv6", "local", "lo")]
    names = {one["name"] for one in document["sysctls"]}
    assert names == {"net.ipv4.conf.all.send_redirects", "net.ipv4.conf.eth0.send_redirects"}


def test_a_backend_on_no_link_has_rules_without_interface():
    rules = local_delivery(fleet("a", [{**WEB, "backends": ["198.51.100.44:80"]}]), "a")["rules"]
    assert [rule["src"] for rule in rules if "iif" not in rule] == ["198.51.100.44"] * 3


def test_socket_mark_has_one_mark_and_a_rule_per_family():
    document = local_delivery(fleet("a"), "a", "socket_mark", "iptables")
    (mark,) = document["marks"]
    assert (mark["name"], mark["id"], mark["mask"], mark["transparent"]) == ("a", 11, 255, True)
    rules = [(rule["family"], rule["fwmark"], rule["fwmask"], rule["table"]) for rule in document["rules"]]
    assert rules == [("ipv4", 11, 255, 20100), ("ipv6", 11, 255, 20100)]
    assert document["mark_engine"] == "iptables"


@pytest.mark.parametrize(
    ("options", "method", "stored", "expected"),
    [
        ({}, "rules", [], False),
        ({"datapath": "kernel"}, "rules", [], True),
        ({}, "rules", [{"name": "web", "retiring": True}], True),
        ({"datapath": "kernel"}, "socket_mark", [], False),
    ],
)
def test_rules_beside_the_kernel_datapath_need_marks_in_source_validation(options, method, stored, expected):
    host = fleet("a", [{**WEB, **options}], known={"kernel_datapath": {"services": stored}})
    values = {one["name"]: one["value"] for one in local_delivery(host, "a", method)["sysctls"]}
    assert values.get("net.ipv4.conf.all.src_valid_mark") == ("1" if expected else None)


ROUTER = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.src_valid_mark": "0"}
VPN = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.wg0.src_valid_mark": "1"}
CHOICES = [
    ("a host", "auto", None, {"net.ipv4.ip_forward": "0"}, "rules"),
    ("a router", "auto", None, ROUTER, "socket_mark"),
    ("a router of IPv6", "auto", None, {"net.ipv6.conf.all.forwarding": "1"}, "socket_mark"),
    ("a router on which marks count in source validation", "auto", None, VPN, "rules"),
    ("a host that became a router", "auto", "rules", ROUTER, "rules"),
    ("a router no more", "auto", "socket_mark", {}, "socket_mark"),
    ("rules on a router", "rules", None, ROUTER, "rules"),
]
KNOWN = {
    None: None,
    "rules": {"rules": [{"src": "198.18.0.21"}]},
    "socket_mark": {"rules": [{"fwmark": 11}], "marks": [{"id": 11, "transparent": True}]},
}


@pytest.mark.parametrize(("wanted", "known", "settings", "expected"), **rows(CHOICES))
def test_the_method_follows_from_option_earlier_run_and_sysctls(wanted, known, settings, expected):
    assert choose("a", wanted, KNOWN[known], settings) == expected


@pytest.mark.parametrize(
    ("known", "forwarding", "expected"),
    [("rules", "1", True), ("rules", "0", False), ("socket_mark", "0", True), (None, "1", True)],
)
def test_auto_uses_socket_mark_for_a_container_on_a_router(known, forwarding, expected):
    """Rules would catch the packets that the proxy routes for the container, so they do not stay."""
    docker = {"device": "docker0", "type": "bridge", "ipv4": {"address": "172.17.0.1", "prefix": "16"}}
    variables = hostvars(a={"ansible_facts": {**facts(11), "docker0": docker}})
    services = [{**WEB, "backends": ["b:8080", "172.17.0.2:8080"]}]
    host = {"settings": [f"/proc/sys/net/ipv4/ip_forward:{forwarding}"], "known": {"local_delivery": KNOWN[known]}}
    assert bool(local_delivery(fleet("a", services, variables, **host), "a")["marks"]) == expected


def test_retiring_objects_are_not_the_applied_method():
    switched = {"rules": [{"src": "198.18.0.21", "retiring": True}], **{"marks": KNOWN["socket_mark"]["marks"]}}
    assert applied_method(switched) == "socket_mark"
    assert applied_method({"rules": [{"src": "198.18.0.21", "retiring": True}]}) is None


@pytest.mark.parametrize("device", ["all", "eth0", "default", "wg0"])
def test_socket_mark_is_refused_with_src_valid_mark_of_its_own_interface(device):
    settings = [f"/proc/sys/net/ipv4/conf/{device}/src_valid_mark:1", "/proc/sys/net/ipv4/ip_forward:1"]
    if device in ("default", "wg0"):
        assert local_delivery(fleet("a", settings=settings), "a")["marks"]
        return
    (found,) = errors(local_delivery, fleet("a", settings=settings), "a", "socket_mark")
    sentence = f"socket_mark cannot work while net.ipv4.conf.{device}.src_valid_mark is 1"
    assert found.startswith(f"forwarder_local_delivery of a: {sentence}: the kernel would")
    ours = {"sysctls": [{"name": f"net.ipv4.conf.{device}.src_valid_mark", "value": "1"}]}
    (found,) = errors(local_delivery, fleet("a", settings=settings, known={"local_delivery": ours}), "a", "socket_mark")
    assert found.startswith(f"forwarder_local_delivery of a: {sentence}: this collection has set it")


def test_rules_match_the_address_that_the_backend_has_for_this_proxy():
    variables = hostvars(b={"return_path_strategy": "address", "return_path_addresses": {"a": "198.18.0.121"}})
    document = local_delivery(fleet("a", [{**WEB, "backends": ["b:8080"]}], variables), "a")
    assert {(rule["src"], rule["iif"]) for rule in document["rules"]} == {("198.18.0.121", "eth0")}
