# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as one nft table of the owner: rendered and compared as the JSON of libnftables-json(5), changed in one go.

    input, forward       while our bits of the connection's mark are zero: the sender's MAC or interface -> save_ID
    input                a FIN of a connection that conntrack does not know is counted and dropped
    save_ID              set our bits of the connection's mark to ID
    accepted             (hook input, last) of a SYN's mark only our bits are left;
                         our bits of the connection's mark -> mark_ID
    prerouting, output   of replies: our bits of the connection's mark -> mark_ID   (output has type route: routed anew)
    output               while our bits of the connection's mark are zero: those of the packet's mark -> save_ID
    mark_ID              set our bits of the packet's mark
    postrouting          of replies: our bits of the connection's mark -> guard_ID; our bits of the packet's mark too
    guard_ID             a packet whose next hop is not the proxy is counted and dropped

Requests to a container behind a published port pass through forward instead of input, and its replies through
prerouting instead of output. A mark without conntrack goes from input (a sender) or prerouting (a transparent socket)
straight to each_ID, and its guard, guard_each_ID, goes by the packet's mark.

Conntrack can forget a connection (``conntrack -F``, a timeout). If the server speaks next, its packet begins a new
entry, with no mark and in the direction "original". So with ``tcp_fwmark_accept`` the accepted socket keeps the mark as
well: chain accepted shows it the connection's mark, and the new entry gets the mark of the socket's packet. The sysctl
counts for all sockets of the host, so the bits of others are taken off a SYN, once every filter has seen it. Otherwise
a socket would keep those too, and rules of others (for TPROXY, say) would route its replies.

A UDP session has no such socket: its answers leak until the client sends again. That datagram is a reply in the new
entry, and marks it. Only at ports that are no client's (ip_local_port_range): else what this host asks others, and is
answered by way of the proxy's host, would be sent there too.

