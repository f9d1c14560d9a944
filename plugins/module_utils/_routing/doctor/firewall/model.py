# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A model of the host's packet filters: what they would do with one packet, as far as their rules are known. Pure.

``nft_rules`` and ``iptables_rules`` convert listings into this model; here a packet passes it as in the kernel.
A condition that the model cannot express (a limit, a set filled at run time, an xt match) may or may not hold: it is
treated as false, and the verdict is marked as uncertain.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

# A value of a condition: a network, an inclusive range of numbers, or a word.
Value = Union[ipaddress.IPv4Network, ipaddress.IPv6Network, tuple[int, int], str]
ACCEPT, DROP, RETURN = "accept", "drop", "return"
# Effects of a rule besides its verdict: it rewrites an address, keeps the packet from conntrack, or answers it.
SNAT, DNAT, UNTRACK, SYNPROXY = "snat", "dnat", "untrack", "synproxy"
# The limit of nested jumps (NFT_JUMP_STACK_SIZE in linux/netfilter/nf_tables.h).
DEPTH = 16


@dataclass(frozen=True)
class Packet:
    """A packet as a filter sees it; unknown fields are None. ``state`` is conntrack's: new or established.

    ``iif`` is empty for packets that this host sends. ``src_type`` and ``dst_type`` are the kernel's address types
    (local, unicast ...), ``src_fib`` is nft's fib type of the source, ``uid`` the user id of the sending socket.
    """

    family: str
    src: str
    dst: str | None
    protocol: str = "tcp"
    sport: int | None = None
    dport: int | None = None
    iif: str | None = None
    oif: str | None = None
    state: str | None = "new"
    mark: int = 0
    src_type: str | None = None
    dst_type: str | None = None
    src_fib: str | None = None
    # Whether it is a TCP SYN: yes or no.
    syn: str | None = None
    # Conntrack's status flags: none, dnat ...
    status: str | None = None
    uid: int | None = None


@dataclass(frozen=True)
class Test:
    """A condition on one field of the packet; ``field`` is None if the model cannot express the condition.

    ``mask`` selects the bits of a number to compare, None for all. A word that ends with * matches as a prefix.
    """

    field: str | None
    values: tuple[Any, ...] = ()  # each a Value; its type is that of the field
    negated: bool = False
    mask: int | None = None

    def holds(self, packet: Packet) -> bool | None:
        """True, False, or None if unknown."""
        value = getattr(packet, self.field) if self.field else None
        if value is None:
            return None
        if self.field in ("src", "dst"):
            address = ipaddress.ip_address(value)
            contained = any(address in network for network in self.values)
            # A condition on addresses of the other family never matches, negated or not.
            other_family = all(network.version != address.version for network in self.values)
            return not other_family and contained != self.negated
        if self.mask is not None:
            value &= self.mask
        # iptables --ctstate has the flags of translations too.
        translated = self.field == "state" and packet.status in self.values
        return (translated or any(_fits(value, wanted) for wanted in self.values)) != self.negated


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return bool(wanted[0] <= value <= wanted[1])
    return bool(value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted)


UNKNOWN = Test(None)


@dataclass(frozen=True)
class MarkWrite:
    """A statement that sets a mark: ``key`` is meta or ct, ``bits`` may change, ``value`` is the new mark if known."""

    key: str
    bits: int
    value: int | None = None


@dataclass(frozen=True)
class FilterRule:
    """``verdict`` is accept, drop, return or None; ``target`` the chain of its jump (``back``) or goto.

    ``effect`` is SNAT, DNAT, UNTRACK, SYNPROXY or empty; ``to`` is the new destination of DNAT if it is one address.
    """

    tests: tuple[Test, ...] = ()
    verdict: str | None = None
    target: str | None = None
    back: bool = True
    writes: tuple[MarkWrite, ...] = ()
    effect: str = ""
    to: str = ""
    text: str = ""

    def holds(self, packet: Packet) -> bool | None:
        """Whether the rule matches the packet: False as soon as one condition is false, None if unknown."""
        results = [test.holds(packet) for test in self.tests]
        if False in results:
            return False
        return None if None in results else True


