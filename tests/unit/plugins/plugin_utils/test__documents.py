# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _documents
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError

from tests.unit.plugins.plugin_utils.fleet_data import WEB, facts, hostvars, view

SSH = {"name": "ssh", "listen": ["0.0.0.0:22"], "backends": ["b:2222"], "proxies": ["a2"]}


def fleet(host, services=(WEB,), variables=None, **changes):
    return Fleet(list(services), view(host, **changes), variables or hostvars())


def errors(call, *arguments):
    with pytest.raises(DerivationError) as caught:
        call(*arguments)
    return caught.value.errors


def config_errors(service, **changes):
    return errors(_documents.forwarder_config, fleet("a", [service], **changes), "a", {})


def test_forwarder_config():
    config = _documents.forwarder_config(fleet("a"), "a", {"drain_timeout": 7})
    assert (config["proxy_id"], config["drain_timeout"]) == (11, 7)
    (service,) = config["services"]
    assert service["listen"] == [{"address": "0.0.0.0", "port": 80}, {"address": "::", "port": 80}]
    assert service["backends"][2] == {"name": "d", "port": 8080, "ipv4": "198.18.0.23", "ipv6": "2001:db8::23"}


def test_two_ports_of_one_host_are_two_backends():
    config = _documents.forwarder_config(fleet("a", [{**WEB, "backends": ["b:80", "b:81"]}]), "a", {})
    assert [backend["name"] for backend in config["services"][0]["backends"]] == ["b:80", "b:81"]


def test_an_address_outside_the_inventory_is_a_backend():
    document = _documents.local_delivery(fleet("a", [{**WEB, "backends": ["198.51.100.44:80", "b:80"]}]), "a")
    assert {rule["src"] for rule in document["rules"]} == {"198.51.100.44", "198.18.0.21", "2001:db8::21"}


def test_local_delivery_names_protocols_and_no_ports():
    document = _documents.local_delivery(fleet("a"), "a")
    assert (document["owner"], document["protocol"]) == ("local_delivery", 201)
    rules = [
        (rule["src"], rule["ip_proto"]) for rule in document["rules"] if rule["src"] in ("198.18.0.21", "2001:db8::21")
    ]
    assert sorted(rules) == [
        ("198.18.0.21", "icmp"),
        ("198.18.0.21", "tcp"),
        ("198.18.0.21", "udp"),
        ("2001:db8::21", "ipv6-icmp"),
        ("2001:db8::21", "tcp"),
        ("2001:db8::21", "udp"),
    ]
    assert {(rule["priority"], rule["table"]) for rule in document["rules"]} == {(1100, 20100)}
    assert not any("sport" in rule for rule in document["rules"])
    assert [(route["family"], route["type"], route["dev"]) for route in document["routes"]] == [
        ("ipv4", "local", "lo"),
        ("ipv6", "local", "lo"),
    ]
    assert {one["name"] for one in document["sysctls"]} == {
        "net.ipv4.conf.all.send_redirects",
        "net.ipv4.conf.eth0.send_redirects",
    }


def test_return_path_of_two_proxies():
    document = _documents.return_path(fleet("b", proxies=["a", "a2"]), "b", "mark")
    assert [(mark["name"], mark["id"], mark["mac"], mark["via"]) for mark in document["marks"]] == [
        ("a", 11, "02:00:00:00:00:11", ["198.18.0.11", "2001:db8::11"]),
        ("a2", 12, "02:00:00:00:00:12", ["198.18.0.12", "2001:db8::12"]),
    ]
    lookups = [
        (rule["family"], rule["fwmark"], rule["table"]) for rule in document["rules"] if rule["action"] == "lookup"
    ]
    assert lookups == [("ipv4", 11, 20111), ("ipv6", 11, 20111), ("ipv4", 12, 20112), ("ipv6", 12, 20112)]
    guards = [rule for rule in document["rules"] if rule["action"] == "unreachable"]
    assert {rule["priority"] for rule in guards} == {1101}
    assert len(guards) == 4
    assert {(route["via"], route["table"], route["dev"]) for route in document["routes"]} == {
        ("198.18.0.11", 20111, "eth0"),
        ("2001:db8::11", 20111, "eth0"),
        ("198.18.0.12", 20112, "eth0"),
        ("2001:db8::12", 20112, "eth0"),
    }


def test_an_interface_with_a_dot_is_a_sysctl_with_slashes():
    variables = hostvars(b={"ansible_facts": facts(21, device="eth0.100")})
    names = {one["name"] for one in _documents.return_path(fleet("b", variables=variables), "b", "mark")["sysctls"]}
    assert "net/ipv4/conf/eth0.100/accept_redirects" in names


