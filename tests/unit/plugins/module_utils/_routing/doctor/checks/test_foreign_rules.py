# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes and marks of other owners that conflict with ours."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor import cases
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor.cases import (
    BACKEND,
    BY_OTHER,
    PROXY,
    A,
    B,
    backend,
    foreign_route,
    foreign_rule,
    proxy,
    with_rules,
)

NOT_APPLIED = {"applied": False}
PROBLEMS = [
    (
        proxy(own=frozenset({A, B})),
        "fail own_traffic",
        "ipproto tcp lookup 20100` has 198.18.0.21 as its source, which is this host's own address",
    ),
    (
        with_rules(PROXY, foreign_rule(priority=9, ip_proto=6, table=20100)),
        "fail own_traffic",
        "`ip rule 9: from all ipproto tcp lookup 20100` would deliver all packets that this host sends",
    ),
    (
        backend(routes=(*BACKEND.routes, foreign_route(table=20111, via="198.18.0.1", metric=5))),
        "fail taken",
        "table 20111 already holds routes of another owner (proto boot)",
    ),
    (
        with_rules(BACKEND, foreign_rule(priority=1100, fwmark=11, fwmask=255, table=7)),
        "fail taken",
        "rule priority 1100 already has these selectors",
    ),
    (
        with_rules(BACKEND, foreign_rule(3, priority=100, table=254), replies=BY_OTHER),
        "fail rule_before",
        "`ip rule 100: from all lookup 254` (proto boot) precedes our rule at priority 1100",
    ),
    (
        with_rules(BACKEND, foreign_rule(priority=5, src="198.18.0.0/24", action="prohibit"), **NOT_APPLIED),
        "fail rule_before",
        "prohibit",
    ),
    # The keeper can place our rules in front only where a lower number is free.
    *(
        (with_rules(facts, foreign_rule(priority=number, table=254), **NOT_APPLIED), f"{status} rule_before", "254")
        for facts in (BACKEND, PROXY)
        for number, status in ((5, "warn"), (1, "fail"))
    ),
    (
        with_rules(BACKEND, foreign_rule(priority=2000, fwmark=0x10B, fwmask=0xFFF, table=7)),
        "warn mark_shared",
        "our bits (0xb/0xff)",
    ),
]
FINE = [
    ("rule_before", with_rules(BACKEND, foreign_rule(priority=0, table=255))),
    ("rule_before", with_rules(BACKEND, foreign_rule(priority=32766, table=254))),
    ("rule_before", with_rules(BACKEND, foreign_rule(priority=5, fwmark=0x10000, fwmask=0x10000, table=7))),
    ("rule_before", with_rules(BACKEND, foreign_rule(priority=5, table=254, suppress_prefixlength=0), **NOT_APPLIED)),
    ("rule_before", with_rules(PROXY, foreign_rule(priority=9, src=B, table=20100))),
    ("mark_shared", with_rules(BACKEND, foreign_rule(priority=5, fwmark=0x10000, fwmask=0xFF0000, table=7))),
    ("own_traffic", with_rules(PROXY, foreign_rule(priority=9, fwmark=1, table=20100))),
    ("own_traffic", with_rules(PROXY, foreign_rule(priority=9, table=20100, suppress_prefixlength=0))),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)


@pytest.mark.parametrize(
    ("mark", "mask", "free"), [(0xB, 0xFF, "0xff00"), (0xB0B, 0xFFFF, "0xff0000")], ids=["one byte", "two bytes"]
)
def test_the_fix_for_a_shared_mark_offers_unused_bits(mark, mask, free):
    facts = with_rules(BACKEND, foreign_rule(priority=5, fwmark=mark, fwmask=mask, table=7))
    assert f"l4proxy_numbers: {{mark_mask: {free}}}" in cases.lines(facts, "mark_shared")
