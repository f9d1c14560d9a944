# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Choose the priorities of our rules: those of the document, or ones in front of foreign rules that take our packets.

A rule that is added without a priority (by wg-quick, a VPN client, ``ip rule add``) gets the number just below the
lowest existing one, so it precedes ours. Ours then move in front of it, and back when it is gone. Foreign rules with a
priority of their own are treated the same: ours select our packets only. Ours never move in front of a rule that drops
packets (blackhole, unreachable, prohibit), because somebody wants these dropped. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..document import formatting
from ..document.model import MAIN, MAX_U32, OWNERS, KernelObject, Rule, network

LOCAL, MAIN_PRIORITY = 255, 32766


@dataclass(frozen=True)
class Placement:
    """``moved``: each rule of the document that moves, and the rule with its new priority. ``before``: the foreign
    rules that it moves in front of. ``blocking``: foreign rules that no priority is free in front of.
    """

    moved: dict[Rule, Rule] = field(default_factory=dict)
    before: tuple[KernelObject, ...] = ()
    blocking: tuple[KernelObject, ...] = ()
    # The highest priority in the document.
    highest: int = 0

    def at(self, rule: Rule) -> Rule:
        """A rule of the document with the priority that it gets."""
        return self.moved.get(rule, rule)


def foreign_rules(rules: Iterable[KernelObject], ours: Iterable[int] = ()) -> list[KernelObject]:
    """The rules of others that affect packets, without the kernel's own."""
    numbers = {*OWNERS.values(), *ours}
    return [each for each in rules if each.protocol not in numbers and _affects_packets(each)]


def as_documented(rules: Iterable[Rule], live: Iterable[Rule]) -> tuple[Rule, ...]:
    """The ``live`` rules of an owner; one that differs from one of ``rules`` only in the priority gets its priority."""
    known = {replace(rule, priority=0): rule for rule in rules if not rule.retiring}
    kept = {rule.key for rule in rules}
    return tuple(rule if rule.key in kept else known.get(replace(rule, priority=0), rule) for rule in live)


def warnings(placement: Placement, owner: str) -> list[str]:
    """How foreign rules affect an owner's priorities; a sentence each."""
    numbers = sorted({rule.priority for rule in placement.moved.values()})
    where = " and ".join(map(str, numbers)) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"
    moved = [
        f"the rules of {owner} are at priority {where}, in front of {_with_owner(each)}, which would take their packets"
        for each in (placement.before if placement.moved else ())
    ]
    return moved + [
        f"{_with_owner(each)} takes packets of {owner}, and no priority is free in front of it; delete it and add it "
        f"again with an explicit priority above {placement.highest}"
        for each in placement.blocking
    ]


def _with_owner(rule: KernelObject) -> str:
    text = formatting.describe(rule.value) if rule.value is not None else rule.text
    return f"`{text}` ({formatting.owner_name(rule.protocol)})"


def _affects_packets(rule: KernelObject) -> bool:
    """Whether it is a rule that may take packets, and not the one for this host's own addresses, main or default."""
    seen = rule.seen or rule.value
    if seen is None or seen.action == "nop" or (seen.action == "lookup" and seen.table == LOCAL):
        return False
    return seen.priority < MAIN_PRIORITY


def place(rules: Sequence[Rule], listed: Sequence[KernelObject]) -> Placement:
    """Where the rules of a document have to be. ``listed`` are all rules of the host; families are independent."""
    foreign = foreign_rules(listed)
    parts = [_place([rule for rule in rules if rule.family == family], foreign, listed) for family in ("ipv4", "ipv6")]
    return Placement(
        {documented: moved for part in parts for documented, moved in part.moved.items()},
        tuple(each for part in parts for each in part.before),
        tuple(each for part in parts for each in part.blocking),
        max((rule.priority for rule in rules), default=0),
    )


