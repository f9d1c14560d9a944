# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import parse_endpoint, parse_services

from .fleet_data import errors

INVENTORY = ["a", "b", "c"]
PROXIES = ["a"]
GOOD = {"name": "web", "listen": ["0.0.0.0:80"], "backends": ["b"]}

ENDPOINTS = [
    ("b", ("b", None)),
    ("b:8080", ("b", 8080)),
    ("b:8000-8009", ("b", "8000-8009")),
    ("198.51.100.44:8080", ("198.51.100.44", 8080)),
    ("198.51.100.44", ("198.51.100.44", None)),
    ("2001:db8::5", ("2001:db8::5", None)),
    ("[2001:db8::5]:443", ("2001:db8::5", 443)),
    ("[2001:db8::5]", ("2001:db8::5", None)),
]

BAD_ENDPOINTS = ["b:http", "[2001:db8::5", "[2001:db8::5]443", "[::]:x"]

REFUSED = [
    (None, "l4proxy_services is not defined on this host; it belongs in group_vars/all"),
    ([], "l4proxy_services: expected a list of services"),
    ({"name": "web"}, "l4proxy_services: expected a list of services"),
    (["web"], "l4proxy_services[0]: expected a mapping"),
    ([{**GOOD, "backends": []}], "l4proxy_services[0].backends: at least one backend is required"),
    ([{"name": "web", "backends": ["b"]}], "l4proxy_services[0].listen: is required"),
    ([{**GOOD, "listen": ["80"]}], "l4proxy_services[0].listen[0]: '80' is not a listen address"),
    ([{**GOOD, "listen": ["0.0.0.0:http"]}], "l4proxy_services[0].listen[0]: 'http' is not a port or a range"),
    ([{**GOOD, "backends": ["x:80"]}], "l4proxy_services[0].backends[0].host: 'x' is not in the inventory"),
    ([{**GOOD, "backends": [{"port": 80}]}], "l4proxy_services[0].backends[0]: a backend needs a host"),
    ([{**GOOD, "backends": [{"host": "b", "wieght": 2}]}],
     "l4proxy_services[0].backends[0].wieght: is not a known key"),
    ([{**GOOD, "backends": [{"address": "no"}]}], "l4proxy_services[0].backends[0].address: 'no' is not an IP address"),
    ([GOOD, {**GOOD, "proxies": []}], "l4proxy_services[1].proxies: is empty, so no proxy would serve the service"),
    ([{**GOOD, "proxies": ["z"]}], "l4proxy_services[0].proxies: 'z' is not in the group of proxies (a)"),
    ([{**GOOD, "listen": ["0.0.0.0:80", "0.0.0.0:81"]}], "l4proxy_services[0].backends[0].port: is required, because"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ENDPOINTS)
def test_an_endpoint_is_split_into_name_and_port(text, expected):
    assert parse_endpoint(text) == expected


@pytest.mark.parametrize("text", BAD_ENDPOINTS)
def test_a_bad_endpoint_is_refused(text):
    with pytest.raises(ValueError, match="is not"):
        parse_endpoint(text)


@pytest.mark.parametrize(("value", "sentence"), REFUSED)
def test_a_bad_value_is_refused_with_its_path(value, sentence):
    found = errors(parse_services, value, INVENTORY, PROXIES)
    assert any(error.startswith(sentence) for error in found), found


def test_an_empty_group_of_proxies_and_all_faults_of_the_variable_together_are_reported():
    services = [{**GOOD, "backends": ["x", "y"]}, {**GOOD, "listen": ["nowhere"]}]
    (found,) = errors(parse_services, [GOOD], INVENTORY, [])
    assert "the group of proxies has no hosts" in found
    found = errors(parse_services, services, INVENTORY, PROXIES)
    paths = [error.split(": ")[0] for error in found]
    expected = ["[0].backends[0].host", "[0].backends[1].host", "[1].listen[0]", "[1].backends[0].port"]
    assert paths == [f"l4proxy_services{path}" for path in expected]


def test_the_port_of_a_backend_defaults_to_the_listen_port():
    (service,) = parse_services([{**GOOD, "backends": ["b", "c:8080", "198.51.100.44"]}], INVENTORY, PROXIES)
    expected = [("b", None, 80), ("c", None, 8080), (None, "198.51.100.44", 80)]
    assert [(ref.host, ref.address, ref.port) for ref in service.backends] == expected


NAMED_BY_ADDRESS = [
    ("198.18.0.21:8080", ("198.18.0.21", None, 8080)),
    ("198.18.0.21", ("198.18.0.21", None, 80)),
    ({"address": "198.18.0.21", "port": 8080}, ("198.18.0.21", None, 8080)),
    ("[2001:db8::21]:8080", ("2001:db8::21", None, 8080)),
    ("[2001:DB8:0::21]:8080", ("2001:db8::21", None, 8080)),
    ({"host": "2001:DB8:0::21", "port": 8080}, ("2001:db8::21", None, 8080)),
    # The address of a host is kept, and so is that of a host outside of the group.
    ({"host": "198.18.0.21", "address": "198.18.2.21"}, ("198.18.0.21", "198.18.2.21", 80)),
    ("198.18.0.99:8080", (None, "198.18.0.99", 8080)),
]


@pytest.mark.parametrize(("written", "expected"), NAMED_BY_ADDRESS)
def test_a_backend_address_that_names_an_inventory_host_is_that_host(written, expected):
    hosts = ["198.18.0.21", "2001:db8::21"]
    services = [{**GOOD, "backends": [written], "proxies": ["2001:DB8::0:11"]}]
    (service,) = parse_services(services, [*hosts, "198.18.0.99"], ["2001:db8::11"], hosts)
    (ref,) = service.backends
    assert (ref.host, ref.address, ref.port) == expected
    assert service.proxies == ("2001:db8::11",)


def test_other_keys_are_passed_on():
    written = {**GOOD, "balance": "random", "backends": [{"host": "b", "weight": 2}]}
    (service,) = parse_services([written], ["b"], PROXIES)
    assert service.options == {"name": "web", "balance": "random"}
    assert service.backends[0].options == {"weight": 2}


def test_numbers_may_be_written_as_text():
    written = {**GOOD, "listen": [{"address": "0.0.0.0", "port": "80"}], "backends": [{"host": "b", "weight": "2"}]}
    (service,) = parse_services([written], INVENTORY, PROXIES)
    assert service.listen == (("0.0.0.0", 80),)
    assert (service.backends[0].port, service.backends[0].options) == (80, {"weight": 2})
