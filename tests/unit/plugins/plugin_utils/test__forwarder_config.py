# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from tests.unit.tables import rows

from .fleet_data import WEB, errors, fleet, hostvars, two_links

SSH = {"name": "ssh", "listen": ["0.0.0.0:22"], "backends": ["b:2222"], "proxies": ["a2"]}


def config_errors(service, **changes):
    return errors(forwarder_config, fleet("a", [service], **changes), "a", {})


def test_the_config_has_id_settings_services_and_addresses():
    config = forwarder_config(fleet("a"), "a", {"drain_timeout": 7, "drain_memory": ""})
    assert (config["proxy_id"], config["drain_timeout"], "drain_memory" in config) == (11, 7, False)
    tables = [
        forwarder_config(fleet("a"), "a", {"hash_table": table}).get("hash_table") for table in ("ring", "maglev")
    ]
    assert tables == [None, "maglev"], "version 0.1.0 does not know the key"
    never = forwarder_config(fleet("a"), "a", {"never_ban": ["192.0.2.0/24"], "deny_files": []})["never_ban"]
    assert never[0] == "192.0.2.0/24"
    assert {"198.18.0.11", "198.18.0.23", "2001:db8::23"} <= {*never}
    assert {"never_ban", "deny_files"} & forwarder_config(fleet("a"), "a", {"deny_files": []}).keys() == set()
    (service,) = config["services"]
    assert service["listen"] == [{"address": "0.0.0.0", "port": 80}, {"address": "::", "port": 80}]
    assert service["backends"][2] == {"name": "d", "port": 8080, "ipv4": "198.18.0.23", "ipv6": "2001:db8::23"}


def test_a_backend_is_enabled_unless_the_config_has_the_key_which_version_0_1_0_does_not_know():
    backends = [{"host": name, "port": 8080, "enabled": name == "b"} for name in ("b", "c")]
    (service,) = forwarder_config(fleet("a", [{**WEB, "backends": backends}]), "a", {})["services"]
    assert [one.get("enabled") for one in service["backends"]] == [None, False]
    assert return_path(fleet("c", [{**WEB, "backends": backends}]), "c") == return_path(fleet("c"), "c")


def test_a_listen_range_is_the_default_port_range_of_backends():
    ranged = {**WEB, "listen": ["0.0.0.0:8000-8009"], "backends": ["b"]}
    (service,) = forwarder_config(fleet("a", [ranged]), "a", {})["services"]
    assert service["listen"] == [{"address": "0.0.0.0", "port": "8000-8009"}]
    assert service["backends"][0]["port"] == "8000-8009"


def test_two_ports_of_one_host_are_two_backends_and_a_backend_address_on_the_link_gives_the_id_too():
    config = forwarder_config(fleet("a", [{**WEB, "backends": ["b:80", "b:81"]}]), "a", {})
    assert [backend["name"] for backend in config["services"][0]["backends"]] == ["b:80", "b:81"]
    config = forwarder_config(fleet("a", [{**WEB, "listen": ["0.0.0.0:80"], "backends": ["198.18.0.99:1"]}]), "a", {})
    assert config["proxy_id"] == 11


def test_a_service_of_one_proxy_is_not_in_the_documents_of_the_other():
    both = fleet("a", [WEB, SSH], proxies=["a", "a2"])
    assert [service["name"] for service in forwarder_config(both, "a", {})["services"]] == ["web"]
    assert [service["name"] for service in forwarder_config(both, "a2", {})["services"]] == ["web", "ssh"]
    only = fleet("b", [SSH], proxies=["a", "a2"])
    assert [mark["name"] for mark in return_path(only, "b")["marks"]] == ["a2"]


def test_a_fault_has_the_path_in_the_variable():
    first = {**WEB, "proxies": ["a2"]}
    second = {**WEB, "name": "second", "backends": [{"host": "b", "port": 70000}]}
    found = errors(forwarder_config, fleet("a", [first, second], proxies=["a", "a2"]), "a", {})
    assert [one.split(":")[0] for one in found] == ["l4proxy_services[1].backends[0].port"]


REFUSED = [
    ("a port out of range", {**WEB, "backends": ["b:70000"]}, "l4proxy_services[0].backends[0].port"),
    ("an unknown key", {**WEB, "ballance": "round_robin"}, "l4proxy_services[0]"),
    ("a family no backend has", {**WEB, "backends": ["198.51.100.44:80"]}, "l4proxy_services[0].listen[1]"),
    ("no name", {key: value for key, value in WEB.items() if key != "name"}, "l4proxy_services[0]"),
]