def test_a_service_of_one_proxy_is_nothing_to_the_other():
    both = fleet("a", [WEB, SSH], proxies=["a", "a2"])
    assert [service["name"] for service in _documents.forwarder_config(both, "a", {})["services"]] == ["web"]
    assert [service["name"] for service in _documents.forwarder_config(both, "a2", {})["services"]] == ["web", "ssh"]
    only = fleet("b", [SSH], proxies=["a", "a2"])
    assert [mark["name"] for mark in _documents.return_path(only, "b", "mark")["marks"]] == ["a2"]


def test_a_fault_is_named_by_the_variables_own_path():
    first = {**WEB, "proxies": ["a2"]}
    second = {**WEB, "name": "second", "backends": [{"host": "b", "port": 70000}]}
    found = errors(_documents.forwarder_config, fleet("a", [first, second], proxies=["a", "a2"]), "a", {})
    assert [one.split(":")[0] for one in found] == ["l4proxy_services[1].backends[0].port"]


REFUSED = [
    ("a port out of range", {**WEB, "backends": ["b:70000"]}, "l4proxy_services[0].backends[0].port"),
    ("an unknown key", {**WEB, "ballance": "round_robin"}, "l4proxy_services[0]"),
    ("a family no backend has", {**WEB, "backends": ["198.51.100.44:80"]}, "l4proxy_services[0].listen[1]"),
    ("no name", {key: value for key, value in WEB.items() if key != "name"}, "l4proxy_services[0]"),
]


