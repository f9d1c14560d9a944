# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ipaddress import ip_address

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import (
    DerivationError,
    HostAddress,
    Meeting,
    derived_id,
    fact_addresses,
    host_from_variables,
    meet,
)

from tests.unit.plugins.plugin_utils.fleet_data import facts

DOCKER = {"docker0": {"device": "docker0", "ipv4": {"address": "172.17.0.1", "prefix": "16"}}}


def address(text: str, **more) -> HostAddress:
    value, _slash, prefix = text.partition("/")
    return HostAddress(ip_address(value), int(prefix) if prefix else None, **more)


def meeting(proxy: str, backend: str) -> Meeting:
    return Meeting(proxy=address(proxy), backend=address(backend))


IDS = [
    ("the host part", [meeting("198.18.0.11/24", "198.18.0.21")], 11),
    ("longer prefixes too", [meeting("198.18.0.140/25", "198.18.0.141")], 12),
    ("the prefix may be the backend's", [meeting("198.18.0.11", "198.18.0.21/24")], 11),
    ("too short a prefix", [meeting("10.1.2.3/16", "10.1.7.8/16")], None),
    ("no prefix at all", [meeting("198.18.0.11", "198.18.0.21")], None),
    ("two subnets that disagree", [meeting("198.18.0.11/24", "198.18.0.21"), meeting("10.0.0.7/24", "10.0.0.8")], None),
    ("two subnets that agree", [meeting("198.18.0.11/24", "198.18.0.21"), meeting("10.0.0.11/24", "10.0.0.8")], 11),
    ("IPv4 first", [meeting("2001:db8::5/120", "2001:db8::6"), meeting("198.18.0.11/24", "198.18.0.2")], 11),
    ("IPv6 where it is long enough", [meeting("2001:db8::b/120", "2001:db8::6")], 11),
    ("IPv6 of the usual length", [meeting("2001:db8::b/64", "2001:db8::6")], None),
    ("the network's own address", [meeting("198.18.0.0/24", "198.18.0.21")], None),
]


@pytest.mark.parametrize(("meetings", "expected"), [row[1:] for row in IDS], ids=[row[0] for row in IDS])
def test_id(meetings, expected):
    assert derived_id(meetings) == expected


def test_facts_give_every_usable_address_with_prefix_and_device():
    found = fact_addresses(facts(11, ipv4_secondaries=[{"address": "198.18.0.99", "netmask": "255.255.255.0"}]))
    assert found == [
        address("198.18.0.11/24", device="eth0"),
        address("198.18.0.99/24", device="eth0", secondary=True),
        address("2001:db8::11/64", device="eth0"),
    ]


def test_the_primary_address_is_preferred_to_a_secondary_one():
    proxy = host_from_variables(
        "a", {"ansible_facts": facts(11, ipv4_secondaries=[{"address": "198.18.0.3", "prefix": "24"}])}
    )
    backend = host_from_variables("b", {"ansible_facts": facts(21)})
    assert str(meet(proxy, backend, 4).proxy.address) == "198.18.0.11"


def test_an_address_without_a_subnet_comes_last():
    """The kernel lists a /32 of scope host before the interface's own address, and facts take it for the primary."""
    found = facts(
        21,
        ipv4={"address": "198.18.0.2", "prefix": "32"},
        ipv4_secondaries=[{"address": "198.18.0.21", "prefix": "24"}],
        ipv6=[{"address": "2001:db8::2", "prefix": "128"}, {"address": "2001:db8::21", "prefix": "64"}],
    )
    host = host_from_variables("b", {"ansible_facts": found})
    assert [str(host.of_family(version)[0].address) for version in (4, 6)] == ["198.18.0.21", "2001:db8::21"]


def test_a_bridge_that_both_hosts_have_is_no_meeting():
    proxy = host_from_variables("a", {"ansible_facts": DOCKER})
    backend = host_from_variables("b", {"ansible_facts": DOCKER})
    assert meet(proxy, backend, 4) is None


def test_declared_beats_facts_and_keeps_their_device():
    host = host_from_variables(
        "a",
        {
            "l4proxy_address": "198.18.0.99",
            "ansible_facts": facts(11, ipv4_secondaries=[{"address": "198.18.0.99", "prefix": "24"}]),
        },
    )
    assert [str(one.address) for one in host.of_family(4)] == ["198.18.0.99"]
    assert host.of_family(4)[0].device == "eth0"
    assert [str(one.address) for one in host.of_family(6)] == ["2001:db8::11"]


@pytest.mark.parametrize(
    ("declared", "expected"), [("02:AA:00:00:00:01", "02:aa:00:00:00:01"), ("", None), (None, None)]
)
def test_a_mac_is_declared_or_followed_and_never_from_facts(declared, expected):
    host = host_from_variables("a", {"l4proxy_mac": declared, "ansible_facts": facts(11)})
    assert host.mac == expected


SOURCES = [
    ("facts", {"ansible_facts": facts(11), "ansible_host": "192.0.2.1"}, "198.18.0.11"),
    ("the last run", {"ansible_host": "192.0.2.1"}, "198.18.0.77"),
]


@pytest.mark.parametrize(("source", "variables", "expected"), SOURCES, ids=[row[0] for row in SOURCES])
def test_where_an_address_comes_from(source, variables, expected):
    host = host_from_variables("a", variables, known=[address("198.18.0.77")])
    assert (host.source, str(host.of_family(4)[0].address)) == (source, expected)


def test_ansible_host_is_the_last_resort():
    host = host_from_variables("a", {"ansible_host": "198.18.0.11"})
    assert (host.source, str(host.addresses[0].address)) == ("ansible_host", "198.18.0.11")


def test_a_name_is_never_taken_for_an_address():
    assert host_from_variables("a", {"ansible_host": "a.example.org"}).addresses == ()


@pytest.mark.parametrize("value", [0, 256, "x", -1])
def test_bad_id(value):
    with pytest.raises(DerivationError, match=r"l4proxy_id of a: .* is not a proxy id"):
        host_from_variables("a", {"l4proxy_id": value})


def test_bad_address():
    with pytest.raises(DerivationError, match="l4proxy_address of a: 'here' is not an IP address"):
        host_from_variables("a", {"l4proxy_address": "here"})
