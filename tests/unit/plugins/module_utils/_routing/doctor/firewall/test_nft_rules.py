# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A ruleset as nft 1.0.6 lists it (ruleset.json), walked with packets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall import nft_rules
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall.model import (
    DNAT,
    SNAT,
    SYNPROXY,
    UNTRACK,
    Packet,
)

LISTING = json.loads(Path(__file__).with_name("ruleset.json").read_text(encoding="utf-8"))
OURS = {"l4proxy_return_path"}
RULESET = nft_rules.parse(LISTING, OURS, {"ip filter"})
PACKET = Packet("ipv4", "10.1.2.3", "198.18.0.21", "tcp", 40000, 22, "eth0")
PACKET6 = replace(PACKET, family="ipv6", src="2001:db8::7", dst="2001:db8::21", dport=80)

# (packet, accepted, certain, by)
VERDICTS = [
    (PACKET, True, False, ""),  # behind a set that is filled at run time, which may drop it
    (replace(PACKET, dport=85), True, False, ""),
    (replace(PACKET, dport=91), False, False, "the policy of chain inet fw input"),
    (replace(PACKET, dport=91, state="established"), True, True, ""),
    (replace(PACKET, dport=91, state="invalid"), False, True, "ct state vmap"),
    (replace(PACKET, dport=91, iif="lo"), True, True, ""),
    (replace(PACKET, src="198.51.100.9", dport=8080), False, False, "tcp dport 8080 ip saddr != 198.51.100.3 reject"),
    (replace(PACKET, src="198.51.100.3", dport=8080), True, False, ""),
    (replace(PACKET, src="203.0.113.5", dport=8080), False, True, "ip saddr prefix: addr: 203.0.113.0, len: 24 drop"),
    (replace(PACKET, dport=23), False, False, "tcp dport vmap"),
    (replace(PACKET, dport=24), True, False, ""),
    (replace(PACKET, dport=24, dst="192.0.2.9"), False, False, "policy"),
    (replace(PACKET, protocol="udp", dport=53), True, False, ""),
    (replace(PACKET, protocol="icmp", dport=None), True, False, ""),
    (replace(PACKET, protocol="udp"), False, False, "policy"),
    (replace(PACKET, dport=99), False, False, "policy"),
    (PACKET6, True, True, ""),
    (replace(PACKET6, src="2001:db9::7"), False, True, "policy"),
    (replace(PACKET6, src="2001:db9::7", dport=24), False, True, "policy"),
]


@pytest.mark.parametrize(("packet", "accepted", "certain", "by"), VERDICTS)
def test_verdicts(packet, accepted, certain, by):
    found = RULESET.verdict("input", packet)
    assert (found.accepted, found.certain) == (accepted, certain), found
    assert by in found.by


def test_marks_that_are_written():
    written = [write for one in RULESET.reached("output", PACKET) for write in one.rule.writes]
    assert [(write.key, write.bits) for write in written] == [
        ("meta", 0xFFFFFFFF),
        ("meta", 0xFF),
        ("meta", 0xFFFFFFFF),
        ("ct", 0x10000),
    ]


def test_translations():
    found = list(RULESET.reached("prerouting", replace(PACKET, dport=80)))
    assert [one.rule.effect for one in found] == [DNAT]
    assert list(RULESET.reached("prerouting", replace(PACKET, dport=81))) == []


@pytest.mark.parametrize("value", ["udp", 17, {"set": [17, 58]}])
def test_protocols_may_be_listed_by_number(value):
    """As on a host without /etc/protocols."""
    place = {"family": "inet", "table": "t", "chain": "c"}
    chain = {**place, "name": "c", "hook": "input", "prio": 0, "policy": "accept"}
    match = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": value}}
    listing = {"nftables": [{"chain": chain}, {"rule": {**place, "expr": [match, {"drop": None}]}}]}
    ruleset = nft_rules.parse(listing, set(), set())
    verdicts = [ruleset.verdict("input", replace(PACKET, protocol=protocol)) for protocol in ("udp", "tcp")]
    assert [(one.accepted, one.certain) for one in verdicts] == [(False, True), (True, True)]


def test_what_is_left_out():
    """Our own table, and the chains of iptables-nft, which are read by iptables-save."""
    assert {table for table, _chain in RULESET.chains} == {"inet fw"}
    assert nft_rules.uses_iptables(LISTING)
    assert not nft_rules.uses_iptables({"nftables": []})
    assert nft_rules.hooks(LISTING, OURS) == {"input", "prerouting"}


