# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which rule matches which reply."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import rule_matching
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import KernelObject, Rule

from . import cases

SENT, RECEIVED = cases.REPLY, cases.RECEIVED[0]
MATCHES = [
    (SENT, {}, True),
    (SENT, {"fwmark": 11, "fwmask": 255}, True),
    (SENT, {"fwmark": 11}, True),
    (SENT, {"fwmark": 12, "fwmask": 255}, False),
    (SENT, {"fwmark": 3, "fwmask": 3}, True),
    (SENT, {"src": "198.18.0.0/24"}, True),
    (SENT, {"src": "198.18.1.0/24"}, False),
    (SENT, {"dst": f"{cases.CLIENT}/32"}, True),
    (SENT, {"iif": "lo"}, True),
    (SENT, {"iif": "eth0"}, False),
    (SENT, {"oif": "eth0"}, False),
    (SENT, {"ip_proto": 17}, False),
    (SENT, {"ip_proto": 6, "dport": (80, 80)}, False),
    (SENT, {"ip_proto": 6, "sport": (80, 80)}, False),
    (SENT, {"family": "ipv6"}, False),
    (SENT, {"uid_range": (0, 0)}, True),
    (RECEIVED, {"iif": "eth0"}, True),
    (RECEIVED, {"iif": "lo"}, False),
]


@pytest.mark.parametrize(("reply", "values", "expected"), MATCHES)
def test_a_rule_matches_a_reply_by_each_selector(reply, values, expected):
    rule = Rule(**{"family": "ipv4", "priority": 5, "table": 7, **values})
    assert rule_matching.matches(rule, reply) == expected


def found(priority: int, protocol: int = 3, **values) -> KernelObject:
    return cases.foreign_rule(protocol, **{"priority": priority, "table": 7, **values})


OURS = KernelObject(SENT.rule, 202, "ipv4")
EARLY, SAME, LATE = found(5), found(1100), found(2000)
LANDED, LATE_MOVED = found(0), KernelObject(replace(SENT.rule, priority=3), 202, "ipv4")
NOT_TUNNELLED = KernelObject(None, 3, "ipv4", seen=found(9, fwmark=0xCA6C).value, inverted=True)
NOT_OURS = KernelObject(None, 3, "ipv4", seen=found(9, fwmark=11, fwmask=255).value, inverted=True)
# (the listing, who comes first)
PRECEDING = [
    ([EARLY, OURS], [EARLY]),
    ([SAME, OURS], [SAME]),
    ([OURS, SAME, LATE], []),
    ([EARLY, SAME], [EARLY]),  # ours is missing, and would be added after those of its priority
    ([found(5, protocol=201), found(6, src="10.0.0.0/8"), OURS], []),
    # Priority 0 has the kernel's own rule for table local, and perhaps a foreign one.
    ([found(0, table=255), LANDED, OURS], [LANDED]),
    ([KernelObject(None, 3, "ipv4"), OURS], []),
    ([NOT_TUNNELLED, OURS], [NOT_TUNNELLED]),
    ([NOT_OURS, OURS], []),
    # Our rule has been moved to another priority.
    ([LATE_MOVED, EARLY], []),
    ([found(2), LATE_MOVED], [found(2)]),
]


@pytest.mark.parametrize(("listing", "expected"), PRECEDING)
def test_foreign_rules_that_precede_ours_are_found(listing, expected):
    foreign = rule_matching.foreign_rules(listing, frozenset({201, 202}))
    assert rule_matching.preceding(SENT, listing, foreign) == expected


OVERLAP = [(0x10B, 0xFFF, True), (0xB, 0xFF, True), (0x3, 0x3, True), (0x10000, 0xFF0000, False), (0xC, 0xFF, False)]


@pytest.mark.parametrize(("mark", "mask", "expected"), OVERLAP)
def test_marks_overlap_if_one_packet_can_match_both(mark, mask, expected):
    rule = Rule("ipv4", 5, table=7, fwmark=mark, fwmask=mask)
    assert rule_matching.marks_overlap(rule, 11, 255) == expected
    assert not rule_matching.marks_overlap(Rule("ipv4", 5, table=7, iif="lo"), 11, 255)


def test_a_found_rule_is_formatted_like_ip_does():
    assert rule_matching.format_found(EARLY) == "ip rule 5: from all lookup 7"
    assert rule_matching.format_found(KernelObject(None, 3, "ipv6")) == "ip -6 rule with an unknown selector"


def test_a_prefix_of_one_address_is_that_host():
    assert rule_matching.host_of("198.18.0.21/32") == "198.18.0.21"
    assert rule_matching.host_of("198.18.0.0/24") is None
    assert rule_matching.host_of(None) is None
