# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets through a ruleset of nft 1.0.6 (ruleset.json), and through single rules."""

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


def single_rule(statements, family="inet", table="t", name="c", **chain):
    """The listing of a chain with one rule."""
    place = {"family": family, "table": table}
    base = {**place, "name": name, "hook": "input", "prio": 0, "policy": "accept", **chain}
    return {"nftables": [{"chain": base}, {"rule": {**place, "chain": name, "expr": statements}}]}


def when(left, right, operator="==") -> dict:
    return {"match": {"op": operator, "left": left, "right": right}}


# (packet, accepted, certain, by)
VERDICTS = [
    (PACKET, True, False, ""),  # a rule before has a set that is filled at run time
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
def test_the_verdict_names_the_rule_or_policy_and_says_whether_it_is_certain(packet, accepted, certain, by):
    verdict = RULESET.verdict("input", packet)
    assert (verdict.accepted, verdict.certain) == (accepted, certain), verdict
    assert by in verdict.by


def test_written_marks_are_found_with_their_bits():
    written = [write for reached in RULESET.reached("output", PACKET) for write in reached.rule.writes]
    expected = [("meta", 0xFFFFFFFF), ("meta", 0xFF), ("meta", 0xFFFFFFFF), ("ct", 0x10000)]
    assert [(write.key, write.bits) for write in written] == expected


def test_dnat_is_found_for_its_port_only():
    assert [reached.rule.effect for reached in RULESET.reached("prerouting", replace(PACKET, dport=80))] == [DNAT]
    assert list(RULESET.reached("prerouting", replace(PACKET, dport=81))) == []


@pytest.mark.parametrize("value", ["udp", 17, {"set": [17, 58]}])
def test_a_protocol_may_be_listed_by_number_as_without_etc_protocols(value):
    ruleset = nft_rules.parse(single_rule([when({"meta": {"key": "l4proto"}}, value), {"drop": None}]))
    verdicts = [ruleset.verdict("input", replace(PACKET, protocol=protocol)) for protocol in ("udp", "tcp")]
    assert [(verdict.accepted, verdict.certain) for verdict in verdicts] == [(False, True), (True, True)]


def test_our_own_table_and_the_chains_of_iptables_nft_are_left_out():
    assert {table for table, _chain in RULESET.chains} == {"inet fw"}
    assert nft_rules.uses_iptables(LISTING)
    assert not nft_rules.uses_iptables({"nftables": []})
    assert nft_rules.hooks(LISTING, OURS) == {"input", "prerouting"}


# Conditions that the model cannot express: left side, right side.
@pytest.mark.parametrize(("left", "right"), [
    ({"&": [{"ct": {"key": "mark"}}, 255]}, 1),
    ({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False),
    ({"meta": {"key": "skuid"}}, 0),
    ({"meta": {"key": "cgroup"}}, 7),
    ({"payload": {"base": "th", "offset": 64, "len": 128}}, 7),
    ({"payload": {"protocol": "ip", "field": "saddr"}}, "@elsewhere"),
])  # fmt: skip
def test_an_unknown_condition_makes_the_verdict_uncertain(left, right):
    verdict = nft_rules.parse(single_rule([when(left, right), {"drop": None}])).verdict("input", PACKET)
    assert (verdict.accepted, verdict.certain) == (True, False)


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


POSTROUTING = {"type": "nat", "hook": "postrouting", "prio": 100}


@pytest.mark.parametrize(("statements", "certain"), EFFECTS)
def test_source_nat_is_found_if_the_packet_may_match(statements, certain):
    """``certain`` is None if the rule does not rewrite the packet."""
    ruleset = nft_rules.parse(single_rule(statements, **POSTROUTING))
    packet = replace(PACKET, iif="", oif="eth0", uid=998, src_fib="unicast", status="none")
    found = [reached.certain for reached in ruleset.reached("postrouting", packet) if reached.rule.effect == SNAT]
    assert found == ([] if certain is None else [certain])


@pytest.mark.parametrize("statement", [{"notrack": None}, {"synproxy": {"mss": 1460}}, {"synproxy": None}])
def test_rules_that_bypass_conntrack_are_found(statement):
    listing = single_rule([statement], "ip", "raw", "PREROUTING", hook="prerouting", prio=-300)
    found = [reached.rule.effect for reached in nft_rules.parse(listing).reached("prerouting", PACKET)]
    assert found == ([SYNPROXY] if "synproxy" in statement else [UNTRACK])
    assert nft_rules.parse(listing, saved={"ip raw"}).chains == {}


def test_a_chain_named_like_those_of_iptables_is_read_if_iptables_save_does_not_print_its_table():
    listing = single_rule([{"masquerade": None}], "inet", "nat", "POSTROUTING", **POSTROUTING)
    assert not nft_rules.uses_iptables(listing)
    ruleset = nft_rules.parse(listing, saved={"ip nat"})
    assert [reached.rule.effect for reached in ruleset.reached("postrouting", PACKET)] == [SNAT]
