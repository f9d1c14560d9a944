# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packet filters that drop clients, overwrite marks, bypass conntrack or send clients to containers."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Socket

from .. import cases
from ..cases import BACKEND, GIVEN, PROXY, SERVED, A, filtered, listening_on, peer

NO_CLIENTS = "drops clients such as 198.51.100.254"
DNAT = "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2"
SERVES_DNS = {"sockets": (Socket("udp", "0.0.0.0", 53),)}


def firewall(facts, *rules, policy="DROP", **changes):
    return filtered(facts, *(f"-A INPUT {rule}" for rule in rules), policy=policy, **changes)


def mangle(rule, **changes):
    return filtered(BACKEND, f"-A {rule}", table="mangle", **changes)


def raw(rule, facts=BACKEND, **changes):
    return filtered(facts, f"-A {rule}", table="raw", **changes)


PROBLEMS = [
    (firewall(BACKEND, f"-s {A}/32 -j ACCEPT", **SERVED, **GIVEN), "fail firewall",
     f"accepts proxy a but {NO_CLIENTS} at tcp port 8080"),
    (firewall(BACKEND, **SERVED), "warn firewall", NO_CLIENTS),
    (firewall(BACKEND, "-m set --match-set ok src -j ACCEPT", **SERVED, **GIVEN), "warn firewall",
     "a rule before it that the doctor cannot interpret"),
    (firewall(PROXY, replies={}, **GIVEN), "fail firewall", NO_CLIENTS),
    (firewall(PROXY, "-p tcp -m tcp --dport 80 -j ACCEPT"), "fail firewall", "drops replies of backend 198.18.0.21"),
    (firewall(listening_on("0.0.0.0"), "-p tcp -m tcp --dport 8004 -j DROP", policy="ACCEPT", **GIVEN), "fail firewall",
     f"{NO_CLIENTS} at tcp port 8004 ("),
    (mangle("OUTPUT -j MARK --set-xmark 0x1/0xffffffff"), "warn mark_clobbered", "may overwrite bits 0xff"),
    (mangle("PREROUTING -j CONNMARK --set-xmark 0x80/0x80"), "fail mark_clobbered", "overwrites bits 0xff"),
    (mangle("PREROUTING -p tcp --dport 22 -j CONNMARK --set-xmark 0x1/0x3"), "warn mark_clobbered",
     "may overwrite bits 0xff"),
    (raw("PREROUTING -p udp -m udp --dport 53 -j CT --notrack", ports=(("udp", 53),)), "fail untracked",
     "-j CT --notrack` in chain iptables raw PREROUTING disables conntrack for udp port 53 of this backend"),
    (raw("PREROUTING -p udp -m udp --dport 53 -j NOTRACK", **SERVES_DNS), "warn untracked",
     "return_path_strategy: address"),
    (raw("OUTPUT -j NOTRACK"), "fail untracked", "disables conntrack for every port"),
    (firewall(BACKEND, "-p tcp -m tcp --dport 8080 -j SYNPROXY --mss 1460", policy="ACCEPT", **SERVED),
     "fail untracked", "answers in place of the server at tcp port 8080"),
    (filtered(BACKEND, f"{DNAT}:80", table="nat"), "warn containers", "sends published ports to containers"),
]  # fmt: skip
FINE = [
    ("firewall", firewall(BACKEND)),
    ("firewall", firewall(BACKEND, "-p tcp --dport 8080 -j ACCEPT", **SERVED, **GIVEN)),
    ("firewall", firewall(listening_on("0.0.0.0"), "-p tcp -m tcp --dport 9000 -j DROP", policy="ACCEPT", **GIVEN)),
    ("mark_clobbered", mangle("OUTPUT -j MARK --set-xmark 0x100/0xff00")),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -j MARK --set-mark 0xca6c")),
    ("mark_clobbered", mangle("OUTPUT -s 192.0.2.1/32 -j MARK --set-mark 1")),
    ("untracked", raw("PREROUTING -j NOTRACK", peer(tracked=False), **SERVED)),
    ("untracked", raw("PREROUTING -p udp -m udp --dport 53 -j CT --notrack", **SERVED)),
    ("untracked", raw("PREROUTING -i lo -j NOTRACK", **SERVED)),
    ("untracked", raw("PREROUTING -s 10.0.0.0/8 -j NOTRACK", **SERVED)),
    ("untracked", raw("PREROUTING -j CT --zone 5", **SERVED)),
    ("containers", filtered(BACKEND, DNAT, table="nat", restores_forwarded=True)),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)


@pytest.mark.parametrize(("target", "offer"), [("--set-xmark 0x80/0x80", "{mark_mask: 0xff00}"), ("--set-mark 1", "")])
def test_the_fix_for_a_clobbered_mark_offers_bits_that_the_rule_leaves_alone(target, offer):
    line = cases.lines(mangle(f"PREROUTING -j CONNMARK {target}"), "mark_clobbered")
    assert (f"l4proxy_numbers: {offer}" in line) if offer else (line and "l4proxy_numbers" not in line)
