# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ipaddress import ip_address

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import UnreadableVariable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import fact_addresses, read_interfaces
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import HostAddress, host_from_variables

from tests.unit.tables import rows

from .fleet_data import errors, facts

DOCKER = {"docker0": {"device": "docker0", "ipv4": {"address": "172.17.0.1", "prefix": "16"}}}


def address(text: str, **more) -> HostAddress:
    value, _slash, prefix = text.partition("/")
    return HostAddress(ip_address(value), int(prefix) if prefix else None, **more)


def test_facts_give_every_usable_address_with_prefix_and_device():
    found = fact_addresses(facts(11, ipv4_secondaries=[{"address": "198.18.0.99", "netmask": "255.255.255.0"}]))
    assert found == [
        address("198.18.0.11/24", device="eth0"),
        address("198.18.0.99/24", device="eth0", secondary=True),
        address("2001:db8::11/64", device="eth0"),
    ]


def test_an_address_without_a_subnet_comes_last():
    """The kernel lists a /32 of scope host before the interface's own address, and facts take it for the primary."""
    first, second = {"address": "198.18.0.2", "prefix": "32"}, {"address": "198.18.0.21", "prefix": "24"}
    ipv6 = [{"address": "2001:db8::2", "prefix": "128"}, {"address": "2001:db8::21", "prefix": "64"}]
    found = facts(21, ipv4=first, ipv4_secondaries=[second], ipv6=ipv6)
    host = host_from_variables("b", {"ansible_facts": found})
    assert [str(host.of_family(version)[0].address) for version in (4, 6)] == ["198.18.0.21", "2001:db8::21"]


ETH1 = {"eth1": {"device": "eth1", "ipv4": {"address": "198.18.2.21", "prefix": "24"}}}
# As setup leaves `ip address add 198.18.2.77/24 dev eth0 label eth0:1`, and a secondary's label: both entries have it.
LABELS = {
    "eth0_1": {"ipv4": {"address": "198.18.2.77", "prefix": "24"}},
    "eth0_web": {"ipv4_secondaries": [{"address": "198.18.0.77", "prefix": "24"}]},
    "locally_reachable_ips": {"ipv4": ["127.0.0.0/8", "198.18.0.21"], "ipv6": ["::1"]},
}
SECOND = {"ipv4_secondaries": [{"address": "198.18.0.77", "prefix": "24"}]}
V6 = [{"address": address, "prefix": "64"} for address in ("2001:db8::21", "2001:db8::dead")]
ALONE = {"ipv4": {"address": "198.18.0.21", "prefix": "32"}, "ipv6": [{"address": "2001:db8::21", "prefix": "128"}]}


def flagged(own: int, dead: int) -> dict:
    """/proc/net/if_inet6 of a host that has 2001:db8::21 and 2001:db8::dead on eth0, with these flags."""
    addresses = (("21", own), ("dead", dead))
    rows = (f"20010db80000000000000000{name:0>8} 02 40 00 {value:02x}     eth0" for name, value in addresses)
    return {"__l4proxy_inet6": "\n".join(rows)}


BOTH, IPV4 = ["198.18.0.21/24", "2001:db8::21/64"], "198.18.0.21/24"
TWO, TWO_LINKS, LABELLED = facts(21, ipv6=V6), {**facts(21), **ETH1}, {**facts(21, **SECOND), **LABELS}
DEAD, PREFERS_DEAD = "2001:db8::dead", {"default_ipv6": {"address": "2001:db8::dead", "interface": "eth0"}}
ON_LO = {"lo": {"device": "lo", "ipv4": {"address": "198.18.0.21", "prefix": "32"}}}
BRIDGE = {"br_lan": {"device": "br-lan"}, "br_lan_1": {"ipv4": {"address": "198.18.2.77", "prefix": "24"}}}

# The variables of b, its facts, and the addresses that are used, in their order.