Such a FIN comes after a reboot of this host, say: there is no connection that could keep a mark, and the RST that would
answer it leaves past the proxy. (Anything else begins a connection in conntrack's eyes: nf_conntrack_tcp_loose.)

The connection's bits are set only once in its life: else another proxy's SYN on the same four-tuple would redirect a
live connection. nft 1.0.6 cannot copy one mark to another under a mask, hence a chain for each id. Only our bits are
touched.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterable
from typing import Any

from ..document.model import MAX_U32, Mark, Observed
from ..errors import MissingPackage, RoutingError
from ..host.runner import MissingCommand, Runner
from . import nft_listing
from .nft_listing import Objects

FAMILY = "inet"
# NF_IP_PRI_MANGLE: after conntrack (-200), before DNAT (-100) and any filter (0).
PRIORITY = -150
# Below the ports that clients are given (ip-sysctl).
SERVER_PORTS = (1, 32767)
# After all filters: what comes then is the socket.
LAST = 10000
# chain: (type, hook, priority)
HOOKS = {
    "prerouting": ("filter", "prerouting", PRIORITY),
    "input": ("filter", "input", PRIORITY),
    "accepted": ("filter", "input", LAST),
    "forward": ("filter", "forward", PRIORITY),
    "output": ("route", "output", PRIORITY),
    "postrouting": ("filter", "postrouting", PRIORITY),
}
# How often a table that is there is asked for.
ATTEMPTS = 3
CT_MARK = {"ct": {"key": "mark"}}
META_MARK = {"meta": {"key": "mark"}}
SOURCE_MAC = {"payload": {"protocol": "ether", "field": "saddr"}}
IN_LINK = {"meta": {"key": "iifname"}}
# (chain, comment, statements)
Rules = list[tuple[str, str, list[Any]]]


def table_name(owner: str) -> str:
    return f"l4proxy_{owner}"


def render(owner: str, marks: Iterable[Mark]) -> Objects:
    """The table's objects (table, chains, rules) as libnftables JSON, in order."""
    marks = sorted(marks, key=lambda mark: mark.order)
    table = table_name(owner)
    rules = [*_hooked(marks), *(rule for mark in marks for rule in _chains_of(mark))]
    objects: Objects = [{"table": {"family": FAMILY, "name": table}}]
    for name in dict.fromkeys(chain for chain, _comment, _statements in rules):
        hook: dict[str, Any] = {}
        if name in HOOKS:
            hook = {**dict(zip(("type", "hook", "prio"), HOOKS[name])), "policy": "accept"}
        objects.append({"chain": {"family": FAMILY, "table": table, "name": name, **hook}})
    for chain, comment, expressions in rules:
        rule = {"family": FAMILY, "table": table, "chain": chain, "comment": comment, "expr": expressions}
        objects.append({"rule": rule})
    return objects


def _hooked(marks: list[Mark]) -> Rules:
    """The rules of the chains that see packets: each finds a mark and goes to its chain."""
    rules: Rules = [("accepted", "a socket keeps no bits of others", alone) for alone in _only_ours(marks)]
    for mask in sorted({mark.mask for mark in marks}):
        alike = [mark for mark in marks if mark.mask == mask]
        rules += _of_connections([mark for mark in alike if mark.conntrack], marks)
        rules += _of_packets([mark for mark in alike if not mark.conntrack])
    return rules


def _of_connections(tracked: list[Mark], every: list[Mark]) -> Rules:
    """The rules of marks that connections keep; they have one mask, ``every`` mark of the table may have others."""
    if not tracked:
        return []
    connection, packet = (_bits(key, tracked) for key in (CT_MARK, META_MARK))
    # A connection that has a mark under another mask keeps that one.
    unmarked = _is(_bits(CT_MARK, every), 0)
    reply = _is({"ct": {"key": "direction"}}, "reply")
    rules: Rules = [
        (hook, "first packet of a connection", [_is({"ct": {"key": "direction"}}, "original"), unmarked, senders])
        for hook in ("input", "forward")
        for senders in _senders(tracked, "save")
    ]
    served = _is({"payload": {"protocol": "udp", "field": "dport"}}, {"range": list(SERVER_PORTS)})
    rules += [
        ("input", "a UDP session that conntrack has forgotten", [reply, unmarked, served, senders])
        for senders in _senders(tracked, "save")
    ]
    rules += [("input", "end of an unknown connection", list(_stale(key, values))) for key, values in _sources(tracked)]
    pairs = [(mark.id, mark) for mark in tracked]
    rules.append(("accepted", "for the accepted socket", [_vmap(connection, pairs, "mark")]))
    rules += [(hook, "replies", [reply, _vmap(connection, pairs, "mark")]) for hook in ("prerouting", "output")]
    udp = [_is({"ct": {"key": "direction"}}, "original"), _is({"meta": {"key": "l4proto"}}, "udp")]
    rules.append(("output", "a UDP session that conntrack has forgotten", [*udp, _vmap(connection, pairs, "mark")]))
    rules.append(("output", "a connection that conntrack has forgotten", [unmarked, _vmap(packet, pairs, "save")]))
    return [*rules, *_guarded(tracked, connection, [reply], "guard"), *_guarded(tracked, packet, [], "guard")]


def _of_packets(single: list[Mark]) -> Rules:
    """The rules of marks that each packet gets by itself; they have one mask."""
    packet = _bits(META_MARK, single)
    rules: Rules = [("input", "each packet", [_is(packet, 0), senders]) for senders in _senders(single, "each")]
    for mark in single:
        if mark.transparent:
            socket = _is({"socket": {"key": "transparent"}}, 1)
            rules.append(("prerouting", "for a transparent socket", [_is(packet, 0), socket, _goto(mark, "each")]))
    return [*rules, *_guarded(single, packet, [], "guard_each")]


def _guarded(marks: list[Mark], key: Any, condition: list[Any], verb: str) -> Rules:
    pairs = [(mark.id, mark) for mark in marks if mark.via]
    return [("postrouting", "replies leave by their proxy", [*condition, _vmap(key, pairs, verb)])] if pairs else []


def _chains_of(mark: Mark) -> Rules:
    """The rules of a mark's own chains."""
    verb, guard = ("mark", "guard") if mark.conntrack else ("each", "guard_each")
    rules: Rules = [(f"save_{mark.id}", mark.name, [COUNTER, _set(CT_MARK, mark)])] if mark.conntrack else []
    rules.append((f"{verb}_{mark.id}", mark.name, [COUNTER, _set(META_MARK, mark)]))
    rules.extend((f"{guard}_{mark.id}", mark.name, statements) for statements in _guards(mark))
    return rules


COUNTER = {"counter": {"packets": 0, "bytes": 0}}


def _bits(key: Any, marks: list[Mark]) -> Any:
    """Our bits of a mark; nft lists a mask of all bits as none."""
    mask = functools.reduce(operator.or_, (mark.mask for mark in marks)) if marks else MAX_U32
    return key if mask == MAX_U32 else {"&": [key, mask]}


def _is(left: Any, right: Any, relation: str = "==") -> dict[str, Any]:
    return {"match": {"op": relation, "left": left, "right": right}}


def _senders(marks: list[Mark], verb: str) -> Iterable[dict[str, Any]]:
    """A map of the senders' MACs to chains, and one of the interfaces, where there are any."""
    by_mac = [(mac, mark) for mark in marks for mac in mark.macs]
    by_link = [(mark.iif, mark) for mark in marks if mark.iif]
    if by_mac:
        yield _vmap(SOURCE_MAC, by_mac, verb)
    if by_link:
        yield _vmap(IN_LINK, by_link, verb)


def _sources(marks: list[Mark]) -> Iterable[tuple[dict[str, Any], list[str]]]:
    """The senders alone: their MACs, and their interfaces, where there are any."""
    found = ((SOURCE_MAC, [mac for mark in marks for mac in mark.macs]), (IN_LINK, [mark.iif for mark in marks]))
    return [(key, [*filter(None, values)]) for key, values in found if any(values)]


def _only_ours(marks: list[Mark]) -> Iterable[list[dict[str, Any]]]:
    """Take the bits of others off a SYN, where the sockets of a return path may keep them."""
    bits = _bits(META_MARK, marks)
    if any(mark.via for mark in marks) and bits != META_MARK:
        ours = {"mangle": {"key": META_MARK, "value": bits}}
        yield [_is({"payload": {"protocol": "tcp", "field": "flags"}}, "syn", "in"), ours]


def _stale(key: dict[str, Any], values: list[str]) -> Iterable[dict[str, Any]]:
    yield _is(key, values[0] if len(values) == 1 else {"set": values})
    yield _is({"ct": {"key": "state"}}, "invalid", "in")
    yield _is({"payload": {"protocol": "tcp", "field": "flags"}}, "fin", "in")
    yield COUNTER
    yield {"drop": None}


def _vmap(key: Any, elements: Iterable[tuple[Any, Mark]], verb: str) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [[value, _goto(mark, verb)] for value, mark in elements]}}}


