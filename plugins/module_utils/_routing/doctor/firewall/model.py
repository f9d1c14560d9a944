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
# What a rule does to a packet besides its verdict: rewrite an address, keep it from conntrack, or answer it.
SNAT, DNAT, UNTRACK, SYNPROXY = "snat", "dnat", "untrack", "synproxy"
# How deep chains may call each other (NFT_JUMP_STACK_SIZE in linux/netfilter/nf_tables.h).
DEPTH = 16


@dataclass(frozen=True)
class Packet:
    """A packet as a filter sees it; None for what is not known. ``state`` is conntrack's: new or established.

    ``iif`` is empty for what this host sends.

    ``src_type`` and ``dst_type`` are what the kernel calls an address (local, unicast ...), ``src_fib`` what nft's fib
    says of the source, ``uid`` the account of the socket that sends it.
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
    # Whether it opens a TCP connection: yes or no.
    syn: str | None = None
    # What conntrack says of it beside the state: none, or dnat and the like.
    status: str | None = None
    uid: int | None = None


@dataclass(frozen=True)
class Test:
    """A condition on one field of the packet; ``field`` None is one that is not understood.

    ``mask`` is which bits of a number count, None for all. A word that ends with * stands for all that begin so.
    """

    field: str | None
    values: tuple[Value, ...] = ()
    negated: bool = False
    mask: int | None = None

    def holds(self, packet: Packet) -> bool | None:
        """True, False, or None for "perhaps"."""
        value = getattr(packet, self.field) if self.field else None
        if value is None:
            return None
        if self.field in ("src", "dst"):
            address = ipaddress.ip_address(value)
            found = any(address in network for network in self.values)
            # A rule on another family's addresses does not fit the packet, negated or not.
            other = all(network.version != address.version for network in self.values)
            return not other and found != self.negated
        if self.mask is not None:
            value &= self.mask
        return any(_fits(value, one) for one in self.values) != self.negated


def _fits(value: int | str, wanted: Value) -> bool:
    if isinstance(wanted, tuple):
        return wanted[0] <= value <= wanted[1]
    return value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted


UNKNOWN = Test(None)


@dataclass(frozen=True)
class MarkWrite:
    """A statement that sets a mark: ``key`` is meta or ct, ``bits`` those it may change, ``value`` to what if known."""

    key: str
    bits: int
    value: int | None = None


@dataclass(frozen=True)
class FilterRule:
    """``verdict`` is accept, drop, return, or None; ``target`` the chain it goes on in (``back``: and returns from).

    ``effect`` is SNAT, DNAT, UNTRACK, SYNPROXY or empty; ``to`` the new destination of DNAT where it is one address.
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
        """Whether it applies to the packet: False as soon as one condition is, None when that cannot be said."""
        results = [test.holds(packet) for test in self.tests]
        if False in results:
            return False
        return None if None in results else True


@dataclass(frozen=True)
class Chain:
    """``hook`` is empty for one that is only called; chains of a hook are asked in the order of ``priority``.

    ``type`` is filter, nat or route. One of type route has a packet whose mark it has changed routed anew.
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

    def reached(self, hook: str, packet: Packet) -> Iterator[Reached]:
        """Every rule the packet may come by at a hook."""
        for chain in self.hooked(hook, packet):
            yield from _Reach(self, packet, chain).chain(chain, True, 0)


@dataclass(frozen=True)
class Reached:
    """A rule that a packet comes by: ``chain`` is the rule's own, ``base`` the one at the hook.

    ``sure`` is False where the rule, or one on the way to it, has a condition that is not understood.
    """

    base: Chain
    chain: Chain
    rule: FilterRule
    sure: bool


class _Reach:
    """One packet's way through one base chain, where all branches that it may take are taken."""

    def __init__(self, ruleset: Ruleset, packet: Packet, base: Chain):
        self._ruleset, self._packet, self._base = ruleset, packet, base
        # Whether the packet is surely still in the base chain, and whether it surely is not.
        self._sure, self._ended = True, False

    def chain(self, chain: Chain, sure: bool, depth: int) -> Iterator[Reached]:
        """``sure``: the packet surely comes here. A rule that may hold leaves what is behind it in doubt."""
        for rule in chain.rules:
            holds = rule.holds(self._packet)
            if holds is False:
                continue
            here = bool(holds) and sure and self._sure
            yield Reached(self._base, chain, rule, here)
            called = self._ruleset.chains.get((chain.table, rule.target or ""))
            if called and depth < DEPTH:
                yield from self.chain(called, here, depth + 1)
            if rule.verdict == RETURN or (rule.target and not rule.back):
                if here:
                    return
                sure = False  # in this chain alone
            elif rule.verdict or rule.effect in (SNAT, DNAT):  # a translation accepts the packet
                self._ended = self._ended or here
                self._sure = self._sure and here
            if self._ended:
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
