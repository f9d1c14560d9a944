# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._known_addresses import known_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._probe_targets import probe_targets
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import describe_strategy, return_path

from .fleet_data import NUMBERS, WEB, errors, facts, fleet, hostvars


def test_a_backend_host_outside_the_group_and_an_empty_group_are_refused():
    assert errors(lambda: fleet("a", backends=["b", "c"])) == [
        "l4proxy_services[0].backends[2].host: 'd' is not in the group of backends, so no return path would be set on "
        "it; add it to the group, or use its address instead of its name"
    ]
    assert errors(lambda: fleet("a", backends=[]))[0].startswith("the group of backends has no hosts")


def test_peers_are_the_hosts_at_both_ends():
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


# Names of the hosts a, b and c; the backends as written by address.
@pytest.mark.parametrize(("names", "backends"), [
    (V4, ["198.18.0.21:8080", "198.18.0.22:8080"]),
    (V6, ["[2001:db8::21]:8080", "[2001:DB8::22]:8080"]),
    # The name is one address of a host, which is reached at another.
    (["192.0.2.11", "192.0.2.21", "192.0.2.22"], ["192.0.2.21:8080", "192.0.2.22:8080"]),
])  # fmt: skip
def test_a_backend_may_be_written_by_the_address_that_names_its_host(names, backends):
    _a, b, c = names
    found = named(names, backends)
    assert found == named(names, [{"host": b, "port": 8080}, {"host": c, "port": 8080}])
    # Apart from the names, the documents are those of hosts with ordinary names.
    text = json.dumps(named("abc", ["b:8080", "c:8080"]))
    for name, one in zip("abc", names):
        text = text.replace(f'"name": "{name}"', f'"name": "{one}"')
    assert found == json.loads(text)


@pytest.mark.parametrize("names", [list("abc"), V4, V6])
def test_known_addresses_of_hosts_with_several_ports_are_found_by_host(names):
    _a, b, c = names
    ports = [(b, "8080-8089"), (b, "9000-9009"), (c, 8080)]
    config = named(names, [{"host": host, "port": port} for host, port in ports], "0.0.0.0:80-89")[0]
    known = known_addresses({"forwarder": config})
    found = [[str(one.address) for one in known[name]] for name in (b, c)]
    assert found == [["198.18.0.21", "2001:db8::21"], ["198.18.0.22", "2001:db8::22"]]


def test_an_address_of_a_group_host_that_no_service_names_is_refused():
    services = [{"name": "web", "listen": ["0.0.0.0:80"], "backends": ["b:8080", "c:8080", "198.18.0.23:8080"]}]
    (found,) = errors(return_path, fleet("d", services), "d")
    assert found == (
        "l4proxy_services[0].backends[2]: 198.18.0.23 is an address of d, a host of the group backends, but no "
        "service names d, so no return path would be set on it; write d:8080 instead"
    )


VIRTUAL = {"ipv4_secondaries": [{"address": "198.18.0.100", "prefix": "32"}]}
ON_LO = {"lo": {"device": "lo", "ipv6": [{"address": "2001:db8::100", "prefix": "128"}]}}
OTHER_NET = {"docker0": {"device": "docker0", "ipv4": {"address": "172.17.0.1", "prefix": "16"}}}
WITH_MORE = {"a": {"ansible_facts": {**facts(11, **VIRTUAL), **ON_LO, **OTHER_NET}}}
# A backend, variables of hosts, and the address of proxy a that it comes to.
ITSELF = [
    ("198.18.0.11:8080", {}, "198.18.0.11"),
    ("[2001:db8::11]:8080", {}, "2001:db8::11"),
    ("198.18.0.100:8080", WITH_MORE, "198.18.0.100"),
    ("[2001:db8::100]:8080", WITH_MORE, "2001:db8::100"),
    ("172.17.0.1:8080", WITH_MORE, "172.17.0.1"),
    ("198.18.0.11:8080", {"a": {"l4proxy_address": "198.18.0.100/24"}}, "198.18.0.11"),
    ("198.18.0.100:8080", {"a": {"l4proxy_address": "198.18.0.100/24"}}, "198.18.0.100"),
    ({"host": "c", "address": "198.18.0.11", "port": 8080}, {}, "198.18.0.11 (c)"),
    ("c:8080", {"c": {"l4proxy_address": ["198.18.0.11", "2001:db8::11"]}}, "198.18.0.11 (c)"),
    ("c:8080", {"c": {"ansible_facts": facts(11)}}, "198.18.0.11 (c)"),
]


