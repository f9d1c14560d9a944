# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as one nft table of the owner: rendered and compared as the JSON of libnftables-json(5), changed in one go.

    input        while our bits of the connection's mark are zero: the sender's MAC -> save_ID
    save_ID      set our bits of the packet's and of the connection's mark to ID
    output       our bits of the connection's mark -> restore_ID      (type route: the packet is routed anew)
    restore_ID   set our bits of the packet's mark
    postrouting  our bits of the connection's mark -> guard_ID
    guard_ID     a packet whose next hop is not the proxy is counted and dropped

The bits are set only once in a connection's life: else another proxy's SYN on the same four-tuple would redirect a
live connection. nft 1.0.6 cannot copy one mark to another under a mask, hence a chain for each id. Only our bits are
touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import MissingPackage, RoutingError
from .model import MAX_U32, Mark, address
from .runner import MissingCommand, Runner

FAMILY = "inet"
# NF_IP_PRI_MANGLE: after conntrack (-200), before any filter (0).
PRIORITY = -150
HOOKS = {"input": "filter", "output": "route", "postrouting": "filter"}
CT_MARK = {"ct": {"key": "mark"}}
META_MARK = {"meta": {"key": "mark"}}


def table_name(owner: str) -> str:
    return f"l4proxy_{owner}"


@dataclass(frozen=True)
class Observed:
    """What the owner's live table says: its marks, and whether it is exactly what those marks render to."""

    marks: tuple[Mark, ...] = ()
    sound: bool = True


def render(owner: str, marks: Iterable[Mark]) -> list[dict[str, Any]]:
    """The table's objects (table, chains, rules) as libnftables JSON, in order."""
    marks = sorted(marks, key=lambda mark: mark.order)
    table = table_name(owner)
    chains = {**{name: {} for name in HOOKS}, **{f"{verb}_{mark.id}": {} for mark in marks for verb in VERBS}}
    objects = [{"table": {"family": FAMILY, "name": table}}]
    for name in chains:
        hook = {"type": HOOKS[name], "hook": name, "prio": PRIORITY, "policy": "accept"} if name in HOOKS else {}
        objects.append({"chain": {"family": FAMILY, "table": table, "name": name, **hook}})
    for chain, comment, expressions in _rules(marks):
        rule = {"family": FAMILY, "table": table, "chain": chain, "comment": comment, "expr": expressions}
        objects.append({"rule": rule})
    return objects


VERBS = ("save", "restore", "guard")


def _rules(marks: list[Mark]) -> list[tuple[str, str, list]]:
    """(chain, comment, statements) of every rule."""
    mask = marks[0].mask
    bits = {"&": [CT_MARK, mask]}
    known = [mark for mark in marks if mark.macs]
    rules = []
    if known:
        senders = [(mac, mark, "save") for mark in known for mac in mark.macs]
        sender = {"payload": {"protocol": "ether", "field": "saddr"}}
        fresh = [_is({"ct": {"key": "direction"}}, "original"), _is(bits, 0)]
        rules.append(("input", "first packet of a connection", [*fresh, _vmap(sender, senders)]))
    rules.append(("output", "replies", [_vmap(bits, [(mark.id, mark, "restore") for mark in marks])]))
    guarded = [mark for mark in marks if mark.via]
    if guarded:
        ids = [(mark.id, mark, "guard") for mark in guarded]
        rules.append(("postrouting", "replies leave by their proxy", [_vmap(bits, ids)]))
    for mark in marks:
        rules.append((f"save_{mark.id}", mark.name, [COUNTER, _set(META_MARK, mark), _set(CT_MARK, mark)]))
        rules.append((f"restore_{mark.id}", mark.name, [_set(META_MARK, mark)]))
        rules.extend((f"guard_{mark.id}", mark.name, statements) for statements in _guards(mark))
    return rules


COUNTER = {"counter": {"packets": 0, "bytes": 0}}


