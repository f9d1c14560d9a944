# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes and marks of other owners that conflict with ours."""

from __future__ import annotations

import pytest

from .. import cases
from ..cases import BACKEND, BY_OTHER, PROXY, A, B, backend, foreign_route, foreign_rule, proxy, with_rules

NOT_APPLIED = {"applied": False}


def foreign(facts, priority, changes=None, protocol=0, **rule):
    return with_rules(facts, foreign_rule(protocol, priority=priority, **rule), **(changes or {}))


DELIVERS_ALL = "`ip rule 9: from all ipproto tcp lookup 20100` would deliver all packets that this host sends"
PROBLEMS = [
    (proxy(own=frozenset({A, B})), "fail own_traffic",
     "ipproto tcp lookup 20100` has 198.18.0.21 as its source, which is this host's own address"),
    (foreign(PROXY, 9, ip_proto=6, table=20100), "fail own_traffic", DELIVERS_ALL),
    (backend(routes=(*BACKEND.routes, foreign_route(table=20111, via="198.18.0.1", metric=5))), "fail taken",
     "table 20111 already holds routes of another owner (proto boot)"),
    (foreign(BACKEND, 1100, fwmark=11, fwmask=255, table=7), "fail taken", "priority 1100 already has these selectors"),
    (foreign(BACKEND, 100, {"replies": BY_OTHER}, protocol=3, table=254), "fail rule_before",
     "`ip rule 100: from all lookup 254` (proto boot) precedes our rule at priority 1100"),
    (foreign(BACKEND, 5, NOT_APPLIED, src="198.18.0.0/24", action="prohibit"), "fail rule_before", "prohibit"),
    # The keeper can place our rules in front only where a lower number is free.
    (foreign(BACKEND, 5, NOT_APPLIED, table=254), "warn rule_before", "lookup 254"),
    (foreign(BACKEND, 1, NOT_APPLIED, table=254), "fail rule_before", "lookup 254"),
    (foreign(PROXY, 5, NOT_APPLIED, table=254), "warn rule_before", "lookup 254"),
    (foreign(PROXY, 1, NOT_APPLIED, table=254), "fail rule_before", "lookup 254"),
    (foreign(BACKEND, 2000, fwmark=0x10B, fwmask=0xFFF, table=7), "warn mark_shared", "our bits (0xb/0xff)"),
]  # fmt: skip
FINE = [
    ("rule_before", foreign(BACKEND, 0, table=255)),
    ("rule_before", foreign(BACKEND, 32766, table=254)),
    ("rule_before", foreign(BACKEND, 5, fwmark=0x10000, fwmask=0x10000, table=7)),
    ("rule_before", foreign(BACKEND, 5, NOT_APPLIED, table=254, suppress_prefixlength=0)),
    ("rule_before", foreign(PROXY, 9, src=B, table=20100)),
    ("mark_shared", foreign(BACKEND, 5, fwmark=0x10000, fwmask=0xFF0000, table=7)),
    ("own_traffic", foreign(PROXY, 9, fwmark=1, table=20100)),
    ("own_traffic", foreign(PROXY, 9, table=20100, suppress_prefixlength=0)),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)


@pytest.mark.parametrize(("mark", "mask", "free"), [(0xB, 0xFF, "0xff00"), (0xB0B, 0xFFFF, "0xff0000")])
def test_the_fix_for_a_shared_mark_offers_unused_bits(mark, mask, free):
    line = cases.lines(foreign(BACKEND, 5, fwmark=mark, fwmask=mask, table=7), "mark_shared")
    assert f"l4proxy_numbers: {{mark_mask: {free}}}" in line
