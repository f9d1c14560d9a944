# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host's packet filters would do with one packet, as far as their rules can be understood. Pure.

nft and iptables are read into one model (``nft_rules``, ``iptables_rules``); here it is walked as the kernel walks it.
A condition that is not understood (a limit, a set filled at run time, an xt match) may or may not hold: the walk goes
on as if it did not, and the verdict says that it is not certain.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Optional, Union

# A value of a condition: a network, an inclusive range of numbers, or a word.
Value = Union[ipaddress.IPv4Network, ipaddress.IPv6Network, tuple[int, int], str]
ACCEPT, DROP, RETURN = "accept", "drop", "return"
# How deep chains may call each other (NFT_JUMP_STACK_SIZE in linux/netfilter/nf_tables.h).
DEPTH = 16


@dataclass(frozen=True)
class Packet:
    """A packet as a filter sees it; None for what is not known. ``state`` is conntrack's: new or established."""

    family: str
    src: str
    dst: str
    protocol: str = "tcp"
    sport: int | None = None
    dport: int | None = None
    iif: str | None = None
    oif: str | None = None
    state: str = "new"
    mark: int = 0


@dataclass(frozen=True)
class Test:
    """A condition on one field of the packet; ``field`` None is one that is not understood."""

    field: str | None
    values: tuple[Value, ...] = ()
    negated: bool = False

    def holds(self, packet: Packet) -> bool | None:
        """True, False, or None for "perhaps"."""
        if self.field is None:
            return None
        if self.field in ("src", "dst"):
            address = ipaddress.ip_address(getattr(packet, self.field))
            found = any(address in network for network in self.values)
            # A rule on another family's addresses does not fit the packet, negated or not.
            other = all(network.version != address.version for network in self.values)
            return not other and found != self.negated
        value = getattr(packet, self.field)
        if value is None:
            return None
        found = any(low <= value <= high if isinstance(value, int) else value == low for low, high in self._pairs())
        return found != self.negated

    def _pairs(self) -> Iterator[tuple]:
        return ((one if isinstance(one, tuple) else (one, one)) for one in self.values)


UNKNOWN = Test(None)


@dataclass(frozen=True)
class MarkWrite:
    """A statement that sets a mark: ``key`` is meta or ct, ``bits`` those it may change."""

    key: str
    bits: int


@dataclass(frozen=True)
class FilterRule:
    """``verdict`` is accept, drop, return, or None; ``target`` the chain it goes on in (``back``: and returns from)."""

    tests: tuple[Test, ...] = ()
    verdict: str | None = None
    target: str | None = None
    back: bool = True
    writes: tuple[MarkWrite, ...] = ()
    translates: bool = False
    text: str = ""

    def holds(self, packet: Packet) -> bool | None:
        """Whether it applies to the packet: False as soon as one condition is, None when that cannot be said."""
        results = [test.holds(packet) for test in self.tests]
        if False in results:
            return False
        return None if None in results else True


@dataclass(frozen=True)
class Chain:
    """``hook`` is empty for one that is only called; chains of a hook are asked in the order of ``priority``."""

    table: str
    name: str
    family: str
    hook: str = ""
    priority: int = 0
    policy: str = ACCEPT
    rules: tuple[FilterRule, ...] = ()

    def sees(self, packet: Packet) -> bool:
        """Whether it belongs to the packet's family."""
        return self.family in ("inet", packet.family)


@dataclass(frozen=True)
class Verdict:
    """``by`` is the rule or the policy that decided; ``certain`` False when a rule before it was not understood."""

    accepted: bool
    certain: bool = True
    by: str = ""


@dataclass(frozen=True)
class Ruleset:
    chains: Mapping[tuple[str, str], Chain] = field(default_factory=dict)

    def hooked(self, hook: str, packet: Packet) -> list[Chain]:
        """The chains a packet meets at a hook, in order."""
        found = [chain for chain in self.chains.values() if chain.hook == hook and chain.sees(packet)]
        return sorted(found, key=lambda chain: chain.priority)

    def verdict(self, hook: str, packet: Packet) -> Verdict:
        """What becomes of the packet at a hook: every chain must accept it."""
        certain = True
        for chain in self.hooked(hook, packet):
            walk = _Walk(self, packet)
            decided = walk.chain(chain) or (chain.policy, f"the policy of chain {chain.table} {chain.name}")
            certain = certain and walk.certain
            if decided[0] == DROP:
                return Verdict(False, certain, decided[1])
        return Verdict(True, certain)

    def reached(self, hook: str, packet: Packet) -> Iterator[tuple[Chain, FilterRule, bool | None]]:
        """Every rule the packet may come by at a hook, with whether it applies: True or None (perhaps)."""
        for chain in self.hooked(hook, packet):
            yield from self._reached(chain, packet, True, 0)

    def _reached(self, chain: Chain, packet: Packet, sure: bool | None, depth: int) -> Iterator:
        for rule in chain.rules:
            holds = rule.holds(packet)
            if holds is False:
                continue
            here = sure and holds
            yield chain, rule, here
            called = self.chains.get((chain.table, rule.target or ""))
            if called and depth < DEPTH:
                yield from self._reached(called, packet, here, depth + 1)
            if here and (rule.verdict or (rule.target and not rule.back)):
                return


Decision = Optional[tuple[str, str]]


class _Walk:
    """One packet's way through one base chain."""

    def __init__(self, ruleset: Ruleset, packet: Packet):
        self._ruleset, self._packet = ruleset, packet
        self.certain = True

    def chain(self, chain: Chain, depth: int = 0) -> Decision:
        """(accept or drop, by what); None when the end of the chain was reached."""
        for rule in chain.rules:
            holds = rule.holds(self._packet)
            if holds is None and (rule.verdict or rule.target):
                self.certain = False
            if not holds:
                continue
            if rule.verdict == RETURN:
                return None
            if rule.verdict:
                return rule.verdict, f"`{rule.text}` in chain {chain.table} {chain.name}"
            called = self._ruleset.chains.get((chain.table, rule.target or ""))
            if called and depth < DEPTH:
                decided = self.chain(called, depth + 1)
                if decided or not rule.back:
                    return decided
        return None
