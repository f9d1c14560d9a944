# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parse an nft listing: the marks that it describes, and a signature to compare it with what was written. Pure.

The nesting of expressions differs between versions of nft, but not their keys, addresses, marks and verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..document.model import IP_PROTOCOLS, MAX_U32, Mark, address

Objects = list[dict[str, Any]]
HOOK_CHAINS = ("prerouting", "input", "accepted", "forward", "output", "postrouting")
# Keys that a listing may add or omit without a change of meaning.
IGNORED_KEYS = ("counter", "family", "protocol")
# The object that a statement refers to: the mark of the packet differs from that of the connection.
SUBJECTS = ("ct", "meta", "rt", "socket")


def signature(objects: Iterable[dict[str, Any]]) -> tuple[set[Any], list[Any]]:
    """Chains with their hooks, and the rules of each chain in order, as (chain, comment, leaves of the statements)."""
    chains, rules = set(), []
    for item in objects:
        if "chain" in item:
            chain = item["chain"]
            chains.add((chain["name"], chain.get("type"), chain.get("hook"), chain.get("policy")))
        elif "rule" in item:
            rule = item["rule"]
            rules.append((rule["chain"], rule.get("comment"), frozenset(_leaves(rule["expr"]))))
    # A stable sort by chain: the order of rules matters only within a chain.
    return chains, sorted(rules, key=lambda rule: rule[0])


def _leaves(value: Any) -> Iterable[Any]:
    """The values in a statement that determine its effect, without structure and counters."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "op":
                yield from [inner] if inner == "!=" else []
            elif key == "&":
                # The kernel stores a masked set as and + xor, so its "and" may differ from the written one.
                yield from _leaves([part for part in inner if not isinstance(part, int)])
            elif inner is None:
                yield key  # a verdict
            elif key not in IGNORED_KEYS:
                yield from [key] if key in SUBJECTS else []
                yield from _leaves(inner)
    elif isinstance(value, list):
        # A pair of a map is one value: the sender and its chain.
        yield from [tuple(_pair(value))] if _pair(value) else (leaf for inner in value for leaf in _leaves(inner))
    elif value:
        # Without /etc/protocols (Debian's netbase), nft lists a protocol by its number.
        yield IP_PROTOCOLS.get(value, value)


def _pair(value: list[Any]) -> list[Any]:
    """[key, chain] if the list is an element of a verdict map, else []."""
    if len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], dict) and "goto" in value[1]:
        return [value[0], value[1]["goto"]["target"]]
    return []


def marks(objects: Objects) -> Iterable[Mark]:
    """The marks that a listing describes: each has a chain mark_ID or each_ID with its name as a comment."""
    rules = [item["rule"] for item in objects if "rule" in item]
    hooked = [rule for rule in rules if rule["chain"] in HOOK_CHAINS]
    senders = [pair for rule in hooked if rule["chain"] == "input" for pair in _pairs(rule["expr"])]
    sockets = {target for rule in hooked if rule["chain"] == "prerouting" for target in _gotos(rule["expr"])}
    for rule in rules:
        match = re.fullmatch(r"(mark|each)_([0-9]+)", rule["chain"])
        if match and rule.get("comment"):
            tracked, number = match.group(1) == "mark", int(match.group(2))
            entry, guard = ("save", "guard") if tracked else ("each", "guard_each")
            # A rule that leads to these chains matches the bits of this mark only.
            leading = {f"mark_{number}"} if tracked else {f"each_{number}", f"guard_each_{number}"}
            leading_rules = [rule["expr"] for rule in hooked if leading & set(_targets(rule["expr"]))]
            guards = [other["expr"] for other in rules if other["chain"] == f"{guard}_{number}"]
            mine = [sender for sender, target in senders if target == f"{entry}_{number}"]
            yield Mark(
                rule["comment"],
                number,
                next((mask for statements in leading_rules for mask in _masks(statements)), MAX_U32),
                macs=tuple(sender for sender in mine if ":" in sender),
                via=tuple(_next_hops(statements for statements in guards if not _accepts(statements))),
                iif=next((sender for sender in mine if ":" not in sender), None),
                transparent=f"{entry}_{number}" in sockets,
                conntrack=tracked,
                last_sender=tuple(
                    port for statements in guards if _accepts(statements) for port in _served(statements)
                ),
            )


def _accepts(statements: list[dict[str, Any]]) -> bool:
    return any("accept" in statement for statement in statements)


def _served(statements: list[dict[str, Any]]) -> Iterable[str]:
    """``tcp/8080`` for a rule that matches the source port 8080 of TCP."""
    for match in (statement["match"] for statement in statements if "match" in statement):
        payload = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
        if payload.get("field") == "sport" and isinstance(match["right"], int):
            yield f"{payload['protocol']}/{match['right']}"


def _next_hops(guards: Iterable[list[Any]]) -> Iterable[str]:
    for statements in guards:
        for leaf in _leaves(statements):
            if isinstance(leaf, str) and re.fullmatch(r"[0-9a-fA-F:.]*[:.][0-9a-fA-F:.]*", leaf):
                yield address(leaf)


def _pairs(value: Any) -> Iterable[tuple[str, str]]:
    """(MAC or interface, chain) of the verdict maps in a statement."""
    return ((leaf[0], leaf[1]) for leaf in _leaves(value) if isinstance(leaf, tuple) and isinstance(leaf[0], str))


def _gotos(statements: list[dict[str, Any]]) -> Iterable[str]:
    return (statement["goto"]["target"] for statement in statements if "goto" in statement)


def _targets(statements: list[dict[str, Any]]) -> Iterable[str]:
    """The chains that a rule goes to, directly or by a verdict map."""
    yield from _gotos(statements)
    yield from (leaf[1] for leaf in _leaves(statements) if isinstance(leaf, tuple))


def _masks(value: Any) -> Iterable[int]:
    if isinstance(value, dict) and isinstance(value.get("&"), list):
        yield from (part for part in value["&"] if isinstance(part, int))
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _masks(inner)
