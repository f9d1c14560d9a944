# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The priorities of our rules among foreign ones; tests/kernel/keeper/test_foreign_rules.py tests the kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import KernelObject, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import placement

LOOKUP = Rule("ipv4", 1100, table=20111, fwmark=11, fwmask=255)
GUARD = Rule("ipv4", 1101, action="unreachable", fwmark=11, fwmask=255)
WAY_BACK = [LOOKUP, GUARD]
DELIVERY = [Rule("ipv4", 1100, table=20100, src="198.18.0.21", iif="eth0", ip_proto=6)]


def other(priority: int, inverted: bool = False, partly: bool = False, protocol: int = 3, **values) -> KernelObject:
    rule = Rule(**{"family": "ipv4", "priority": priority, "table": 51820, **values})
    exact = not (inverted or partly or rule.action in ("goto", "nop"))
    return KernelObject(rule if exact else None, protocol, rule.family, seen=rule, inverted=inverted, partly=partly)


LOCAL = other(0, table=255, protocol=2)
LOCAL_AT_9 = replace(LOCAL, seen=replace(LOCAL.seen, priority=9))
WG_QUICK = [other(1098, table=254, suppress_prefixlength=0), other(1099, inverted=True, fwmark=0xCA6C)]
# (rules of the document, those of others, where the document's stand)
PLACES = {
    "nobody else": (WAY_BACK, [], [1100, 1101]),
    "wg-quick up": (WAY_BACK, WG_QUICK, [1096, 1097]),
    "on a proxy": (DELIVERY, WG_QUICK, [1097]),
    "behind ours": (WAY_BACK, [other(1102), other(32765)], [1100, 1101]),
    "of equal priority": (DELIVERY, [other(1100)], [1099]),
    "of another family": (WAY_BACK, [other(9, family="ipv6")], [1100, 1101]),
    "of another source": (DELIVERY, [other(9, src="10.0.0.0/8")], [1100]),
    "of that source": (DELIVERY, [other(9, src="198.18.0.0/24")], [8]),
    "of another interface": (DELIVERY, [other(9, iif="eth1")], [1100]),
    "of another protocol": (DELIVERY, [other(9, ip_proto=17)], [1100]),
    "by a mark of its own": (WAY_BACK, [other(9, fwmark=0x200, fwmask=0xF00)], [1100, 1101]),
    "by no mark": (DELIVERY, [other(9, partly=True, fwmark=0, fwmask=0xFF)], [8]),
    "by our mark": (WAY_BACK, [other(9, fwmark=11)], [7, 8]),
    "of bound sockets": (WAY_BACK, [other(9, oif="eth0")], [1100, 1101]),
    "not ours": (WAY_BACK, [other(9, inverted=True, fwmark=11, fwmask=255)], [1100, 1101]),
    "not from the backend": (DELIVERY, [other(9, inverted=True, src="198.18.0.21")], [1100]),
    "not from some": (DELIVERY, [other(9, inverted=True, src="10.0.0.0/8")], [8]),
    "into our table": (DELIVERY, [other(9, table=20100)], [1100]),
    "for own addresses": (WAY_BACK, [other(9, table=255)], [1100, 1101]),
    "over ours": (WAY_BACK, [other(9, action="goto", table=5000)], [7, 8]),
    "to somewhere before ours": (WAY_BACK, [other(9, action="goto", table=1000)], [1100, 1101]),
    "that does nothing": (WAY_BACK, [other(9, action="nop", table=None)], [1100, 1101]),
    "that drops": (WAY_BACK, [other(9, action="blackhole", table=None)], [1100, 1101]),
    "of a document": (WAY_BACK, [other(9, protocol=201)], [1100, 1101]),
    "the lowest that is free": (WAY_BACK, [other(3)], [1, 2]),
    "no number is free": (WAY_BACK, [other(2)], [1100, 1101]),
    "none below": (DELIVERY, [other(0)], [1100]),
    "not in front of own addresses": (WAY_BACK, [LOCAL_AT_9, other(11)], None),
}  # fmt: skip


BYPASS = Rule("ipv4", 1099, table=254, fwmark=255, fwmask=255)


@pytest.mark.parametrize(("priorities", "expected"), [((1100,), 1099), ((1099,), 1098), ((8, 9), 7)])
def test_the_rule_against_local_delivery_stays_in_front_of_it(priorities, expected):
    """Local delivery has moved in front of a foreign rule, which may not be in the way of this one."""
    listed = [other(number, protocol=201, src="198.18.0.21", table=20100) for number in priorities]
    found = placement.place([BYPASS], [LOCAL, other(10, src="10.0.0.0/8", fwmark=1), *listed])
    assert found.at(BYPASS).priority == expected
    assert placement.warnings(found, "kernel_datapath") == []


@pytest.mark.parametrize(("rules", "foreign", "expected"), PLACES.values(), ids=PLACES)
def test_rules_move_in_front_of_foreign_rules_that_take_their_packets(rules, foreign, expected):
    found = placement.place(rules, [LOCAL, *foreign])
    there = [found.at(rule).priority for rule in rules]
    assert there == (expected or [1100, 1101])
    told = placement.warnings(found, "return_path")
    assert bool(told) == (expected is None or there != [rule.priority for rule in rules] or bool(found.blocking))
    assert placement.as_documented(rules, [found.at(rule) for rule in rules]) == tuple(rules)


def test_retiring_rules_do_not_move():
    leaving = replace(LOOKUP, retiring=True, fwmark=12)
    found = placement.place([*WAY_BACK, leaving], WG_QUICK)
    assert leaving not in found.moved


def test_the_placement_does_not_depend_on_the_current_priorities():
    """Otherwise two runs would have different results."""
    ours = [KernelObject(replace(rule, priority=number), 202, "ipv4") for rule, number in zip(WAY_BACK, (1096, 1097))]
    assert placement.place(WAY_BACK, [LOCAL, *ours, *WG_QUICK]).moved == placement.place(WAY_BACK, WG_QUICK).moved
