# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The packets that the path is about, which document wants them where, and which rule would take them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..document import formatting
from ..document.documents import Document
from ..document.model import MAX_U32, KernelObject, Rule
from ..netlink.route_query import RouteAnswer
from ..reconcile import placement


@dataclass(frozen=True)
class Reply:
    """A backend's reply to a client: routed by the backend (``iif`` None) or taken in by the proxy.

    ``via`` is the next hop that the document wants, ``local`` for a reply the proxy has to take in; ``rule`` is the
    document's rule that says so.
    """

    owner: str
    rule: Rule
    src: str
    dst: str
    via: str
    ip_proto: int = 6
    mark: int = 0
    iif: str | None = None
    sport: int | None = None

    @property
    def family(self) -> str:
        return self.rule.family

    def is_well_sent(self, answer: RouteAnswer) -> bool:
        """Whether the kernel's answer for it is what the document wants."""
        return answer.type == "local" if self.via == "local" else answer.via == self.via

    @property
    def text(self) -> str:
        """In words, for a finding."""
        mark = f" with mark {self.mark:#x}" if self.mark else ""
        return f"a reply from {self.src} to {self.dst}{mark}"


def words(found: KernelObject) -> str:
    """An object of the kernel in the words of ip(8)."""
    unknown = f"{formatting.ip_command(found.family)} rule with a selector that is not known here"
    return formatting.describe(found.value) if found.value is not None else found.text or unknown


def host_of(prefix: str | None) -> str | None:
    """The address of a prefix that is one address."""
    if prefix is None:
        return None
    network = ipaddress.ip_network(prefix)
    return str(network.network_address) if network.num_addresses == 1 else None


def lookups(document: Document) -> Iterator[Rule]:
    """The rules by which a document's packets find their table; guards only catch what is left."""
    return (rule for rule in document.rules if rule.action == "lookup" and not rule.retiring)


def takes(rule: Rule, reply: Reply) -> bool:
    """Whether the kernel would apply this rule to that reply (fib_rule_match); any user may be the one who sends it."""
    same_family = rule.family == reply.family
    return same_family and all(
        (
            rule.src is None or _within(reply.src, rule.src),
            rule.dst is None or _within(reply.dst, rule.dst),
            rule.iif is None or rule.iif == (reply.iif or "lo"),
            rule.oif is None,
            rule.fwmark is None or reply.mark & _mask(rule) == rule.fwmark,
            rule.ip_proto is None or rule.ip_proto == reply.ip_proto,
            rule.sport is None or _between(reply.sport, rule.sport),
            rule.dport is None,
        )
    )


def _within(address: str, prefix: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(prefix)


def _between(port: int | None, ports: tuple[int, int]) -> bool:
    return port is not None and ports[0] <= port <= ports[1]


def _mask(rule: Rule) -> int:
    return MAX_U32 if rule.fwmask is None else rule.fwmask


def strangers(rules: Iterable[KernelObject], ours: frozenset[int]) -> list[KernelObject]:
    """Rules of others that decide something, but for the kernel's own."""
    return placement.others(rules, ours)


def seen(found: KernelObject) -> Rule:
    """A rule of others, as far as the model can say it."""
    return found.seen or found.value


def taken_by(found: KernelObject, reply: Reply) -> bool:
    """Whether a rule of others takes the reply; one that is understood in part may."""
    rule = seen(found)
    return rule.family == reply.family and takes(rule, reply) != found.inverted


def live_rule(reply: Reply, rules: Iterable[KernelObject]) -> Rule:
    """The reply's own rule where it stands; that of the document where the host has none."""
    same = (one.value for one in rules if one.value and replace(one.value, priority=reply.rule.priority) == reply.rule)
    return min(same, key=lambda rule: rule.priority, default=reply.rule)


def before_ours(reply: Reply, rules: Iterable[KernelObject], foreign: list[KernelObject]) -> list[KernelObject]:
    """Of the ``foreign`` rules those that take the reply and are asked before the document's own, in that order."""
    listed = list(rules)
    own = live_rule(reply, listed)
    taking = [one for one in foreign if seen(one).priority <= own.priority and taken_by(one, reply)]
    if not any(seen(one).priority == own.priority for one in taking):
        return taking
    # Rules of one priority are asked in the order in which they were added, which is that of the listing.
    number = next((index for index, one in enumerate(listed) if one.value == own), 0)
    return [one for one in taking if seen(one).priority < own.priority or listed.index(one) < number]


def other_bits(taken: int) -> str:
    """What to set for a host, so that ours are none of the ``taken`` bits of a mark; "" where none are left."""
    free = next((mask for mask in (0xFF, 0xFF00, 0xFF0000, 0xFF000000) if not mask & taken), None)
    return f"; or give us other bits on this host: l4proxy_numbers: {{mark_mask: {free:#x}}}" if free else ""


def marks_meet(rule: Rule, mark: int, mask: int) -> bool:
    """Whether some mark of another's could be taken for one with our bits, or ours for theirs."""
    if rule.fwmark is None or not rule.fwmark:
        return False
    common = _mask(rule) & mask
    return bool(common) and rule.fwmark & common == mark & common
