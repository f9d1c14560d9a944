# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import virtual_addresses, virtual_ips

from tests.unit.tables import rows

from .fleet_data import BOTH, WEB, errors, facts, fleet, hostvars, two_links

WEB_IP = {"name": "web", "addresses": ["198.18.0.100", "2001:db8::100"], "proxies": ["a", "a2"]}
MAIL_IP = {**WEB_IP, "name": "mail", "addresses": ["198.18.0.101"]}
# The holder of the address, with it on the interface as VRRP puts it there.
HELD = {"ipv4_secondaries": [{"address": "198.18.0.100", "prefix": "32"}]}


def proxy(name, value, a=None, a2=None, **changes):
    """The fleet with a variable that both proxies have, as seen from one of them."""
    mine = {host: {"l4proxy_virtual_ips": value, **(more or {})} for host, more in (("a", a), ("a2", a2))}
    return fleet(name, [WEB], hostvars(**mine), **{**BOTH, **changes})


def test_each_proxy_gets_its_priority_its_peers_and_its_addresses_by_family():
    (web,) = virtual_ips(proxy("a", [WEB_IP]), "a")["virtual_ips"]
    ipv4 = {"family": "ipv4", "interface": "eth0", "source": "198.18.0.11", "peers": {"a2": "198.18.0.12"}}
    ipv6 = {"family": "ipv6", "interface": "eth0", "source": "2001:db8::11", "peers": {"a2": "2001:db8::12"}}
    families = [{**ipv4, "addresses": ["198.18.0.100"]}, {**ipv6, "addresses": ["2001:db8::100"]}]
    common = {"name": "web", "vrid": 105, "advert": 0.5, "preempt": False}
    assert web == {**common, "priority": 254, "families": families}
    (second,) = virtual_ips(proxy("a2", [WEB_IP], a={"ansible_facts": facts(11, **HELD)}), "a2")["virtual_ips"]
    assert (second["priority"], second["families"][0]["peers"]) == (234, {"a": "198.18.0.11"})


def test_options_replace_what_is_derived():
    entry = {**MAIL_IP, "vrid": 7, "advert": 1, "preempt": True, "proxies": ["a2", "a"], "interface": "eth0"}
    (mail,) = virtual_ips(proxy("a", [entry], **two_links(11, "a")), "a")["virtual_ips"]
    assert (mail["vrid"], mail["advert"], mail["preempt"], mail["priority"]) == (7, 1.0, True, 234)


def test_without_the_variable_or_for_another_proxy_there_is_nothing():
    nothing = {"virtual_ips": [], "warnings": []}
    assert virtual_ips(proxy("a", None), "a") == nothing
    assert virtual_ips(proxy("a", [{**WEB_IP, "proxies": ["a2"]}]), "a") == nothing
    assert virtual_addresses(proxy("a", [WEB_IP]), "a") == {"web": ["198.18.0.100", "2001:db8::100"]}
    removed = proxy("a", [WEB_IP], removed=["a2"])
    assert virtual_ips(removed, "a")["virtual_ips"][0]["families"][0]["peers"] == {}


STORED = {"virtual_ips": [{"name": "web", "families": [{"family": "ipv4", "peers": {"a2": "198.18.0.12"}}]}]}
WARNINGS = [
    ("one proxy", [{**WEB_IP, "proxies": ["a"]}], {},
     ["l4proxy_virtual_ips[0].proxies: only a, so no other proxy takes over the addresses of web; add one"]),
    ("a proxy that has never answered", [WEB_IP], {"a2": {"ansible_facts": {}}},
     ["a2 did not answer, and no earlier run has stored its address on a: it is left out of the VRRP peers of web. "
      "Start it and run the playbook again"]),
    ("a proxy that does not answer now", [{**WEB_IP, "addresses": ["198.18.0.100"]}],
     {"a2": {"ansible_facts": {}}, "known": {"virtual_ip": STORED}}, []),
]  # fmt: skip


@pytest.mark.parametrize(("value", "changes", "warnings"), **rows(WARNINGS))
def test_what_prevents_a_takeover_is_a_warning(value, changes, warnings):
    assert virtual_ips(proxy("a", value, **changes), "a")["warnings"] == warnings


def entry(**changes):
    return [{**WEB_IP, **changes}]