def _goto(mark: Mark, verb: str) -> dict[str, Any]:
    return {"goto": {"target": f"{verb}_{mark.id}"}}


def _set(key: Any, mark: Mark) -> dict[str, Any]:
    whole = mark.mask == MAX_U32
    return {"mangle": {"key": key, "value": mark.id if whole else {"|": [{"&": [key, MAX_U32 & ~mark.mask]}, mark.id]}}}


def _guards(mark: Mark) -> list[list[Any]]:
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
    marks = tuple(nft_listing.marks(objects))
    if not marks:
        return Observed((), False)
    return Observed(marks, nft_listing.signature(render(owner, marks)) == nft_listing.signature(objects))


class Nft:
    """The live side: reads and replaces an owner's table through ``nft -j``."""

    def __init__(self, runner: Runner):
        self._run = runner

    def read(self, owner: str) -> Observed:
        """The owner's marks. Raises MissingPackage without nft, RoutingError when it fails."""
        for _attempt in range(ATTEMPTS):
            try:
                return observe(owner, json.loads(self._nft(["-j", "list", "table", FAMILY, table_name(owner)])))
            except RoutingError as error:
                # Mostly because there is none, which nft says in words that may change. Else somebody may have changed
                # the ruleset under the listing, which is no reason to call nftables unusable.
                failure = error
                if not self._has_table(owner):
                    return Observed()
        raise failure

    def write(self, owner: str, marks: Iterable[Mark]) -> None:
        """Replace the owner's table, or remove it when there are no marks."""
        self._nft(["-j", "-f", "-"], json.dumps(transaction(owner, marks)))

    def _has_table(self, owner: str) -> bool:
        output = self._nft(["-j", "list", "tables"])
        tables = [item.get("table", {}) for item in (json.loads(output)["nftables"] if output.strip() else [])]
        return any((table.get("family"), table.get("name")) == (FAMILY, table_name(owner)) for table in tables)

    def _nft(self, arguments: list[str], stdin: str | None = None) -> str:
        try:
            done = self._run(["nft", *arguments], stdin)
        except MissingCommand as error:
            raise MissingPackage("nftables", "marks need the command nft") from error
        if done.code:
            reason = (done.stderr or done.stdout).strip() or f"exit status {done.code}"
            raise RoutingError(f"nft {' '.join(arguments)}: {reason}")
        return done.stdout
