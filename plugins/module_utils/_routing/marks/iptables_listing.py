# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parse the output of iptables-save: chains, jumps to them, and the marks that a memo chain describes. Pure.

A memo describes a mark in lines of ``ID/MASK key value``: ``0xb/0xff name a``, ``0xb/0xff mac 02:00:00:00:00:11``, ...,
and a mark without conntrack in lines of ``ID/MASK each key value``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..document.model import Mark

# Built-in chains, and the suffix of our chain that each jumps to.
HOOKS = {"INPUT": "IN", "FORWARD": "FWD", "PREROUTING": "PRE", "OUTPUT": "OUT", "POSTROUTING": "POST"}
MEMO = "MEMO"
# A rule is the text after "-A CHAIN", as iptables-save writes it.
Chains = dict[str, list[str]]


@dataclass(frozen=True)
class Listing:
    """Chains with their rules; ``jumps`` are (built-in chain, index, rule) of the rules that jump to ours.

    The index does not count jumps to chains of our owners: 0 means before all other rules.
    """

    chains: Chains = field(default_factory=dict)
    jumps: tuple[tuple[str, int, str], ...] = ()

    def of(self, prefix: str) -> Listing:
        """The part that belongs to one owner."""
        # Compare complete names: the chain _IN of owner "a" is a prefix of all chains of owner "a_in".
        names = {prefix + suffix for suffix in (*HOOKS.values(), MEMO)}
        chains = {name: rules for name, rules in self.chains.items() if name in names}
        return Listing(chains, tuple(jump for jump in self.jumps if _target(jump[2]) in names))

    def holds(self, expected: Chains) -> bool:
        """Whether it has exactly these chains, and one jump to each from its hook, before all other rules."""
        if {name: [meaning(rule) for rule in rules] for name, rules in self.chains.items()} != {
            name: [meaning(rule) for rule in rules] for name, rules in expected.items()
        }:
            return False
        hooked = [
            (hook, 0, f"-j {name}") for hook, end in HOOKS.items() for name in expected if name.endswith(f"_{end}")
        ]
        return sorted(hooked) == sorted(self.jumps)


def parse(text: str) -> Listing:
    """The table as ``iptables-save -t mangle`` prints it; a missing table counts as empty."""
    chains: Chains = {}
    jumps = []
    others = dict.fromkeys(HOOKS, 0)
    for line in text.splitlines():
        if line.startswith(":"):
            chains[line[1:].split()[0]] = []
        elif line.startswith("-A "):
            _append, chain, rule = line.split(" ", 2)
            chains.setdefault(chain, []).append(rule)
            if chain in HOOKS and _target(rule).startswith("L4PROXY_"):
                jumps.append((chain, others[chain], rule))
            elif chain in HOOKS:
                others[chain] += 1
    return Listing(chains, tuple(jumps))


def _target(rule: str) -> str:
    match = re.search(r"(?:^| )-[jg] (\S+)", rule)
    return match.group(1) if match else ""


def meaning(rule: str) -> frozenset[Any]:
    """The options of a rule, each with its values, independent of the order in which a version lists them."""
    options: list[list[str]] = []
    for word in shlex.split(rule):
        if word == "!" or (word.startswith("-") and options[-1:] != [["!"]]) or not options:
            options.append([])
        options[-1].append(_plain(word))
    return frozenset(tuple(option) for option in options if option[0] != "-m")


def _plain(word: str) -> str:
    """The word in one spelling: a MAC in lower case, a mark without the mask of all bits."""
    if re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", word):
        return word.lower()
    return word[: -len("/0xffffffff")] if re.fullmatch(r"0x[0-9a-f]+/0xffffffff", word) else word


def memo(mark: Mark) -> Iterable[str]:
    """The lines that describe a mark."""
    facts = [("name", mark.name), ("iif", mark.iif), ("oif", mark.oif)]
    facts += [("mac", mac) for mac in mark.macs] + [("via", via) for via in mark.via]
    facts += [("follows", port) for port in mark.last_sender]
    facts += [("match", "transparent socket")] if mark.transparent else []
    bits = f"{mark.id:#x}/{mark.mask:#x}" if mark.conntrack else f"{mark.id:#x}/{mark.mask:#x} each"
    return (f"{bits} {key} {value}" for key, value in facts if value is not None)


def marks(rules: Iterable[str]) -> Iterable[Mark]:
    """The marks that the rules of a memo describe; invalid lines are ignored."""
    facts_by_mark: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for rule in rules:
        line = re.fullmatch(r'-m comment --comment "?0x([0-9a-f]+)/0x([0-9a-f]+)( each)? (\w+) ([^"]+)"?', rule)
        if line:
            number, mask, each, key, value = line.groups()
            facts_by_mark.setdefault((int(number, 16), int(mask, 16), not each), {}).setdefault(key, []).append(value)
    for (number, mask, tracked), facts in facts_by_mark.items():
        if "name" in facts:
            yield Mark(
                facts["name"][0],
                number,
                mask,
                macs=tuple(facts.get("mac", ())),
                via=tuple(facts.get("via", ())),
                iif=facts.get("iif", [None])[0],
                transparent="match" in facts,
                conntrack=tracked,
                oif=facts.get("oif", [None])[0],
                last_sender=tuple(facts.get("follows", ())),
            )
