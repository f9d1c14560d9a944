# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packet filters that drop clients, overwrite marks, bypass conntrack or send clients to containers."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Socket
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor import cases
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor.cases import (
    BACKEND,
    GIVEN,
    PROXY,
    SERVED,
    A,
    filtered,
    listening_on,
    peer,
)

CLIENTS_DROPPED = "drops clients such as 198.51.100.254"
DNAT = "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2"
SERVES_DNS = {"sockets": (Socket("udp", "0.0.0.0", 53),)}
PROBLEMS = [
    (
        filtered(BACKEND, f"-A INPUT -s {A}/32 -j ACCEPT", policy="DROP", **SERVED, **GIVEN),
        "fail firewall",
        f"accepts proxy a but {CLIENTS_DROPPED} at tcp port 8080",
    ),
    (filtered(BACKEND, policy="DROP", **SERVED), "warn firewall", CLIENTS_DROPPED),
    (
        filtered(BACKEND, "-A INPUT -m set --match-set ok src -j ACCEPT", policy="DROP", **SERVED, **GIVEN),
        "warn firewall",
        "a rule before it that the doctor cannot interpret",
    ),
    (filtered(PROXY, policy="DROP", replies={}, **GIVEN), "fail firewall", CLIENTS_DROPPED),
    (
        filtered(PROXY, "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", policy="DROP"),
        "fail firewall",
        "drops replies of backend 198.18.0.21",
    ),
    (
        filtered(listening_on("0.0.0.0"), "-A INPUT -p tcp -m tcp --dport 8004 -j DROP", **GIVEN),
        "fail firewall",
        f"{CLIENTS_DROPPED} at tcp port 8004 (",
    ),
    (
        filtered(BACKEND, "-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff", table="mangle"),
        "warn mark_clobbered",
        "may overwrite bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -j CONNMARK --set-xmark 0x80/0x80", table="mangle"),
        "fail mark_clobbered",
        "overwrites bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p tcp --dport 22 -j CONNMARK --set-xmark 0x1/0x3", table="mangle"),
        "warn mark_clobbered",
        "may overwrite bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack", table="raw", ports=(("udp", 53),)),
        "fail untracked",
        "-j CT --notrack` in chain iptables raw PREROUTING disables conntrack for udp port 53 of this backend",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK", table="raw", **SERVES_DNS),
        "warn untracked",
        "return_path_strategy: address",
    ),
    (filtered(BACKEND, "-A OUTPUT -j NOTRACK", table="raw"), "fail untracked", "disables conntrack for every port"),
    (
        filtered(BACKEND, "-A INPUT -p tcp -m tcp --dport 8080 -j SYNPROXY --mss 1460", **SERVED),
        "fail untracked",
        "answers in place of the server at tcp port 8080",
    ),
    (filtered(BACKEND, f"{DNAT}:80", table="nat"), "warn containers", "sends published ports to containers"),
]
FINE = [
    ("firewall", filtered(BACKEND, policy="DROP")),
    ("firewall", filtered(BACKEND, "-A INPUT -p tcp --dport 8080 -j ACCEPT", policy="DROP", **SERVED, **GIVEN)),
    ("firewall", filtered(listening_on("0.0.0.0"), "-A INPUT -p tcp -m tcp --dport 9000 -j DROP", **GIVEN)),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -j MARK --set-xmark 0x100/0xff00", table="mangle")),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -j MARK --set-mark 0xca6c")),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -s 192.0.2.1/32 -j MARK --set-mark 1", table="mangle")),
    ("untracked", filtered(peer(tracked=False), "-A PREROUTING -j NOTRACK", table="raw", **SERVED)),
    *(
        ("untracked", filtered(BACKEND, f"-A PREROUTING {rule}", table="raw", **SERVED))
        for rule in (
            "-p udp -m udp --dport 53 -j CT --notrack",
            "-i lo -j NOTRACK",
            "-s 10.0.0.0/8 -j NOTRACK",
            "-j CT --zone 5",
        )
    ),
    ("containers", filtered(BACKEND, DNAT, table="nat", restores_forwarded=True)),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)


@pytest.mark.parametrize(
    ("target", "offer"),
    [("--set-xmark 0x80/0x80", "l4proxy_numbers: {mark_mask: 0xff00}"), ("--set-mark 1", None)],
    ids=["some bits are unused", "no bits are unused"],
)
def test_the_fix_for_a_clobbered_mark_offers_bits_that_the_rule_leaves_alone(target, offer):
    line = cases.lines(filtered(BACKEND, f"-A PREROUTING -j CONNMARK {target}", table="mangle"), "mark_clobbered")
    assert line
    assert offer in line if offer else "l4proxy_numbers" not in line