@pytest.mark.parametrize(("backend", "variables", "address"), ITSELF)
def test_a_proxy_as_its_own_backend_is_refused(backend, variables, address):
    services = [{**WEB, "backends": ["b:8080", backend]}]
    for derive, options in ((forwarder_config, ({},)), (local_delivery, ())):
        found = errors(derive, fleet("a", services, hostvars(**variables)), "a", *options)
        sentence = f"{address} is an address of proxy a itself, and a proxy cannot be its own backend; use the address"
        assert found[0].startswith(f"l4proxy_services[0].backends[1]: {sentence} of another host, or, ")


def test_an_address_that_both_hosts_have_is_not_used_between_them():
    variables = hostvars(**{name: {"ansible_facts": facts(NUMBERS[name]) | OTHER_NET} for name in ("a", "b")})
    assert local_delivery(fleet("a", variables=variables), "a") == local_delivery(fleet("a"), "a")


def both(host, services=None, **changes):
    """Two hosts that are proxies and backends at once, and a virtual address that one of them has."""
    services = services or [{**WEB, "backends": ["a:8080", "a2:8080"]}]
    names = {"proxies": ["a", "a2"], "backends": ["a", "a2"], "inventory": ["a", "a2"]}
    return fleet(host, services, hostvars(**WITH_MORE), **{**names, **changes})


def test_hosts_that_are_proxy_and_backend_use_each_other_and_skip_themselves():
    for host, other, number in (("a", "a2", 12), ("a2", "a", 11)):
        seen = both(host)
        (service,) = forwarder_config(seen, host, {})["services"]
        assert [(one["name"], one["ipv4"]) for one in service["backends"]] == [(other, f"198.18.0.{number}")]
        addresses = {f"198.18.0.{number}", f"2001:db8::{number}"}
        rules = local_delivery(seen, host)["rules"]
        assert {(rule["src"], rule["iif"]) for rule in rules} == {(address, "eth0") for address in addresses}
        assert [mark["name"] for mark in return_path(seen, host)["marks"]] == [other]
        assert {target["address"] for target in probe_targets(seen, host)} == addresses
        assert describe_strategy(seen, host)["notes"] == [
            f"{host} is a proxy of service web and one of its backends: as a proxy it skips itself; as a "
            f"backend it is used by {other}"
        ]


def test_the_path_of_a_fault_is_the_users_although_a_proxy_skips_itself():
    found = errors(forwarder_config, both("a", [{**WEB, "backends": ["a:8080", "a2:0"]}]), "a", {})
    assert [one.split(":")[0] for one in found] == ["l4proxy_services[0].backends[1].port"]


def test_a_proxy_with_itself_as_only_backend_is_refused():
    seen = both("a", [{**WEB, "backends": ["a:8080"]}])
    assert errors(forwarder_config, seen, "a", {}) == [
        "l4proxy_services[0].backends: a is the only backend, and a proxy cannot be its own backend; add another host, "
        "or name other proxies than a in l4proxy_services[0].proxies"
    ]
    seen = both("a", [{**WEB, "backends": ["a:8080", "a2:8080"], "proxies": ["a"]}])
    assert errors(return_path, seen, "a") == [
        "a is in the group backends, but the only proxy that would use it is a itself, and a proxy cannot be its "
        "own backend; remove it from the group, or let another proxy serve one of its services"
    ]


ALONE6 = {"ipv4": {}, "ipv6": [{"address": "2001:db8::21", "prefix": "128"}]}
ALONE4 = {"ipv4": {"address": "198.18.0.21", "prefix": "32"}, "ipv6": []}
LINK = {"ipv4": {}, "ipv6": [{"address": "fe80::21", "prefix": "64"}]}
TEMPORARY = {"ipv4": {}, "ipv6": [{"address": "2001:db8::21", "prefix": "64"}]}
FLAGGED = "20010db8000000000000000000000021 02 40 00 01     eth0"


# The addresses of b on its only interface, and parts of the error.
@pytest.mark.parametrize(("own", "inet6", "parts"), [
    (ALONE6, "", ["backend b (2001:db8::21/128): every", 'the prefix length of its link ("2001:db8::11/64")']),
    (ALONE4, "", ["backend b (198.18.0.21/32): every", 'the prefix length of its link ("2001:db8::11/64")']),
    (LINK, "", ["b has no address at which other hosts can reach it, only interfaces eth0, lo; give it an"]),
    (TEMPORARY, FLAGGED, ["b has no address at which other hosts", "only 2001:db8::21, which is temporary; give it"]),
])  # fmt: skip
def test_a_backend_without_a_usable_address_is_refused(own, inet6, parts):
    alone = {"l4proxy_address": ["2001:db8::11/128", "198.18.0.11/32"]}
    variables = {"ansible_facts": facts(21, **own), "__l4proxy_inet6": inet6}
    seen = fleet("b", [{**WEB, "backends": ["b:8080"]}], hostvars(a=alone, b=variables))
    (found,) = errors(return_path, seen, "b")
    assert [part for part in parts if part not in found] == [], found
