# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sample replies, and which ip rule of the host would match them first. Pure."""

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
    """A backend's reply to a client: routed by the backend (``iif`` None) or received by the proxy.

    ``via`` is the next hop that the document wants, or ``local`` for a reply that the proxy must accept; ``rule`` is
    the rule of the document that routes it so.
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
    # Other next hops that are as well.
    fallback: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.rule.family

    def is_well_sent(self, answer: RouteAnswer) -> bool:
        """Whether the kernel's route for it is the one that the document wants."""
        return answer.type == "local" if self.via == "local" else answer.via in (self.via, *self.fallback)

    @property
    def text(self) -> str:
        """The reply in a sentence of a finding."""
        mark = f" with mark {self.mark:#x}" if self.mark else ""
        return f"a reply from {self.src} to {self.dst}{mark}"


def format_found(found: KernelObject) -> str:
    """An object of the kernel as ip(8) writes it."""
    unknown = f"{formatting.ip_command(found.family)} rule with an unknown selector"
    return formatting.describe(found.value) if found.value is not None else found.text or unknown


def host_of(prefix: str | None) -> str | None:
    """The address if the prefix contains only one, else None."""
    if prefix is None:
        return None
    network = ipaddress.ip_network(prefix)
    return str(network.network_address) if network.num_addresses == 1 else None


def lookups(document: Document) -> Iterator[Rule]:
    """The document's rules that look up a table; its other rules are guards behind them."""
    return (rule for rule in document.rules if rule.action == "lookup" and not rule.retiring)


def matches(rule: Rule, reply: Reply) -> bool:
    """Whether the kernel would apply this rule to that reply (fib_rule_match), whichever user sends it."""
    return rule.family == reply.family and all(
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


def foreign_rules(rules: Iterable[KernelObject], ours: frozenset[int]) -> list[KernelObject]:
    """Rules of other owners that have an effect, without the kernel's own; ``ours`` are our protocol numbers."""
    return placement.foreign_rules(rules, ours)


def modelled(found: KernelObject) -> Rule:
    """A foreign rule, as far as the model can express it."""
    return found.seen or found.value


def may_match(found: KernelObject, reply: Reply) -> bool:
    """Whether a foreign rule matches the reply; True as well if the model expresses only part of the rule."""
    rule = modelled(found)
    return rule.family == reply.family and matches(rule, reply) != found.inverted


def live_rule(reply: Reply, rules: Iterable[KernelObject]) -> Rule:
    """The reply's own rule at the priority it has on the host; the document's rule if the host has none."""
    same = (
        found.value
        for found in rules
        if found.value and replace(found.value, priority=reply.rule.priority) == reply.rule
    )
    return min(same, key=lambda rule: rule.priority, default=reply.rule)


def preceding(reply: Reply, rules: Iterable[KernelObject], foreign: list[KernelObject]) -> list[KernelObject]:
    """The ``foreign`` rules that match the reply and precede the reply's own rule, in the kernel's order."""
    listed = list(rules)
    own = live_rule(reply, listed)
    matching = [found for found in foreign if modelled(found).priority <= own.priority and may_match(found, reply)]
    if not any(modelled(found).priority == own.priority for found in matching):
        return matching
    # The kernel keeps rules of one priority in the order in which they were added, and lists them so.
    index = next((index for index, found in enumerate(listed) if found.value == own), 0)
    return [found for found in matching if modelled(found).priority < own.priority or listed.index(found) < index]


def other_bits(used: int) -> str:
    """The variable that moves our marks to unused bits, as the end of a sentence; "" if no byte is free."""
    free = next((mask for mask in (0xFF, 0xFF00, 0xFF0000, 0xFF000000) if not mask & used), None)
    return f"; or use other bits for our marks on this host: l4proxy_numbers: {{mark_mask: {free:#x}}}" if free else ""


def marks_overlap(rule: Rule, mark: int, mask: int) -> bool:
    """Whether one packet's mark can match both the rule and our mark."""
    if rule.fwmark is None or not rule.fwmark:
        return False
    common = _mask(rule) & mask
    return bool(common) and rule.fwmark & common == mark & common
