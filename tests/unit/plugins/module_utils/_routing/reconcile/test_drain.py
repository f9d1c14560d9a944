# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When retiring objects expire, for given times and connection counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import (
    Address,
    Mark,
    Route,
    Rule,
    Setting,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import drain
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.state import State

LOOKUP = Rule("ipv4", 1100, table=20112, fwmark=12, fwmask=255)
GUARD = Rule("ipv4", 1101, action="unreachable", fwmark=12, fwmask=255)
BY_SOURCE = Rule("ipv4", 1100, table=20100, src="198.18.0.22", ip_proto="tcp")
ROUTE = Route("ipv4", 20112, via="198.18.0.12", dev="eth0")
SHARED = Route("ipv4", 20100, type="local")
MARK = Mark("a2", 12, 255, ("02:00:00:00:00:12",), ("198.18.0.12",))
ADDRESS = Address("ipv4", "198.18.0.121", "eth0")
HAVE = State((LOOKUP, GUARD, BY_SOURCE), (ROUTE, SHARED), (MARK,), (), True, (ADDRESS,))
EMPTY = Document("return_path", 202)
NEW = replace(EMPTY, marks=(Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",)),))


def objects(found: Document) -> list:
    return [value for section in drain.SECTIONS for value in getattr(found, section)]


def counting(**counts: int | None):
    return lambda mark, mask: counts.get(f"m{mark}", 0) if mask == 255 else None


def test_only_unlisted_objects_retire():
    begun = drain.begin(NEW, HAVE, None, 1000.9)
    retiring = {LOOKUP, GUARD, BY_SOURCE, ROUTE, SHARED, replace(MARK, macs=()), ADDRESS}
    assert set(objects(begun)) == {*objects(NEW), *retiring}
    assert {value.retire_at for value in drain.retiring_until(begun)} == {1000}
    assert len(drain.retiring_until(begun)) == 7
    assert documents.dump(documents.load(documents.dump(begun))) == documents.dump(begun), "it can be stored"
    moved = {"rules": (replace(LOOKUP, table=7),), "routes": (replace(ROUTE, via="198.18.0.99"),)}
    named = replace(EMPTY, marks=(MARK,), **moved)
    begun = drain.begin(named, HAVE, None, 1000)
    assert set(drain.retiring_until(begun)) == {GUARD, BY_SOURCE, SHARED, ADDRESS}


def test_a_second_drain_does_not_extend_the_time():
    stored = replace(EMPTY, rules=(replace(LOOKUP, retiring=True, retire_at=500), replace(GUARD, retiring=True)))
    begun = drain.begin(EMPTY, State((LOOKUP, GUARD)), stored, 1000)
    assert {value: value.retire_at for value in begun.rules} == {LOOKUP: 500, GUARD: 1000}


OTHER_MASK = replace(EMPTY, marks=(Mark("a", 0x1100, 0xFF00, via=("198.18.0.11",)),))


@pytest.mark.parametrize(("new", "mark"), [(OTHER_MASK, MARK), (NEW, replace(MARK, via=()))])
def test_a_mark_with_another_mask_or_without_next_hop_retires_and_can_be_stored(new, mark):
    begun = drain.begin(new, State(marks=(mark,)), None, 1000)
    assert drain.retiring_until(begun) == [replace(mark, macs=())]
    assert set(documents.load(documents.dump(begun)).marks) == set(begun.marks)


ODD = [Rule("ipv4", 0, table=7, iif="lo"), Rule("ipv4", 5, table=254, iif="lo"), replace(ROUTE, table=254)]


@pytest.mark.parametrize("odd", ODD)
def test_objects_that_no_document_can_contain_do_not_retire(odd):
    """Someone added it with our protocol number; stored, it would make the document invalid."""
    have = State(routes=(odd,)) if isinstance(odd, Route) else State((odd,))
    assert drain.begin(EMPTY, have, None, 1000) == EMPTY


BEGUN = drain.begin(EMPTY, HAVE, None, 1000)
WITH_ID = {LOOKUP, GUARD, ROUTE, replace(MARK, macs=())}
WITHOUT_ID = {BY_SOURCE, SHARED, ADDRESS}


@pytest.mark.parametrize(("now", "counts", "left"), [
    (999, {"m12": 1}, WITH_ID | WITHOUT_ID),
    (999, {"m12": 0}, WITHOUT_ID),
    (999, {"m12": None}, WITH_ID | WITHOUT_ID),
    (1000, {"m12": 1}, set()),
])  # fmt: skip
def test_retiring_objects_expire_with_their_connections_or_their_time(now, counts, left):
    assert set(objects(drain.without_expired(BEGUN, now, counting(**counts)))) == left


def test_a_table_of_two_ids_stays_while_one_has_connections():
    routes = (replace(ROUTE, retiring=True, retire_at=9),)
    both = replace(EMPTY, rules=(LOOKUP, replace(LOOKUP, fwmark=13)), routes=routes)
    assert drain.without_expired(both, 5, counting(m12=0, m13=1)).routes
    assert not drain.without_expired(both, 5, counting(m12=0, m13=0)).routes


def test_objects_without_conntrack_and_a_held_sysctl_stay_for_the_whole_time():
    single = replace(MARK, conntrack=False)
    begun = drain.begin(EMPTY, replace(HAVE, marks=(single,)), None, 1000)
    left = drain.retiring_until(drain.without_expired(begun, 999, counting(m12=0)))
    assert {LOOKUP, GUARD, ROUTE, replace(single, macs=())} <= set(left)
    assert drain.retiring_until(drain.without_expired(begun, 1000, counting(m12=0))) == []
    held = Setting("net.ipv4.tcp_fwmark_accept", "1", held=True, restore="0")
    begun = drain.begin(EMPTY, State(sysctls=(held, Setting("net.ipv4.ip_forward", "0"))), None, 1000)
    assert [(one.name, one.value, one.retiring) for one in begun.sysctls] == [(held.name, "1", True)]
    assert drain.without_expired(begun, 999, counting()).sysctls
    assert not drain.without_expired(begun, 1000, counting()).sysctls


def test_no_object_expires_early_before_settle_at_which_moves_only_if_more_objects_retire():
    begun = drain.begin(EMPTY, HAVE, None, 1000, 500)
    assert begun.settle_at == 500
    assert drain.without_expired(begun, 499, counting()) == begun
    assert set(objects(drain.without_expired(begun, 500, counting()))) == WITHOUT_ID
    assert drain.without_expired(begun, 1000, counting()) == EMPTY
    assert drain.begin(EMPTY, HAVE, begun, 1100, 600) == begun
    more = replace(HAVE, rules=(*HAVE.rules, replace(LOOKUP, fwmark=13)))
    assert drain.begin(EMPTY, more, begun, 1100, 600).settle_at == 600


def test_objects_without_a_time_never_expire():
    for_ever = replace(EMPTY, rules=(replace(LOOKUP, retiring=True),))
    assert (drain.without_expired(for_ever, 10**12, counting()), drain.next_due(for_ever, 0)) == (for_ever, None)


def test_each_id_is_counted_once():
    asked = []
    drain.without_expired(BEGUN, 5, lambda mark, mask: asked.append((mark, mask)))
    assert asked == [(12, 255)]


@pytest.mark.parametrize(("now", "expected"), [(0, 5.0), (997, 3.0), (1001, 0.0)])
def test_the_next_run_is_due_within_the_counting_interval(now, expected):
    assert drain.next_due(BEGUN, now) == expected


def test_the_desired_state_contains_what_still_retires():
    kept = State((replace(LOOKUP, fwmark=11), replace(GUARD, retiring=True)))
    found = drain.with_retiring(kept, replace(EMPTY, rules=(replace(LOOKUP, retiring=True),)))
    assert [(rule.fwmark, rule.retiring) for rule in found.rules] == [(11, False), (12, True)]