@pytest.mark.parametrize(("service", "expected"), **rows(REFUSED))
def test_faults_that_the_config_finds_are_refused(service, expected):
    assert any(expected in error for error in config_errors(service))


def test_two_services_on_one_listen_address_are_refused():
    found = errors(forwarder_config, fleet("a", [WEB, {**WEB, "name": "other"}]), "a", {})
    assert found[0].startswith("l4proxy_services[1].listen[0]: 0.0.0.0:80 overlaps 0.0.0.0:80 of l4proxy_services[0]")


def test_a_backend_that_is_down_keeps_its_known_address():
    services = [WEB, {**WEB, "name": "twice", "listen": ["0.0.0.0:81"], "backends": ["c:1", "c:2"]}]
    before = forwarder_config(fleet("a", services), "a", {})
    variables = hostvars(b={"ansible_facts": {}}, c={"ansible_facts": {}})
    after = fleet("a", services, variables=variables, known={"forwarder": before})
    assert forwarder_config(after, "a", {}) == before


def test_a_backend_address_on_another_link_is_used_in_both_documents_and_one_on_no_link_is_refused():
    variables = hostvars(**two_links(11, "a"), **two_links(21, "b"))
    service = {**WEB, "backends": [{"host": "b", "address": "198.18.2.21", "port": 80}]}
    config = forwarder_config(fleet("a", [service], variables), "a", {})
    assert config["services"][0]["backends"][0]["ipv4"] == "198.18.2.21"
    document = return_path(fleet("b", [service], variables), "b")
    ipv4 = [route for route in document["routes"] if route["family"] == "ipv4"]
    assert [(route["via"], route["dev"]) for route in ipv4] == [("198.18.2.11", "eth1")]
    (found,) = config_errors({**WEB, "backends": [{"host": "b", "address": "10.0.0.9", "port": 80}]})
    assert "shares no subnet with backend b (10.0.0.9" in found


def test_an_unknown_address_does_not_hide_other_faults():
    found = config_errors({**WEB, "backends": ["b:0", "c:8080"]}, variables=hostvars(c={"ansible_facts": {}}))
    expected = ["the address of c is unknown to a", "l4proxy_services[0].backends[0].port"]
    assert [one.split(":")[0] for one in found] == expected


OWN = {"return_path_strategy": "address", "return_path_addresses": {"a": ["198.18.0.121", "2001:db8::121"]}}


def backend_b(variables, service=None, **changes):
    return forwarder_config(fleet("a", [service or WEB], variables, **changes), "a", {})["services"][0]["backends"][0]


def test_a_backend_is_reached_at_the_address_it_has_for_this_proxy_even_if_it_is_down():
    expected = {"name": "b", "port": 8080, "ipv4": "198.18.0.121", "ipv6": "2001:db8::121"}
    assert backend_b(hostvars(b=OWN)) == expected
    assert backend_b(hostvars(b={**OWN, "ansible_facts": {}}))["ipv4"] == "198.18.0.121"


AUTO = {**OWN, "return_path_strategy": "auto"}


def test_auto_is_what_the_backend_has_applied():
    before = return_path(fleet("b"), "b")
    seen_from_b = {"known": {"return_path": before}}
    assert backend_b(hostvars(b={**AUTO, "__l4proxy_fleet": seen_from_b}))["ipv4"] == "198.18.0.21"
    assert backend_b(hostvars(b=AUTO))["ipv4"] == "198.18.0.121"


@pytest.mark.parametrize(("variables", "address"), [({}, "198.18.0.21"), (OWN, "198.18.0.121")])
def test_auto_is_what_this_proxy_was_told_where_the_backend_is_not_in_the_run(variables, address):
    before = forwarder_config(fleet("a", variables=hostvars(b=variables)), "a", {})
    assert backend_b(hostvars(b=AUTO), known={"forwarder": before})["ipv4"] == address


def test_another_address_than_the_one_for_this_proxy_is_refused():
    service = {**WEB, "backends": [{"host": "b", "address": "198.18.0.21", "port": 80}]}
    found = config_errors(service, variables=hostvars(b=OWN))
    assert found[0].startswith("l4proxy_services[0].backends[0].address: a does not reach b at 198.18.0.21")