ADDRESSES, PROXIES = "l4proxy_virtual_ips[0].addresses: ", "l4proxy_virtual_ips[0].proxies: "
IPV4_ONLY = {"ansible_facts": facts(12, ipv6=[])}
ROUTED = {"ansible_facts": facts(12, ipv4={"address": "198.18.0.12", "prefix": "32"})}
BOTH_CARDS = two_links(11, "a")["a"]["ansible_facts"]
BOTH_CARDS["eth1"]["ipv4"] = {"address": "198.18.0.13", "prefix": "24"}
# name, the variable, other variables of a and a2, the sentence.
REFUSED = [
    ("no list", {"web": 1}, {}, "l4proxy_virtual_ips: must be a list, each entry with name, addresses, proxies"),
    ("no dictionary", ["web"], {}, "l4proxy_virtual_ips[0]: must be a dictionary with name, addresses, proxies"),
    ("an unknown key", entry(priority=1), {}, "l4proxy_virtual_ips[0].priority: unknown key; the keys are name, "),
    ("a key is missing", [{"name": "web", "addresses": ["198.18.0.100"]}], {}, f"{PROXIES}is missing"),
    ("a name with spaces", entry(name="my web"), {}, "l4proxy_virtual_ips[0].name: 'my web' must be 1 to 32 letters, "),
    ("two of one name", [WEB_IP, {**MAIL_IP, "name": "web"}], {},
     "l4proxy_virtual_ips[1].name: 'web' is also the name of l4proxy_virtual_ips[0]; choose another one"),
    ("no address", entry(addresses=[]), {}, f"{ADDRESSES}must be a list of IP addresses"),
    ("a prefix length", entry(addresses=["198.18.0.100/24"]), {},
     f"{ADDRESSES}'198.18.0.100/24' is not an IP address; write it without a prefix length"),
    ("a loopback address", entry(addresses=["::1"]), {}, f"{ADDRESSES}::1 is not an address that clients of other "),
    ("one address twice", entry(addresses=["2001:db8::100", "2001:DB8::0:100"]), {},
     f"{ADDRESSES}2001:db8::100 is listed twice; remove one"),
    ("an address of two virtual IPs", [WEB_IP, {**MAIL_IP, "addresses": ["198.18.0.100"], "vrid": 1}], {},
     "l4proxy_virtual_ips[1].addresses: 198.18.0.100 is also an address of web; remove it from one of them"),
    ("a backend's own address", entry(addresses=["198.18.0.21"]), {},
     f"{ADDRESSES}198.18.0.21 is b's own address; choose one in the same subnet that no host has"),
    ("a proxy's own address", entry(addresses=["2001:db8::12"]), {}, f"{ADDRESSES}2001:db8::12 is a2's own address; "),
    ("the address that Ansible uses", entry(), {"a": {"ansible_host": "198.18.0.100"}},
     f"{ADDRESSES}198.18.0.100 is a's own address; "),
    ("a virtual address on a proxy that is not listed", entry(proxies=["a"]),
     {"a2": {"ansible_facts": facts(12, **HELD)}}, f"{ADDRESSES}198.18.0.100 is a2's own address; "),
    ("an unknown proxy", entry(proxies=["a", "b"]), {}, f"{PROXIES}'b' is not in the group proxies; use one of a, a2"),
    ("a proxy twice", entry(proxies=["a", "a"]), {}, f"{PROXIES}'a' is listed twice; remove one"),
    ("an address outside of the subnets", entry(addresses=["198.18.9.1"]), {},
     f"{ADDRESSES}198.18.9.1: not in one subnet of a, which has 198.18.0.11/24; for an address without a shared"),
    ("a proxy without a subnet", entry(addresses=["198.18.0.100"]), {"a2": ROUTED},
     f"{ADDRESSES}198.18.0.100: not in one subnet of a2, which has no subnet; for an address without a shared link, "),
    ("a family that a proxy lacks", entry(), {"a2": IPV4_ONLY},
     f"{ADDRESSES}2001:db8::100 is IPv6, but a2 has no IPv6 address; add one"),
    ("two interfaces in one subnet", entry(addresses=["198.18.0.100"]), {"a": {"ansible_facts": BOTH_CARDS}},
     "l4proxy_virtual_ips[0].interface: a has the subnet of 198.18.0.100 on eth0 and eth1; set one of them"),
    ("another interface", entry(addresses=["198.18.0.100"], interface="eth7"), {},
     "l4proxy_virtual_ips[0].interface: eth7 of a has no address in the subnet of 198.18.0.100"),
    ("no name of an interface", entry(interface=1), {}, "l4proxy_virtual_ips[0].interface: 1 is not the name of an "),
    ("vrid 0", entry(vrid=0), {}, "l4proxy_virtual_ips[0].vrid: 0 is not a virtual router id; use a whole number "),
    ("one vrid twice", [WEB_IP, {**MAIL_IP, "vrid": 105}], {},
     "l4proxy_virtual_ips[1].vrid: 105 is also the vrid of web on the same link; set another one"),
    ("too many advertisements", entry(advert=0.05), {},
     "l4proxy_virtual_ips[0].advert: 0.05 must be 0.1 to 40 seconds, in hundredths; the default is 0.5"),
    ("too few advertisements", entry(advert=41), {}, "l4proxy_virtual_ips[0].advert: 41 must be 0.1 to 40 seconds"),
    ("parts of hundredths", entry(advert=0.125), {}, "l4proxy_virtual_ips[0].advert: 0.125 must be 0.1 to 40 seconds"),
    ("preempt as text", entry(preempt="no"), {}, "l4proxy_virtual_ips[0].preempt: 'no' must be true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "changes", "sentence"), **rows(REFUSED))
def test_a_fault_is_refused_with_its_key_its_value_and_a_remedy(value, changes, sentence):
    assert errors(virtual_ips, proxy("a", value, **changes), "a")[0].startswith(sentence)


def test_more_proxies_than_priorities_are_refused():
    names = [f"p{number}" for number in range(13)]
    (fault,) = errors(virtual_ips, proxy("a", entry(proxies=names), proxies=["a", *names]), "a")
    assert fault == f"{PROXIES}13 proxies are more than 12; for so many, use l4proxy_announce"
