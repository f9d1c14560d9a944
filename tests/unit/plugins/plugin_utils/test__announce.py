# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._announce import announce

from tests.unit.tables import rows

from .fleet_data import WEB, errors, facts, fleet, hostvars

PEERS = [{"address": "198.18.0.1", "asn": 65000}, {"address": "2001:db8::1", "asn": 65000, "bfd": False}]
ANYCAST = {"asn": 65001, "addresses": ["203.0.113.80", "2001:db8:80::80"], "peers": PEERS}
V4 = {**ANYCAST, "addresses": ["203.0.113.80"], "peers": PEERS[:1]}
VIRTUAL = [{"name": "web", "addresses": ["198.18.0.100"], "proxies": ["a"]}]


def proxy(value, more=None, services=(WEB,)):
    return fleet("a", list(services), hostvars(a={"l4proxy_announce": value, **(more or {})}))


def test_addresses_become_a_document_and_peers_what_frr_needs():
    found = announce(proxy({**ANYCAST, "communities": ["65001:80"]}), "a")
    entries = [{"family": "ipv4", "address": "203.0.113.80"}, {"family": "ipv6", "address": "2001:db8:80::80"}]
    assert found["document"]["announce"] == entries
    assert (found["frr"]["asn"], found["frr"]["router_id"], found["warnings"]) == (65001, "198.18.0.11", [])
    assert found["frr"]["addresses"] == {"ipv4": ["203.0.113.80"], "ipv6": ["2001:db8:80::80"]}
    assert [(peer["family"], peer["bfd"]) for peer in found["frr"]["peers"]] == [("ipv4", True), ("ipv6", False)]


def test_without_the_variable_or_frr_there_is_less():
    assert announce(proxy(None), "a") == {"document": None, "frr": None, "warnings": []}
    found = announce(proxy({"addresses": ["203.0.113.80"], "engine": "none"}), "a")
    assert (found["frr"], len(found["document"]["announce"])) == (None, 1)


def test_a_host_without_ipv4_has_a_stable_router_id_and_one_as_has_no_limit_of_hops():
    value = {**ANYCAST, "addresses": ["2001:db8:80::80"], "peers": [{"address": "2001:db8:9::1", "asn": 65001}]}
    only_ipv6 = {"ansible_facts": facts(11, ipv4={})}
    routers = {announce(proxy(value, only_ipv6), "a")["frr"]["router_id"] for _number in range(2)}
    assert len(routers) == 1
    assert routers != {"198.18.0.11"}


def test_an_address_on_which_no_service_listens_is_a_warning():
    service = {**WEB, "listen": ["203.0.113.80:80"]}
    assert announce(proxy(ANYCAST, services=[service]), "a")["warnings"] == [
        "l4proxy_announce: no service of a listens on 2001:db8:80::80; add it to `listen` of one"
    ]


REFUSED = [
    ("no dictionary", [], "must be a dictionary with addresses, asn and peers"),
    ("unknown key", {**V4, "asnn": 1}, ".asnn: unknown key; the keys are addresses, asn"),
    ("missing asn", {key: V4[key] for key in ("addresses", "peers")}, ".asn: is missing"),
    ("asn out of range", {**V4, "asn": 4294967296}, ".asn: 4294967296 is not an AS number; use a whole number from 1"),
    ("asn reserved", {**V4, "asn": 23456}, ".asn: 23456 is not an AS number"),
    ("no address", {**V4, "addresses": []}, ".addresses: must be a list"),
    ("prefix", {**V4, "addresses": ["203.0.113.80/32"]}, "is not an IP address; write it without a prefix length"),
    ("duplicate", {**ANYCAST, "addresses": ["2001:db8:80::80", "2001:DB8:80:0::80"]},
     ".addresses[1]: 2001:DB8:80:0::80 is listed twice; remove one"),
    ("link-local", {**ANYCAST, "addresses": ["fe80::1"]}, "fe80::1 is not an address that other links can reach"),
    ("community", {**V4, "communities": ["65536:1"]}, ".communities[0]: '65536:1' is not a community such as"),
    ("engine", {**V4, "engine": "bird"}, ".engine: 'bird' must be frr, or none if another tool announces"),
    ("router id", {**V4, "router_id": 7}, ".router_id: 7 must be written as an IPv4 address"),
    ("no peers", {**V4, "peers": []}, ".peers: must be a list of the routers"),
    ("peer without asn", {**V4, "peers": [{"address": "198.18.0.1"}]}, ".peers[0].asn: is missing"),
    ("peer bfd", {**V4, "peers": [{**PEERS[0], "bfd": "yes"}]}, ".peers[0].bfd: 'yes' must be true or false"),
    ("peer hops", {**V4, "peers": [{**PEERS[0], "multihop": 1}]}, ".peers[0].multihop: 1 must be a number of hops"),
    ("both", {**V4, "peers": [{**PEERS[0], "multihop": 2, "ttl_security": True}]}, "cannot be combined with multihop"),
    ("password", {**V4, "peers": [{**PEERS[0], "password": "a b"}]}, ".peers[0].password: must be 1 to 80 printable"),
    ("peer twice", {**V4, "peers": [PEERS[0], PEERS[0]]}, ".peers[1].address: 198.18.0.1 is listed twice; remove one"),
    ("peer elsewhere", {**V4, "peers": [{"address": "10.9.9.1", "asn": 65000}]},
     "10.9.9.1 is on no link of a (198.18.0.11/24, 2001:db8::11/64); correct it, or set multihop: 2"),
    ("peer is the proxy", {**V4, "peers": [{"address": "198.18.0.11", "asn": 65000}]}, "is an address of a itself"),
    ("no peer of a family", {**ANYCAST, "peers": PEERS[:1]}, "no IPv6 peer, but an IPv6 address is to be announced"),
    ("taken", {**V4, "addresses": ["198.18.0.21"]}, ".addresses[0]: 198.18.0.21 is an address of b; choose one that"),
    ("virtual", {**V4, "addresses": ["198.18.0.100"]},
     "198.18.0.100 is also in l4proxy_virtual_ips (web); remove it from one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "sentence"), **rows(REFUSED))
def test_what_cannot_work_is_refused_in_one_sentence(value, sentence):
    found = errors(announce, proxy(value, {"l4proxy_virtual_ips": VIRTUAL}), "a")
    assert len(found) == 1, found
    assert found[0].startswith("l4proxy_announce")
    assert sentence in found[0]


def test_a_peer_of_a_routed_network_or_of_the_same_as_need_not_be_on_a_link():
    peers = [{"address": "10.9.9.1", "asn": 65000, "multihop": 2}, {"address": "10.9.9.2", "asn": 65001}]
    assert len(announce(proxy({**V4, "peers": peers}), "a")["frr"]["peers"]) == 2