def _place(rules: list[Rule], foreign: list[KernelObject], listed: Sequence[KernelObject]) -> Placement:
    ours = [rule for rule in rules if not rule.retiring]
    before = tuple(each for each in foreign if _forwards(each) and any(is_before(each, rule) for rule in ours))
    # What the kernel forwards must not be delivered locally: local delivery may have moved to the front as well.
    delivery = [each for each in listed if each.protocol == OWNERS["local_delivery"] and each.value is not None]
    bypasses = [rule for rule in ours if rule.table == MAIN]
    passed = [each for each in delivery if any(is_before(each, rule) for rule in bypasses)]
    if not (before or passed):
        return Placement()
    levels = sorted({rule.priority for rule in ours})
    first = min((each.seen or each.value).priority for each in (*before, *passed)) - len(levels)
    if first <= _lowest_bound(listed, ours[0].family):
        return Placement(blocking=before)
    new = {level: first + index for index, level in enumerate(levels)}
    return Placement({rule: replace(rule, priority=new[rule.priority]) for rule in ours}, before)


def _lowest_bound(listed: Sequence[KernelObject], family: str) -> int:
    """The priority of the rule for this host's own addresses, which must stay in front."""
    rules = (each.seen or each.value for each in listed if each.family == family)
    return max((rule.priority for rule in rules if rule and rule.action == "lookup" and rule.table == LOCAL), default=0)


def _forwards(rule: KernelObject) -> bool:
    """Whether a foreign rule sends packets on, and does not drop them."""
    return (rule.seen or rule.value).action in ("lookup", "goto")


def is_before(foreign: KernelObject, rule: Rule) -> bool:
    """Whether a foreign rule is evaluated before ours and may take packets that are ours.

    With equal priority it may be: the order is then that of adding.
    """
    seen = foreign.seen or foreign.value
    if seen.family != rule.family or seen.priority > rule.priority:
        return False
    if seen.action == "lookup" and seen.table == rule.table and not foreign.inverted:
        return False
    if seen.action == "goto" and (seen.table or 0) <= rule.priority:
        return False
    if foreign.inverted:
        return foreign.partly or not _covers(seen, rule)
    return _overlaps(seen, rule)


def _overlaps(seen: Rule, rule: Rule) -> bool:
    """Whether one packet can match both. Bits of a mark that ours do not select are assumed to be zero.

    A rule for sockets that are bound to an interface does not concern ours.
    """
    same = ((seen.iif, rule.iif), (seen.ip_proto, rule.ip_proto))
    return (
        seen.oif is None
        and all(None in pair or pair[0] == pair[1] for pair in same)
        and all(_prefixes_overlap(*pair) for pair in ((seen.src, rule.src), (seen.dst, rule.dst)))
        and all(_ranges_overlap(*pair) for pair in ((seen.sport, rule.sport), (seen.dport, rule.dport)))
        and _mark_matches(seen, rule)
    )


def _covers(seen: Rule, rule: Rule) -> bool:
    """Whether every packet that matches ours matches the foreign rule too, which takes none of them when inverted."""
    same = ((seen.iif, rule.iif), (seen.ip_proto, rule.ip_proto))
    ranges = ((seen.sport, rule.sport), (seen.dport, rule.dport))
    return (
        seen.oif is None
        and seen.uid_range is None
        and all(theirs in (None, ours) for theirs, ours in same)
        and all(_within(ours, theirs) for theirs, ours in ((seen.src, rule.src), (seen.dst, rule.dst)))
        and all(theirs is None or (ours and theirs[0] <= ours[0] and ours[1] <= theirs[1]) for theirs, ours in ranges)
        and _mark_matches(seen, rule)
    )


def _mark_matches(seen: Rule, rule: Rule) -> bool:
    if seen.fwmark is None:
        return True
    mask = MAX_U32 if seen.fwmask is None else seen.fwmask
    return (rule.fwmark or 0) & mask == seen.fwmark


def _prefixes_overlap(first: str | None, second: str | None) -> bool:
    return first is None or second is None or network(first).overlaps(network(second))


def _within(inner: str | None, outer: str | None) -> bool:
    if outer is None:
        return True
    if inner is None:
        return False
    small, large = network(inner), network(outer)
    # mypy does not know that networks of the same version have the same type.
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]


def _ranges_overlap(first: tuple[int, int] | None, second: tuple[int, int] | None) -> bool:
    return first is None or second is None or (first[0] <= second[1] and second[0] <= first[1])
