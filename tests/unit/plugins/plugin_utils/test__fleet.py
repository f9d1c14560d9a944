# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet, known_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from tests.unit.plugins.plugin_utils.fleet_data import NUMBERS, errors, facts, fleet


def test_a_host_outside_the_group_of_backends():
    found = errors(lambda: fleet("a", backends=["b", "c"]))
    assert found == [
        "l4proxy_services[0].backends[2].host: 'd' is not in the group of backends, so its return path would never be "
        "set; add it to the group, or give its address instead of its name"
    ]


def test_empty_group_of_backends():
    assert errors(lambda: fleet("a", backends=[]))[0].startswith("the group of backends has no hosts")


def test_peers_are_both_ends_of_what_is_configured():
    assert fleet("b", proxies=["a", "a2"]).peers(["b"]) == ["b", "a", "a2"]
    assert fleet("a").peers(["a"]) == ["a", "b", "c", "d"]


def named(names, backends, *listen):
    """The documents of a fleet whose hosts a, b and c have these names, its service with these backends."""
    a, b, c = names
    variables = {name: {"ansible_facts": facts(NUMBERS[one])} for one, name in zip("abc", names)}
    services = [{"name": "web", "listen": listen or ["0.0.0.0:80", "[::]:80"], "backends": backends}]

    def seen(host):
        view = {"host": host, "inventory": names, "proxies": [a], "backends": [b, c], "known": {}}
        return Fleet(services, view, variables)

    return [forwarder_config(seen(a), a, {}), local_delivery(seen(a), a), return_path(seen(b), b)]


V4, V6 = ["198.18.0.11", "198.18.0.21", "198.18.0.22"], ["2001:db8::11", "2001:db8::21", "2001:db8::22"]
# What is written, as against {host: ..., port: ...}.
BY_ADDRESS = [
    (V4, ["198.18.0.21:8080", "198.18.0.22:8080"]),
    (V6, ["[2001:db8::21]:8080", "[2001:DB8::22]:8080"]),
    # The name is one address of the host, its backends are reached at others.
    (["192.0.2.11", "192.0.2.21", "192.0.2.22"], ["192.0.2.21:8080", "192.0.2.22:8080"]),
]


@pytest.mark.parametrize(("names", "backends"), BY_ADDRESS)
def test_hosts_named_by_their_address(names, backends):
    _a, b, c = names
    found = named(names, backends)
    assert found == named(names, [{"host": b, "port": 8080}, {"host": c, "port": 8080}])
    # Apart from the names it is the fleet as anybody writes it.
    text = json.dumps(named("abc", ["b:8080", "c:8080"]))
    for name, one in zip("abc", names):
        text = text.replace(f'"name": "{name}"', f'"name": "{one}"')
    assert found == json.loads(text)


@pytest.mark.parametrize("names", [list("abc"), V4, V6])
def test_what_an_earlier_run_knew_of_hosts_at_several_ports(names):
    _a, b, c = names
    ports = [(b, "8080-8089"), (b, "9000-9009"), (c, 8080)]
    config = named(names, [{"host": host, "port": port} for host, port in ports], "0.0.0.0:80-89")[0]
    known = known_addresses({"forwarder": config})
    assert [[str(one.address) for one in known[name]] for name in (b, c)] == [
        ["198.18.0.21", "2001:db8::21"],
        ["198.18.0.22", "2001:db8::22"],
    ]


def test_the_address_of_a_host_of_ours_that_no_service_names():
    services = [{"name": "web", "listen": ["0.0.0.0:80"], "backends": ["b:8080", "c:8080", "198.18.0.23:8080"]}]
    (found,) = errors(return_path, fleet("d", services), "d")
    assert found == (
        "l4proxy_services[0].backends[2]: 198.18.0.23 is an address of d, a host of the group backends, but no "
        "service names d, so its return path would never be set; write d:8080 in place of it"
    )