# (a left side, a right side): each is a condition that may or may not hold
NOT_UNDERSTOOD = [
    ({"&": [{"ct": {"key": "mark"}}, 255]}, 1),
    ({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False),
    ({"meta": {"key": "skuid"}}, 0),
    ({"meta": {"key": "cgroup"}}, 7),
    ({"payload": {"base": "th", "offset": 64, "len": 128}}, 7),
    ({"payload": {"protocol": "ip", "field": "saddr"}}, "@elsewhere"),
]


@pytest.mark.parametrize(("left", "right"), NOT_UNDERSTOOD)
def test_what_is_not_understood_is_never_certain(left, right):
    place = {"family": "inet", "table": "t", "chain": "c"}
    chain = {**place, "name": "c", "hook": "input", "prio": 0, "policy": "accept"}
    match = {"match": {"op": "==", "left": left, "right": right}}
    rule = {**place, "expr": [match, {"drop": None}]}
    verdict = nft_rules.parse({"nftables": [{"chain": chain}, {"rule": rule}]}).verdict("input", PACKET)
    assert (verdict.accepted, verdict.certain) == (True, False)


def when(left, right, operator="==") -> dict:
    return {"match": {"op": operator, "left": left, "right": right}}


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
SOURCE_TYPE = {"fib": {"result": "type", "flags": ["saddr"]}}
EFFECTS = [
    ([{"masquerade": None}], True),
    ([{"counter": {"packets": 0, "bytes": 0}}, {"masquerade": {"flags": "random"}}], True),
    ([{"snat": {"family": "ip", "addr": "1.2.3.4"}}], True),
    ([{"snat": {"family": "ip6", "addr": "2001:db8::1"}}], None),
    ([{"snat": {"addr": {"map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@m"}}}}], False),
    ([{"mangle": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "value": "1.2.3.4"}}], True),
    ([{"xt": {"type": "target", "name": "MASQUERADE"}}], True),
    ([{"xt": {"type": "match", "name": "set"}}, {"xt": {"type": "target", "name": "SNAT"}}], False),
    ([{"xt": {"type": "target", "name": "TEE"}}], None),
    ([when({"&": [{"meta": {"key": "mark"}}, 16384]}, 0), {"masquerade": None}], True),
    ([when({"meta": {"key": "mark"}}, 0, "!="), {"masquerade": None}], None),
    ([when({"meta": {"key": "oifname"}}, "eth*"), {"masquerade": None}], True),
    ([when({"meta": {"key": "oifname"}}, "wg*"), {"masquerade": None}], None),
    ([when({"meta": {"key": "skuid"}}, 33), {"masquerade": None}], None),
    ([when({"meta": {"key": "iifname"}}, "wg0"), {"masquerade": None}], None),
    ([when({"ct": {"key": "status"}}, "dnat", "in"), {"masquerade": None}], None),
    ([when(SOURCE, {"range": ["10.1.0.0", "10.1.255.255"]}), {"masquerade": None}], True),
    ([when(SOURCE, {"range": ["10.8.0.1", "10.8.0.99"]}), {"masquerade": None}], None),
    ([when(SOURCE, {"set": [{"range": ["10.8.0.1", "10.8.0.99"]}, "10.1.2.3"]}), {"masquerade": None}], True),
    ([when(SOURCE_TYPE, "local", "!="), {"masquerade": None}], True),
    ([when(SOURCE_TYPE, "local"), {"masquerade": None}], None),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "sure"), EFFECTS)
def test_source_nat(statements, sure):
    """``sure`` is None where the rule does not rewrite the packet."""
    place = {"family": "inet", "table": "t", "chain": "c"}
    chain = {**place, "name": "c", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    ruleset = nft_rules.parse({"nftables": [{"chain": chain}, {"rule": {**place, "expr": statements}}]})
    packet = replace(PACKET, iif="", oif="eth0", uid=998, src_fib="unicast", status="none")
    found = [one.certain for one in ruleset.reached("postrouting", packet) if one.rule.effect == SNAT]
    assert found == ([] if sure is None else [sure])


@pytest.mark.parametrize("statement", [{"notrack": None}, {"synproxy": {"mss": 1460}}, {"synproxy": None}])
def test_what_keeps_packets_from_conntrack(statement):
    place = {"family": "ip", "table": "raw", "chain": "PREROUTING"}
    chain = {**place, "name": "PREROUTING", "hook": "prerouting", "prio": -300, "policy": "accept"}
    listing = {"nftables": [{"chain": chain}, {"rule": {**place, "expr": [statement]}}]}
    found = [one.rule.effect for one in nft_rules.parse(listing).reached("prerouting", PACKET)]
    assert found == ([SYNPROXY] if "synproxy" in statement else [UNTRACK])
    assert nft_rules.parse(listing, saved={"ip raw"}).chains == {}


def test_a_chain_named_like_those_of_iptables_is_read_where_iptables_does_not_show_it():
    place = {"family": "inet", "table": "nat", "chain": "POSTROUTING"}
    chain = {**place, "name": "POSTROUTING", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    listing = {"nftables": [{"chain": chain}, {"rule": {**place, "expr": [{"masquerade": None}]}}]}
    assert not nft_rules.uses_iptables(listing)
    assert [one.rule.effect for one in nft_rules.parse(listing, saved={"ip nat"}).reached("postrouting", PACKET)] == [
        SNAT
    ]