CANDIDATES = [
    ("facts", {}, {}, BOTH),
    ("a temporary address, which the default route prefers", flagged(0x80, 0x01), {**TWO, **PREFERS_DEAD}, BOTH),
    ("the temporary address is first and deprecated by now", flagged(0x00, 0x21), facts(21, ipv6=V6[::-1]), BOTH),
    ("a deprecated address is the lower one", flagged(0x20, 0x80), TWO, [IPV4, f"{DEAD}/64", "2001:db8::21/64"]),
    ("a duplicate of another machine's", flagged(0xC8, 0x80), TWO, [IPV4, f"{DEAD}/64"]),
    ("a temporary address that is declared", {**flagged(0x80, 0x01), "l4proxy_address": DEAD}, TWO, [IPV4, DEAD]),
    ("no IPv6 at all", {"__l4proxy_inet6": ""}, facts(21, ipv6=[]), [IPV4]),
    ("a prefix declared over a /32 and a /128", {"l4proxy_address": BOTH}, facts(21, **ALONE), BOTH),
    ("a prefix declared over one, for IPv6 alone", {"l4proxy_address": "2001:db8::21/64"}, facts(21, **ALONE),
     ["198.18.0.21/32", "2001:db8::21/64"]),
    ("an address without a prefix that two interfaces have", {"l4proxy_address": "198.18.0.21"},
     {**facts(21), **ON_LO}, BOTH),
    ("an interface", {"l4proxy_interface": "eth1"}, TWO_LINKS, ["198.18.2.21/24"]),
    ("an interface, of both families", {"l4proxy_interface": "eth0"}, TWO_LINKS, BOTH),
    ("an interface for one family, an address for the other",
     {"l4proxy_interface": "eth1", "l4proxy_address": "2001:db8::21"}, TWO_LINKS,
     ["198.18.2.21/24", "2001:db8::21/64"]),
    ("labels", {}, LABELLED, [IPV4, "198.18.0.77/24", "198.18.2.77/24", "2001:db8::21/64"]),
    ("one label, with the IPv6 addresses of its device", {"l4proxy_interface": "eth0:1"}, LABELLED,
     ["198.18.2.77/24", "2001:db8::21/64"]),
    ("an interface with its labels", {"l4proxy_interface": "eth0"}, {**LABELLED, **ETH1},
     [IPV4, "198.18.0.77/24", "198.18.2.77/24", "2001:db8::21/64"]),
    ("an interface whose name facts spell in another way", {"l4proxy_interface": "br-lan:1"}, BRIDGE,
     ["198.18.2.77/24"]),
    ("the name of the host is one of its addresses",
     {}, facts(21, ipv6=[*V6, {"address": "2001:db8::b", "prefix": "64"}]),
     [IPV4, "2001:db8::b/64", "2001:db8::21/64", f"{DEAD}/64"]),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "told", "expected"), **rows(CANDIDATES))
def test_the_addresses_of_a_host_and_their_order(variables, told, expected):
    host = host_from_variables("2001:db8::b", {"ansible_facts": told or facts(21), **variables})
    found = [one for version in (4, 6) for one in host.of_family(version)]
    assert [f"{one.address}/{one.prefix}" if one.prefix else str(one.address) for one in found] == expected
    # The device is what routes and sysctls are for; only a declared address that facts do not have is without one.
    assert [one.device is None for one in found] == ["dead" in text and "/" not in text for text in expected]


ONE_LINK = "eth0 (198.18.0.21, 2001:db8::21), lo"
REFUSED = [
    ({"l4proxy_interface": "eth1"}, f"l4proxy_interface of b: b has no interface 'eth1'; it has {ONE_LINK}"),
    ({"l4proxy_interface": "lo"},
     f"l4proxy_interface of b: b has no address on 'lo' at which other hosts can reach it; it has {ONE_LINK}"),
    ({"l4proxy_interface": ["eth0"]}, "l4proxy_interface of b: ['eth0'] is not the name of an interface, such as eth1"),
    *(
        ({"l4proxy_id": value}, f"l4proxy_id of b: {value!r} is not a proxy id (a whole number from 1 to 255)")
        for value in (0, 256, "x", -1)
    ),
    ({"l4proxy_address": "here"}, "l4proxy_address of b: 'here' is not an IP address: 'here' does not appear to be an "
     "IPv4 or IPv6 interface"),
    ({"l4proxy_interface": ""}, "l4proxy_interface of b: '' is not the name of an interface, such as eth1"),
    ({"ansible_facts": {"gather_subset": ["network"]}, "__l4proxy_inet6": ""},
     "the addresses of b cannot be read, because it lacks the command ip: install the package iproute2 on b, or "
     "declare l4proxy_address in its host_vars, with a prefix length"),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "sentence"), REFUSED)