@pytest.mark.parametrize(("service", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_by_the_check_of_the_host(service, expected):
    assert any(expected in error for error in config_errors(service))


def test_two_services_on_one_listen_address():
    found = errors(_documents.forwarder_config, fleet("a", [WEB, {**WEB, "name": "other"}]), "a", {})
    assert found[0].startswith("l4proxy_services[1].listen[0]: 0.0.0.0:80 overlaps 0.0.0.0:80 of l4proxy_services[0]")


def test_a_host_outside_the_group_of_backends():
    found = errors(lambda: fleet("a", backends=["b", "c"]))
    assert found == [
        "l4proxy_services[0].backends[2].host: 'd' is not in the group of backends, so its return path would never be "
        "set; add it to the group, or give its address instead of its name"
    ]


def test_empty_group_of_backends():
    assert errors(lambda: fleet("a", backends=[]))[0].startswith("the group of backends has no hosts")


def test_a_proxy_off_the_backends_subnet():
    elsewhere = facts(11, ipv4={"address": "10.9.9.9", "prefix": "24"}, ipv6=[])
    (found,) = errors(
        _documents.return_path, fleet("b", variables=hostvars(a={"ansible_facts": elsewhere})), "b", "mark"
    )
    assert found.startswith("proxy a (10.9.9.9/24) shares no subnet with backend b (198.18.0.21/24, 2001:db8::21/64)")


def test_two_proxies_with_one_id():
    variables = hostvars(a2={"l4proxy_id": 11})
    (found,) = errors(_documents.return_path, fleet("b", variables=variables, proxies=["a", "a2"]), "b", "mark")
    assert found.startswith("proxies a and a2 have one id, 11")


def test_an_id_that_cannot_be_derived():
    wide = {
        name: {"ansible_facts": facts(number, ipv4={"address": f"10.0.0.{number}", "prefix": "16"}, ipv6=[])}
        for name, number in (("a", 11), ("b", 21))
    }
    (found,) = errors(_documents.return_path, fleet("b", variables=hostvars(**wide)), "b", "mark")
    assert found.startswith("proxy a needs l4proxy_id (1 to 255)")


def test_an_unknown_address_fails_and_the_proxy_is_not_left_out():
    variables = hostvars(a2={"ansible_facts": {}})
    (found,) = errors(_documents.return_path, fleet("b", variables=variables, proxies=["a", "a2"]), "b", "mark")
    assert found.startswith("the address of a2 is unknown to b")


def test_a_proxy_that_is_down_keeps_what_the_last_run_knew_of_it():
    before = _documents.return_path(fleet("b", proxies=["a", "a2"]), "b", "mark")
    variables = hostvars(a2={"ansible_facts": {}})
    after = fleet("b", variables=variables, proxies=["a", "a2"], known={"return_path": before})
    assert _documents.return_path(after, "b", "mark") == before


def test_a_backend_that_is_down_keeps_what_the_last_run_knew_of_it():
    services = [WEB, {**WEB, "name": "twice", "listen": ["0.0.0.0:81"], "backends": ["c:1", "c:2"]}]
    before = _documents.forwarder_config(fleet("a", services), "a", {})
    variables = hostvars(b={"ansible_facts": {}}, c={"ansible_facts": {}})
    after = fleet("a", services, variables=variables, known={"forwarder": before})
    assert _documents.forwarder_config(after, "a", {}) == before


def test_an_unknown_strategy():
    (found,) = errors(_documents.return_path, fleet("b"), "b", "tunnel")
    assert found == "return_path_strategy of b: 'tunnel' is not in this version; use mark"


def test_a_backend_nobody_names_is_not_emptied():
    (found,) = errors(_documents.return_path, fleet("d", [{**WEB, "backends": ["b:80"]}]), "d", "mark")
    assert found.startswith("d is in the group backends, but in no service of l4proxy_services")


def test_peers_are_both_ends_of_what_is_configured():
    assert fleet("b", proxies=["a", "a2"]).peers(["b"]) == ["b", "a", "a2"]
    assert fleet("a").peers(["a"]) == ["a", "b", "c", "d"]


def test_probe_targets_follow_the_families_listened_on():
    targets = _documents.probe_targets(fleet("a", [{**WEB, "listen": ["0.0.0.0:80"], "backends": ["b:8080"]}]), "a")
    assert targets == [{"name": "web: b", "address": "198.18.0.21", "port": 8080, "source": "198.51.100.11"}]


def test_an_address_on_the_link_gives_an_id_as_well():
    config = _documents.forwarder_config(
        fleet("a", [{**WEB, "listen": ["0.0.0.0:80"], "backends": ["198.18.0.99:1"]}]), "a", {}
    )
    assert config["proxy_id"] == 11


def two_links(number, name):
    """Facts of a host that is in 198.18.0.0/24 with eth0 and in 198.18.2.0/24 with eth1."""
    second = {"address": f"198.18.2.{number}", "prefix": "24"}
    more = {"eth1": {"device": "eth1", "macaddress": f"02:00:00:00:02:{number}", "ipv4": second}}
    return {name: {"ansible_facts": {**facts(number), **more}}}


def test_an_address_on_another_link_is_reached_and_answered_on_that_link():
    variables = hostvars(**two_links(11, "a"), **two_links(21, "b"))
    service = {**WEB, "backends": [{"host": "b", "address": "198.18.2.21", "port": 80}]}
    config = _documents.forwarder_config(fleet("a", [service], variables), "a", {})
    assert config["services"][0]["backends"][0]["ipv4"] == "198.18.2.21"
    document = _documents.return_path(fleet("b", [service], variables), "b", "mark")
    ipv4 = [route for route in document["routes"] if route["family"] == "ipv4"]
    assert [(route["via"], route["dev"]) for route in ipv4] == [("198.18.2.11", "eth1")]


def test_two_links_between_one_pair_are_refused():
    variables = hostvars(**two_links(11, "a"), **two_links(21, "b"))
    other = {**WEB, "name": "other", "listen": ["0.0.0.0:81"], "backends": [{"host": "b", "address": "198.18.2.21"}]}
    (found,) = errors(_documents.return_path, fleet("b", [WEB, other], variables), "b", "mark")
    assert found.startswith("proxy a would reach backend b on two links (198.18.0.21 from 198.18.0.11, and 198.18.2.21")


def test_a_given_address_has_to_be_on_a_link_of_the_proxy():
    (found,) = config_errors({**WEB, "backends": [{"host": "b", "address": "10.0.0.9", "port": 80}]})
    assert "shares no subnet with backend b (10.0.0.9" in found


def test_what_is_in_doubt_does_not_hide_other_faults():
    found = config_errors({**WEB, "backends": ["b:0", "c:8080"]}, variables=hostvars(c={"ansible_facts": {}}))
    assert [one.split(":")[0] for one in found] == [
        "the address of c is unknown to a",
        "l4proxy_services[0].backends[0].port",
    ]


def test_the_check_of_a_fleet_finds_every_fault_of_every_host():
    broken = [{**WEB, "backends": ["b:0", "c:80"]}]
    variables = hostvars(c={"ansible_facts": facts(22, ipv4={"address": "10.0.0.1", "prefix": "24"}, ipv6=[])})
    roles = {"forwarder": {}, "return_path": {"strategy": "mark"}}
    views = [(fleet(name, broken, variables), roles) for name in ("a", "b", "c")]
    found = errors(_documents.check_fleet, views)
    assert len(found) == len(set(found))
    assert any("shares no subnet with backend c" in one for one in found)
