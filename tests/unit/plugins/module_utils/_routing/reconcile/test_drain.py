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
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import drain, resolve_marks
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.needs import Marked
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.run import Cut
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
    """Counts by the mark of a need (m12) or by its class (To); 0 for all others."""
    return lambda wanted, _exact: {
        need: counts.get(f"m{need.mark}" if isinstance(need, Marked) else type(need).__name__, 0) for need in wanted
    }


def left(document: Document, now: float, **counts: int | None) -> Document:
    return drain.without_expired(document, now, counting(**counts))[0]


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


def test_while_the_last_sender_of_a_port_retires_its_route_can_still_move_and_its_marks_follow():
    rule = replace(LOOKUP, priority=1099, table=20712, ip_proto=6, sport=(80, 80))
    moved = Route("ipv4", 20712, via="198.18.0.11", dev="eth0")
    stored = replace(moved, via="198.18.0.12", dev=None, fallback=("198.18.0.11",))
    live = replace(MARK, last_sender=("tcp/80", "tcp/90"))
    begun = drain.begin(NEW, State((rule,), (moved,)), replace(EMPTY, rules=(rule,), routes=(stored,)), 1000)
    assert begun.routes == (stored,)
    assert begun.routes[0].retiring
    want = drain.with_retiring(State(marks=(MARK,)), begun)
    (kept,) = resolve_marks.with_last_senders(want, State(marks=(live,))).marks
    assert kept.last_sender == ("tcp/80",)
    assert resolve_marks.with_last_senders(State(marks=(MARK,)), State(marks=(live,))).marks == (MARK,)


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
ADDED = {ADDRESS}
UNLISTED = {BY_SOURCE, SHARED}  # what a rule without iif selects may be routed through this host


@pytest.mark.parametrize(("now", "counts", "expected"), [
    (999, {"m12": 1, "To": 1, "Unknown": None}, WITH_ID | ADDED | UNLISTED),
    (999, {"m12": None, "To": None, "Unknown": None}, WITH_ID | ADDED | UNLISTED),
    (999, {"m12": 0, "To": 1}, ADDED),
    (999, {"m12": 1}, WITH_ID),
    (999, {"Unknown": None}, UNLISTED),
    (1000, {"m12": 1, "To": 1}, set()),
])  # fmt: skip
def test_retiring_objects_expire_with_their_connections_or_their_time(now, counts, expected):
    assert set(objects(left(BEGUN, now, **counts))) == expected


def test_without_a_limit_the_uncountable_stays_for_a_day_and_what_is_in_use_for_years():
    begun = drain.begin(EMPTY, HAVE, None, 5000 + drain.UNLIMITED, 5600)
    assert documents.load(documents.dump(begun)), "version 0.1.0 reads it too"
    counts = {"m12": 1, "To": None, "Unknown": None}
    assert set(objects(left(begun, 5000 + drain.DAY - 1, **counts))) == WITH_ID | ADDED | UNLISTED
    assert set(objects(left(begun, 5000 + drain.DAY, **counts))) == WITH_ID
    assert set(objects(left(begun, 5000 + 900 * drain.DAY, **counts))) == WITH_ID
    capped = drain.begin(EMPTY, HAVE, begun, 7000)
    assert {value.retire_at for value in drain.retiring_until(capped)} == {7000}, "a later run sets a limit"
    capped_first = drain.begin(EMPTY, HAVE, capped, 8000 + drain.UNLIMITED)
    assert {value.retire_at for value in drain.retiring_until(capped_first)} == {7000}


def test_what_the_end_of_a_drain_cuts_is_reported_once_for_the_same_connections():
    _left, cut = drain.without_expired(BEGUN, 1000, counting(m12=3, To=1, Unknown=None))
    assert cut == (Cut("nft mark a2 0xc/0xff via 198.18.0.12", 3), Cut("ip addr 198.18.0.121 dev eth0", 1))
    assert drain.without_expired(BEGUN, 999, counting(m12=3))[1] == ()


def test_a_table_of_two_ids_stays_while_one_has_connections():
    routes = (replace(ROUTE, retiring=True, retire_at=9),)
    both = replace(EMPTY, rules=(LOOKUP, replace(LOOKUP, fwmark=13)), routes=routes)
    assert left(both, 5, m12=0, m13=1).routes
    assert not left(both, 5, m12=0, m13=0).routes


def test_a_held_sysctl_stays_as_long_as_any_other_object():
    held = Setting("net.ipv4.tcp_fwmark_accept", "1", held=True, restore="0")
    have = replace(HAVE, sysctls=(held, Setting("net.ipv4.ip_forward", "0")))
    begun = drain.begin(EMPTY, have, None, 1000)
    assert [(one.name, one.value, one.retiring) for one in begun.sysctls] == [(held.name, "1", True)]
    assert left(begun, 999, To=1).sysctls
    assert not left(begun, 999).sysctls
    assert not left(begun, 1000, To=1).sysctls


def test_no_object_expires_early_before_settle_at_which_moves_only_if_more_objects_retire():
    begun = drain.begin(EMPTY, HAVE, None, 1000, 500)
    assert begun.settle_at == 500
    assert left(begun, 499) == begun
    assert set(objects(left(begun, 500, To=1))) == ADDED
    assert left(begun, 1000) == EMPTY
    assert drain.begin(EMPTY, HAVE, begun, 1100, 600) == begun
    more = replace(HAVE, rules=(*HAVE.rules, replace(LOOKUP, fwmark=13)))
    assert drain.begin(EMPTY, more, begun, 1100, 600).settle_at == 600


def test_objects_without_a_time_never_expire():
    for_ever = replace(EMPTY, rules=(replace(LOOKUP, retiring=True),))
    assert (left(for_ever, 10**12), drain.next_due(for_ever, 0)) == (for_ever, None)


def test_nothing_is_counted_before_settle_at():
    def refuse(*_wanted):
        raise AssertionError("counted")

    begun = drain.begin(EMPTY, HAVE, None, 1000, 500)
    assert drain.without_expired(begun, 499, refuse) == (begun, ())


SETTLING = drain.begin(EMPTY, HAVE, None, 10000, 500)


@pytest.mark.parametrize(("document", "now", "expected"), [
    (BEGUN, 0, 5.0),
    (BEGUN, 997, 3.0),
    (BEGUN, 1001, 0.0),
    (SETTLING, 100, 400),
    (SETTLING, 500, 5),
    (SETTLING, 800, 30),
    (SETTLING, 5000, 60),
])  # fmt: skip
def test_objects_are_counted_less_often_the_older_they_are(document, now, expected):
    assert drain.next_due(document, now) == expected


def test_the_desired_state_contains_what_still_retires():
    kept = State((replace(LOOKUP, fwmark=11), replace(GUARD, retiring=True)))
    found = drain.with_retiring(kept, replace(EMPTY, rules=(replace(LOOKUP, retiring=True),)))
    assert [(rule.fwmark, rule.retiring) for rule in found.rules] == [(11, False), (12, True)]
