# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""At which priorities our rules stand: those of the document, or in front of others' that take our packets. Pure.

The kernel gives a rule that is added without a priority (by wg-quick, a VPN client, ``ip rule add``) the number just
below the lowest one that is there, which is below ours. So ours move in front of it, and back when it has gone.
Rules that others put there with a number of their own choice are treated alike: ours select our packets only. In front
of one that drops packets (blackhole, unreachable, prohibit) ours never move: somebody wants these dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..document import formatting
from ..document.model import MAX_U32, OWNERS, KernelObject, Rule, network

LOCAL, MAIN_PRIORITY = 255, 32766


@dataclass(frozen=True)
class Placed:
    """``moved``: by rule of the document, where it stands instead. ``before`` are the rules of others because of which,
    ``blocking`` those that no number is free in front of.
    """

    moved: dict[Rule, Rule] = field(default_factory=dict)
    before: tuple[KernelObject, ...] = ()
    blocking: tuple[KernelObject, ...] = ()
    # The highest priority in the document.
    highest: int = 0

    def at(self, rule: Rule) -> Rule:
        """Where a rule of the document stands."""
        return self.moved.get(rule, rule)


def others(rules: Iterable[KernelObject], ours: Iterable[int] = ()) -> list[KernelObject]:
    """The rules of others that decide something, but for the kernel's own."""
    numbers = {*OWNERS.values(), *ours}
    return [one for one in rules if one.protocol not in numbers and is_foreign(one)]


def home(rules: Iterable[Rule], live: Iterable[Rule]) -> tuple[Rule, ...]:
    """The ``live`` rules of an owner as its document has them: those that are ``rules`` but for where they stand."""
    known = {replace(rule, priority=0): rule for rule in rules if not rule.retiring}
    kept = {rule.key for rule in rules}
    return tuple(rule if rule.key in kept else known.get(replace(rule, priority=0), rule) for rule in live)


def sentences(found: Placed, owner: str) -> list[str]:
    """What others make of an owner's priorities, for a person."""
    numbers = sorted({rule.priority for rule in found.moved.values()})
    where = " and ".join(map(str, numbers)) if len(numbers) < 3 else f"{numbers[0]} to {numbers[-1]}"
    moved = [
        f"the rules of {owner} stand at priority {where}, in front of {words(one)}, which would take their packets"
        for one in (found.before if found.moved else ())
    ]
    return moved + [
        f"{words(one)} takes packets of {owner}, and there is no priority free in front of it; delete it and add it "
        f"again with a priority of its own, above {found.highest}"
        for one in found.blocking
    ]


def words(found: KernelObject) -> str:
    """A rule of others and whose it is."""
    text = formatting.describe(found.value) if found.value is not None else found.text
    return f"`{text}` ({formatting.owner_name(found.protocol)})"


def is_foreign(found: KernelObject) -> bool:
    """Whether a rule decides something, and is not the kernel's own or the one for the addresses of this host."""
    seen = found.seen or found.value
    if seen is None or seen.action == "nop" or (seen.action == "lookup" and seen.table == LOCAL):
        return False
    return seen.priority < MAIN_PRIORITY


def placed(rules: Sequence[Rule], listed: Sequence[KernelObject]) -> Placed:
    """Where the rules of a document have to stand. ``listed`` are all rules of the host; each family is for itself."""
    foreign = others(listed)
    parts = [_placed([rule for rule in rules if rule.family == family], foreign, listed) for family in ("ipv4", "ipv6")]
    return Placed(
        {home: there for part in parts for home, there in part.moved.items()},
        tuple(one for part in parts for one in part.before),
        tuple(one for part in parts for one in part.blocking),
        max((rule.priority for rule in rules), default=0),
    )


def _placed(rules: list[Rule], foreign: list[KernelObject], listed: Sequence[KernelObject]) -> Placed:
    ours = [rule for rule in rules if not rule.retiring]
    before = tuple(one for one in foreign if leads_on(one) and any(is_before(one, rule) for rule in ours))
    if not before:
        return Placed()
    levels = sorted({rule.priority for rule in ours})
    first = min(priority_of(one) for one in before) - len(levels)
    if first <= _floor(listed, ours[0].family):
        return Placed(blocking=before)
    new = {level: first + index for index, level in enumerate(levels)}
    return Placed({rule: replace(rule, priority=new[rule.priority]) for rule in ours}, before)


def _floor(listed: Sequence[KernelObject], family: str) -> int:
    """The priority of the rule for this host's own addresses, which has to stay in front."""
    found = (one.seen or one.value for one in listed if one.family == family)
    return max((rule.priority for rule in found if rule and rule.action == "lookup" and rule.table == LOCAL), default=0)


def leads_on(found: KernelObject) -> bool:
    """Whether a rule of others sends packets on, and does not end the search."""
    return (found.seen or found.value).action in ("lookup", "goto")


def priority_of(found: KernelObject) -> int:
    """The priority of a rule that was seen at least."""
    return (found.seen or found.value).priority


def is_before(found: KernelObject, rule: Rule) -> bool:
    """Whether a rule of others is asked before ours and may take packets that are ours.

    Of equal priority it may be: the order is that in which they were added.
    """
    seen = found.seen or found.value
    if seen.family != rule.family or seen.priority > rule.priority:
        return False
    if seen.action == "lookup" and seen.table == rule.table and not found.inverted:
        return False
    if seen.action == "goto" and (seen.table or 0) <= rule.priority:
        return False
    if found.inverted:
        return found.partly or not _covers(seen, rule)
    return _meets(seen, rule)


def _meets(seen: Rule, rule: Rule) -> bool:
    """Whether one packet can match both. Bits of a mark that ours do not select are taken for zero, as they mostly are.

    A rule for sockets that are bound to an interface does not concern ours.
    """
    same = ((seen.iif, rule.iif), (seen.ip_proto, rule.ip_proto))
    return (
        seen.oif is None
        and all(None in pair or pair[0] == pair[1] for pair in same)
        and all(_overlap(*pair) for pair in ((seen.src, rule.src), (seen.dst, rule.dst)))
        and all(_ranges_meet(*pair) for pair in ((seen.sport, rule.sport), (seen.dport, rule.dport)))
        and _marked(seen, rule)
    )


def _covers(seen: Rule, rule: Rule) -> bool:
    """Whether each packet that matches ours matches the other rule too, which then, inverted, takes none of them."""
    same = ((seen.iif, rule.iif), (seen.ip_proto, rule.ip_proto))
    ranges = ((seen.sport, rule.sport), (seen.dport, rule.dport))
    return (
        seen.oif is None
        and seen.uid_range is None
        and all(theirs in (None, ours) for theirs, ours in same)
        and all(_within(ours, theirs) for theirs, ours in ((seen.src, rule.src), (seen.dst, rule.dst)))
        and all(theirs is None or (ours and theirs[0] <= ours[0] and ours[1] <= theirs[1]) for theirs, ours in ranges)
        and _marked(seen, rule)
    )


def _marked(seen: Rule, rule: Rule) -> bool:
    if seen.fwmark is None:
        return True
    mask = MAX_U32 if seen.fwmask is None else seen.fwmask
    return (rule.fwmark or 0) & mask == seen.fwmark


def _overlap(one: str | None, other: str | None) -> bool:
    return one is None or other is None or network(one).overlaps(network(other))


def _within(inner: str | None, outer: str | None) -> bool:
    if outer is None:
        return True
    if inner is None:
        return False
    one, other = network(inner), network(outer)
    # mypy cannot know that networks of one version have one type.
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]


def _ranges_meet(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is None or other is None or (one[0] <= other[1] and other[0] <= one[1])