def _is(left: Any, right: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


def _vmap(key: Any, elements: Iterable[tuple[Any, Mark, str]]) -> dict[str, Any]:
    pairs = [[value, {"goto": {"target": f"{verb}_{mark.id}"}}] for value, mark, verb in elements]
    return {"vmap": {"key": key, "data": {"set": pairs}}}


def _set(key: Any, mark: Mark) -> dict[str, Any]:
    return {"mangle": {"key": key, "value": {"|": [{"&": [key, MAX_U32 & ~mark.mask]}, mark.id]}}}


def _guards(mark: Mark) -> list[list]:
    """One rule a family in which the proxy's address is known; the other family has no return path to guard."""
    rules = []
    for protocol, family in (("ipv4", "ip"), ("ipv6", "ip6")):
        addresses = [via for via in mark.via if (":" in via) == (family == "ip6")]
        if addresses:
            hops: Any = addresses[0] if len(addresses) == 1 else {"set": addresses}
            next_hop = _is({"rt": {"key": "nexthop", "family": family}}, hops, "!=")
            rules.append([_is({"meta": {"key": "nfproto"}}, protocol), next_hop, COUNTER, {"drop": None}])
    return rules


def transaction(owner: str, marks: Iterable[Mark]) -> dict[str, Any]:
    """All commands that put the table in place of whatever is there: one transaction, no moment without it."""
    table = {"table": {"family": FAMILY, "name": table_name(owner)}}
    marks = tuple(marks)
    # "add" first, so that "delete" does not fail when there is none ("destroy" is newer than nft 1.0.6's kernel side).
    commands: list[dict[str, Any]] = [{"add": table}, {"delete": table}]
    if marks:
        commands += [{"add": item} for item in render(owner, marks)]
    return {"nftables": commands}


def observe(owner: str, listing: dict[str, Any]) -> Observed:
    """What ``nft -j list table`` shows. An unknown or damaged table is one that is not sound."""
    objects = [item for item in listing.get("nftables", []) if {"chain", "rule"} & set(item)]
    marks = tuple(_marks(objects))
    if not marks:
        return Observed((), False)
    wanted, live = _signature(render(owner, marks)), _signature(objects)
    same = len(wanted[1]) == len(live[1]) and wanted[0] == live[0]
    return Observed(marks, same and all(_holds(*pair) for pair in zip(wanted[1], live[1])))


def _signature(objects: Iterable[dict[str, Any]]) -> tuple[set, list]:
    """Chains with their hooks, and rules as (chain, comment, values): what every version of nft lists alike.

    How an expression nests has changed between versions, the values in it have not: MACs, marks, addresses, verdicts.
    """
    chains, rules = set(), []
    for item in objects:
        if "chain" in item:
            chain = item["chain"]
            chains.add((chain["name"], chain.get("type"), chain.get("hook"), chain.get("policy")))
        elif "rule" in item:
            rule = item["rule"]
            values = frozenset(value for statement in rule["expr"] for value in _leaves(statement))
            rules.append((rule["chain"], rule.get("comment"), values))
    # A stable sort by chain: the order of rules counts within a chain only.
    return chains, sorted(rules, key=lambda rule: rule[0])


def _holds(wanted: tuple, live: tuple) -> bool:
    return wanted[:2] == live[:2] and wanted[2] <= live[2]


def _leaves(value: Any) -> Iterable[Any]:
    """The values in a statement that say what it does: texts of identity and marks; not structure, not counters."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("goto", "jump"):
                yield ("goto", inner.get("target"))
            elif key == "drop":
                yield "drop"
            elif key == "&":
                # The kernel keeps a masked set as and + xor; the listing's "and" need not be the one that was written.
                yield from (leaf for leaf in _leaves(inner) if not isinstance(leaf, int))
            elif key != "counter":
                yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F:.]*[:.][0-9a-fA-F:.]*", value):
        yield value.lower()
    elif isinstance(value, int) and value:
        yield value


def _marks(objects: list[dict[str, Any]]) -> Iterable[Mark]:
    """The marks a listing describes, read from the save and guard chains and from the map of senders."""
    rules = [item["rule"] for item in objects if "rule" in item]
    senders = [pair for rule in rules if rule["chain"] == "input" for pair in _pairs(rule["expr"])]
    mask = next((found for rule in rules if rule["chain"] == "output" for found in _masks(rule["expr"])), None)
    for rule in rules:
        found = re.fullmatch(r"restore_([0-9]+)", rule["chain"])
        if found and mask and rule.get("comment"):
            number = int(found.group(1))
            macs = tuple(mac for mac, target in senders if target == f"save_{number}")
            guards = [other for other in rules if other["chain"] == f"guard_{number}"]
            values = {leaf for guard in guards for leaf in _leaves(guard["expr"]) if isinstance(leaf, str)}
            yield Mark(rule["comment"], number, mask, macs, tuple(address(value) for value in values - {"drop"}))


def _pairs(value: Any) -> Iterable[tuple[str, str]]:
    """(MAC, chain) of a verdict map, wherever it nests."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        yield value[0].lower(), value[1].get("goto", {}).get("target", "")
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _pairs(inner)


def _masks(value: Any) -> Iterable[int]:
    if isinstance(value, dict) and isinstance(value.get("&"), list):
        yield from (part for part in value["&"] if isinstance(part, int))
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _masks(inner)


class Nft:
    """The live side: reads and replaces an owner's table through ``nft -j``."""

    def __init__(self, runner: Runner):
        self._run = runner

    def read(self, owner: str) -> Observed:
        """The owner's marks. Raises MissingPackage without nft, RoutingError when it fails."""
        names = {(item["table"]["family"], item["table"]["name"]) for item in self._tables() if "table" in item}
        if (FAMILY, table_name(owner)) not in names:
            return Observed()
        return observe(owner, json.loads(self._nft(["-j", "list", "table", FAMILY, table_name(owner)])))

    def write(self, owner: str, marks: Iterable[Mark]) -> None:
        """Replace the owner's table, or remove it when there are no marks."""
        self._nft(["-j", "-f", "-"], json.dumps(transaction(owner, marks)))

    def _tables(self) -> list[dict[str, Any]]:
        output = self._nft(["-j", "list", "tables"])
        return json.loads(output)["nftables"] if output.strip() else []

    def _nft(self, arguments: list[str], stdin: str | None = None) -> str:
        try:
            done = self._run(["nft", *arguments], stdin)
        except MissingCommand as error:
            raise MissingPackage("nftables", "marks need the command nft") from error
        if done.code:
            reason = (done.stderr or done.stdout).strip() or f"exit status {done.code}"
            raise RoutingError(f"nft {' '.join(arguments)}: {reason}")
        return done.stdout