def test_a_bad_variable_is_refused(variables, sentence):
    found = errors(host_from_variables, "b", {"ansible_facts": facts(21), **variables})
    assert found == [sentence]


def test_a_declared_address_is_enough_without_the_command_ip():
    variables = {"ansible_facts": {}, "__l4proxy_inet6": "", "l4proxy_address": "198.18.0.21/24"}
    assert host_from_variables("b", variables).addresses == (address("198.18.0.21/24"),)


class Template(dict):
    """Variables of which one is a template that fails."""

    def get(self, key, default=None):
        if key == "l4proxy_address":
            raise UnreadableVariable("l4proxy_address of b", "object of type 'dict' has no attribute 'eth1'")
        return super().get(key, default)


CANNOT = "l4proxy_address of b cannot be evaluated: object of type 'dict' has no attribute 'eth1'; "


@pytest.mark.parametrize(("told", "known", "sentence"), [
    (facts(21), [address("198.18.0.77")], f"b has {ONE_LINK}"),
    ({}, [], "the facts of b could not be gathered, and no earlier run has stored its address: start b, or write its "
             "address as a value"),
])  # fmt: skip
def test_a_template_that_fails_is_reported_with_advice(told, known, sentence):
    with pytest.raises(UnreadableVariable) as caught:
        host_from_variables("b", Template(ansible_facts=told), known)
    assert caught.value.errors == [CANNOT + sentence]


def test_a_host_that_is_down_has_its_known_address_instead_of_its_template():
    host = host_from_variables("b", Template(ansible_host="192.0.2.1"), [address("198.18.0.77")])
    assert (host.source, host.addresses) == ("the last run", (address("198.18.0.77"),))


def test_ansible_host_is_used_if_it_is_an_address_and_nothing_else_is_known_or_declared():
    host = host_from_variables("a", {"ansible_host": "198.18.0.11"})
    assert (host.source, str(host.addresses[0].address)) == ("ansible_host", "198.18.0.11")
    assert host_from_variables("a", {"ansible_host": "a.example.org"}).addresses == ()
    assert host_from_variables("b", {"l4proxy_interface": "eth1", "ansible_host": "192.0.2.1"}).addresses == ()


def test_other_text_than_if_inet6_has_no_flags():
    (first, *_rest) = read_interfaces(facts(21), "null\n" + "x y z\n")
    assert len(first.addresses) == 2


def test_a_declared_address_replaces_facts_and_keeps_their_device():
    found = facts(11, ipv4_secondaries=[{"address": "198.18.0.99", "prefix": "24"}])
    host = host_from_variables("a", {"l4proxy_address": "198.18.0.99", "ansible_facts": found})
    assert [(str(one.address), one.device) for one in host.of_family(4)] == [("198.18.0.99", "eth0")]
    assert [str(one.address) for one in host.of_family(6)] == ["2001:db8::11"]


@pytest.mark.parametrize(("declared", "mac"), [("02:AA:00:00:00:01", "02:aa:00:00:00:01"), ("", None), (None, None)])
def test_a_mac_is_never_read_from_facts(declared, mac):
    assert host_from_variables("a", {"l4proxy_mac": declared, "ansible_facts": facts(11)}).mac == mac


def test_facts_come_before_the_last_run():
    for told, expected in ((facts(11), ("facts", "198.18.0.11")), (None, ("the last run", "198.18.0.77"))):
        variables = {"ansible_host": "192.0.2.1", **({"ansible_facts": told} if told else {})}
        host = host_from_variables("a", variables, known=[address("198.18.0.77")])
        assert (host.source, str(host.of_family(4)[0].address)) == expected