@dataclass(frozen=True)
class Chain:
    """``hook`` is empty for a chain that is only jumped to; chains of a hook run in the order of ``priority``.

    ``type`` is filter, nat or route. If a chain of type route changes a packet's mark, the kernel routes it again.
    """

    table: str
    name: str
    family: str
    hook: str = ""
    priority: int = 0
    policy: str = ACCEPT
    rules: tuple[FilterRule, ...] = ()
    type: str = "filter"

    def sees(self, packet: Packet) -> bool:
        """Whether packets of this family pass the chain."""
        return self.family in ("inet", packet.family)


@dataclass(frozen=True)
class Verdict:
    """``by`` is the rule or policy that decided; ``certain`` is False if an earlier rule may have decided otherwise."""

    accepted: bool
    certain: bool = True
    by: str = ""


@dataclass(frozen=True)
class Ruleset:
    chains: Mapping[tuple[str, str], Chain] = field(default_factory=dict)

    def hooked(self, hook: str, packet: Packet) -> list[Chain]:
        """The chains that a packet passes at a hook, in order."""
        chains = [chain for chain in self.chains.values() if chain.hook == hook and chain.sees(packet)]
        return sorted(chains, key=lambda chain: chain.priority)

    def verdict(self, hook: str, packet: Packet) -> Verdict:
        """Whether the packet passes a hook: every chain must accept it."""
        certain = True
        for chain in self.hooked(hook, packet):
            walk = _Walk(self, packet)
            decided = walk.chain(chain) or (chain.policy, f"the policy of chain {chain.table} {chain.name}")
            certain = certain and walk.certain
            if decided[0] == DROP:
                return Verdict(False, certain, decided[1])
        return Verdict(True, certain)

    def reached(self, hook: str, packet: Packet) -> Iterator[Reached]:
        """Every rule that the packet may match at a hook."""
        for chain in self.hooked(hook, packet):
            yield from _Reach(self, packet, chain).chain(chain, True, 0)


@dataclass(frozen=True)
class Reached:
    """A rule that a packet matches: ``chain`` is the rule's own, ``base`` the one at the hook.

    ``certain`` is False if the rule, or one on the way to it, has a condition that the model cannot express.
    """

    base: Chain
    chain: Chain
    rule: FilterRule
    certain: bool


class _Reach:
    """One packet's way through one base chain, following every branch that the packet may take."""

    def __init__(self, ruleset: Ruleset, packet: Packet, base: Chain):
        self._ruleset, self._packet, self._base = ruleset, packet, base
        # Whether the packet is certainly still in the base chain, and whether it has certainly left it.
        self._certain, self._ended = True, False

    def chain(self, chain: Chain, certain: bool, depth: int) -> Iterator[Reached]:
        """``certain``: the packet certainly enters this chain. A rule that may match makes later rules uncertain."""
        for rule in chain.rules:
            holds = rule.holds(self._packet)
            if holds is False:
                continue
            here = bool(holds) and certain and self._certain
            yield Reached(self._base, chain, rule, here)
            called = self._ruleset.chains.get((chain.table, rule.target or ""))
            if called and depth < DEPTH:
                yield from self.chain(called, here, depth + 1)
            if rule.verdict == RETURN or (rule.target and not rule.back):
                if here:
                    return
                certain = False  # in this chain only
            elif rule.verdict or rule.effect in (SNAT, DNAT):  # a translation accepts the packet
                self._ended = self._ended or here
                self._certain = self._certain and here
            if self._ended:
                return


Decision = Optional[tuple[str, str]]


class _Walk:
    """One packet's way through one base chain."""

    def __init__(self, ruleset: Ruleset, packet: Packet):
        self._ruleset, self._packet = ruleset, packet
        self.certain = True

    def chain(self, chain: Chain, depth: int = 0) -> Decision:
        """(accept or drop, the rule that decided); None at the end of the chain."""
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
