# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as one nft table of the owner, rendered and compared as JSON (libnftables-json(5)), changed in one transaction.

    input, forward       while our bits of the connection's mark are zero: the sender's MAC or interface -> save_ID
    input                count and drop a FIN of a connection that conntrack does not know
    save_ID              set our bits of the connection's mark to ID
    accepted             (hook input, last) clear all but our bits of a SYN's mark;
                         our bits of the connection's mark -> mark_ID
    output               our bits of the packet's mark, which are those of an accepted socket -> save_ID
    prerouting, output   replies: our bits of the connection's mark -> mark_ID   (output has type route: routes again)
    mark_ID              set our bits of the packet's mark
    postrouting          replies: our bits of the connection's mark -> guard_ID; our bits of the packet's mark as well
    guard_ID             count and drop a packet whose next hop is not the proxy

A port in ``last_sender`` (of a service that the kernel of the proxies forwards) differs in three points:

    input, forward       packets that may continue a connection (TCP: ACK without SYN): the sender's MAC -> save_ID
    output               an assured connection: our bits of its mark -> mark_ID, so not those of the accepted socket,
                         which knows only the first proxy
    guard_ID             accept a packet whose next hop is any proxy with this port

Its connections outlive their proxy: another one sends their packets from then on. A SYN moves no connection, even if
conntrack has forgotten it: the entry that the SYN creates is not assured. So after ``conntrack -F``, one reply goes to
the first proxy.

Requests to a container behind a published port pass through forward instead of input, and its replies through
prerouting instead of output. A mark without conntrack goes from input (a sender) or prerouting (a transparent socket)
directly to each_ID, and its guard, guard_each_ID, checks the packet's mark.

Conntrack can lose a connection (``conntrack -F``, a timeout). If the server sends next, its packet creates a new entry,
without a mark and in the direction "original". Therefore, with ``tcp_fwmark_accept``, the accepted socket keeps the
mark as well: chain accepted copies the connection's mark to the packet, and the new entry gets the mark of the socket's
packets. The sysctl affects all sockets of the host, so the bits of others are cleared on a SYN after all filters have
seen it. Otherwise a socket would keep those too, and rules of others (such as TPROXY's) would route its replies.

A UDP session has no such socket: its replies leak until the client sends again. That datagram is a reply in the new
entry, and marks it. This applies only to ports that clients do not use (ip_local_port_range). Otherwise, requests of
this host that are answered through the proxy's host would be sent there too.

A FIN of an unknown connection arrives after a reboot of this host, for example: no connection can keep a mark, and the
RST for the FIN would bypass the proxy. (Any other packet creates a conntrack entry: nf_conntrack_tcp_loose.)

A sender sets the bits of a connection only once. Otherwise, another proxy's SYN with the same four-tuple would redirect
a live connection. If conntrack has forgotten that connection, such a SYN does mark the new entry. The accepted socket
answers it (a challenge ACK, RFC 5961), and its mark comes before that of the entry and replaces it. Otherwise, the
answer would reach the other proxy, whose kernel would reset the live connection. nft 1.0.6 cannot copy one mark to
another under a mask, so each id has a chain. Only our bits are changed.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterable
from typing import Any

from ..document.model import MAX_U32, Mark, Observed, ip_protocol_name, served_port
from ..errors import MissingPackage, RoutingError
from ..host.runner import MissingCommand, Runner
from . import nft_listing
from .nft_listing import Objects

FAMILY = "inet"
# NF_IP_PRI_MANGLE: after conntrack (-200), before DNAT (-100) and any filter (0).
PRIORITY = -150
# Below the ports that clients get (ip_local_port_range).
SERVER_PORTS = (1, 32767)
# After all filters, just before the socket.
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
# How often an existing table is read if that fails.
ATTEMPTS = 3
CT_MARK = {"ct": {"key": "mark"}}
META_MARK = {"meta": {"key": "mark"}}
SOURCE_MAC = {"payload": {"protocol": "ether", "field": "saddr"}}
IN_LINK = {"meta": {"key": "iifname"}}
_FLAGS = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["syn", "ack"]}]}
_ORIGINAL_PORT = {"ct": {"key": "proto-dst", "dir": "original"}}
LAST_SENDER = "the last sender gets the replies"
# (chain, comment, statements)
Rules = list[tuple[str, str, list[Any]]]


def table_name(owner: str) -> str:
    return f"l4proxy_{owner}"


def render(owner: str, marks: Iterable[Mark]) -> Objects:
    """The table's objects (table, chains, rules) as libnftables JSON, in order."""
    marks = sorted(marks, key=lambda mark: mark.order)
    table = table_name(owner)
    rules = [*_hooked(marks), *(rule for mark in marks for rule in _chains_of(mark, marks))]
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
    """The rules of the hooked chains: each finds a mark and goes to its chain."""
    rules: Rules = [("accepted", "a socket keeps no bits of others", alone) for alone in _only_ours(marks)]
    for mask in sorted({mark.mask for mark in marks}):
        alike = [mark for mark in marks if mark.mask == mask]
        rules += _of_connections([mark for mark in alike if mark.conntrack], marks)
        rules += _of_packets([mark for mark in alike if not mark.conntrack])
    return rules


def _of_connections(tracked: list[Mark], every: list[Mark]) -> Rules:
    """The rules of marks that connections keep; ``tracked`` share one mask, ``every`` mark of the table need not."""
    if not tracked:
        return []
    connection, packet = (_bits(key, tracked) for key in (CT_MARK, META_MARK))
    # A connection that has a mark under another mask keeps it.
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
    rules += _last_senders(tracked)
    pairs = [(mark.id, mark) for mark in tracked]
    rules.append(("accepted", "for the accepted socket", [_vmap(connection, pairs, "mark")]))
    ports = sorted({port for mark in tracked for protocol, port in moving_ports(mark) if protocol == "tcp"})
    if ports:
        assured = [_is(_port("tcp", "sport"), _one_or_set(ports)), _is({"ct": {"key": "status"}}, "assured", "in")]
        rules.append(("output", "replies to the last sender", [*assured, _vmap(connection, pairs, "mark")]))
    rules.append(("output", "an accepted socket knows its proxy", [_vmap(packet, pairs, "save")]))
    rules += [(hook, "replies", [reply, _vmap(connection, pairs, "mark")]) for hook in ("prerouting", "output")]
    udp = [_is({"ct": {"key": "direction"}}, "original"), _is({"meta": {"key": "l4proto"}}, "udp")]
    rules.append(("output", "a UDP session that conntrack has forgotten", [*udp, _vmap(connection, pairs, "mark")]))
    return [*rules, *_guarded(tracked, connection, [reply], "guard"), *_guarded(tracked, packet, [], "guard")]


def _last_senders(tracked: list[Mark]) -> Rules:
    """The rules by which the mark of a connection follows its last sender, on the ports of a mark that say so.

    In chain forward, a published port has been translated already; the connection remembers it.
    """
    rules: Rules = []
    for mark in tracked:
        for protocol, port in moving_ports(mark):
            # nft 1.0.6 lists no set of ports of the original direction, and omits "l4proto tcp" before flags of TCP.
            continues = [_is(_FLAGS, "ack")] if protocol == "tcp" else []
            transport = continues or [_is({"meta": {"key": "l4proto"}}, protocol)]
            published = [_is({"ct": {"key": "direction"}}, "original"), _is(_ORIGINAL_PORT, port)]
            for senders in _senders([mark], "save"):
                rules.append(("input", LAST_SENDER, [_is(_port(protocol, "dport"), port), *continues, senders]))
                rules.append(("forward", LAST_SENDER, [*transport, *published, senders]))
    return rules


def _of_packets(single: list[Mark]) -> Rules:
    """The rules of marks that are set on each packet; they share one mask."""
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


def _chains_of(mark: Mark, marks: list[Mark]) -> Rules:
    """The rules of the chains of one mark; ``marks`` are all of the table."""
    verb, guard = ("mark", "guard") if mark.conntrack else ("each", "guard_each")
    rules: Rules = [(f"save_{mark.id}", mark.name, [COUNTER, _set(CT_MARK, mark)])] if mark.conntrack else []
    rules.append((f"{verb}_{mark.id}", mark.name, [COUNTER, _set(META_MARK, mark)]))
    rules.extend((f"{guard}_{mark.id}", mark.name, statements) for statements in _guards(mark, marks))
    return rules


COUNTER = {"counter": {"packets": 0, "bytes": 0}}


def _bits(key: Any, marks: list[Mark]) -> Any:
    """Our bits of a mark; nft omits a mask of all bits."""
    mask = functools.reduce(operator.or_, (mark.mask for mark in marks)) if marks else MAX_U32
    return key if mask == MAX_U32 else {"&": [key, mask]}


def _is(left: Any, right: Any, relation: str = "==") -> dict[str, Any]:
    return {"match": {"op": relation, "left": left, "right": right}}


def _senders(marks: list[Mark], verb: str) -> Iterable[dict[str, Any]]:
    """A map from the senders' MACs to chains, and one from interfaces, as far as there are any."""
    by_mac = [(mac, mark) for mark in marks for mac in mark.macs]
    by_link = [(mark.iif, mark) for mark in marks if mark.iif]
    if by_mac:
        yield _vmap(SOURCE_MAC, by_mac, verb)
    if by_link:
        yield _vmap(IN_LINK, by_link, verb)


def _sources(marks: list[Mark]) -> Iterable[tuple[dict[str, Any], list[str]]]:
    """The senders: their MACs, and their interfaces, as far as there are any."""
    pairs = ((SOURCE_MAC, [mac for mark in marks for mac in mark.macs]), (IN_LINK, [mark.iif for mark in marks]))
    return [(key, [*filter(None, values)]) for key, values in pairs if any(values)]


def _only_ours(marks: list[Mark]) -> Iterable[list[dict[str, Any]]]:
    """Clear the bits of others on a SYN, if sockets of a return path would keep them."""
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
    other_bits = {"&": [key, MAX_U32 & ~mark.mask]}
    return {"mangle": {"key": key, "value": mark.id if mark.mask == MAX_U32 else {"|": [other_bits, mark.id]}}}


def _guards(mark: Mark, marks: list[Mark]) -> Iterable[list[Any]]:
    """One rule for each family in which the proxy has an address; the other has no return path to guard.

    Before that one for each port from which another proxy may get the replies.
    """
    for protocol, family in (("ipv4", "ip"), ("ipv6", "ip6")):
        nfproto, hop = _is({"meta": {"key": "nfproto"}}, protocol), {"rt": {"key": "nexthop", "family": family}}
        addresses = _addresses(mark, family)
        for transport, port in moving_ports(mark) if addresses else ():
            others = [other for other in marks if (transport, port) in moving_ports(other)]
            hops = _one_or_set({address for other in others for address in _addresses(other, family)})
            yield [nfproto, _is(_port(transport, "sport"), port), _is(hop, hops), {"accept": None}]
        if addresses:
            yield [nfproto, _is(hop, _one_or_set(addresses), "!="), COUNTER, {"drop": None}]


def _addresses(mark: Mark, family: str) -> list[str]:
    return [via for via in mark.via if (":" in via) == (family == "ip6")]


def moving_ports(mark: Mark) -> list[tuple[str, int]]:
    """The ports whose connections follow their last sender, each with the name of its protocol."""
    return [(ip_protocol_name(protocol), port) for protocol, port in map(served_port, mark.last_sender)]


def _port(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def _one_or_set(values: Iterable[Any]) -> Any:
    """The right side of a match: one value, or a set of several; an empty list for none."""
    several = sorted(values)
    return several[0] if len(several) == 1 else {"set": several} if several else []


def transaction(owner: str, marks: Iterable[Mark]) -> dict[str, Any]:
    """The commands that replace the table in one transaction, so that it is never missing."""
    table = {"table": {"family": FAMILY, "name": table_name(owner)}}
    marks = tuple(marks)
    # "add" first, so that "delete" does not fail if it is missing ("destroy" needs a newer kernel than nft 1.0.6 does).
    commands: list[dict[str, Any]] = [{"add": table}, {"delete": table}]
    if marks:
        commands += [{"add": item} for item in render(owner, marks)]
    return {"nftables": commands}


def observe(owner: str, listing: dict[str, Any]) -> Observed:
    """The marks in the output of ``nft -j list table``. An unknown or changed table is not sound."""
    objects = [item for item in listing.get("nftables", []) if {"chain", "rule"} & set(item)]
    marks = tuple(nft_listing.marks(objects))
    if not marks:
        return Observed((), False)
    return Observed(marks, nft_listing.signature(render(owner, marks)) == nft_listing.signature(objects))


class Nft:
    """Reads and replaces an owner's table through ``nft -j``."""

    def __init__(self, runner: Runner):
        self._run = runner

    def read(self, owner: str) -> Observed:
        """The owner's live marks. Raises MissingPackage without nft, RoutingError if it fails."""
        for _attempt in range(ATTEMPTS):
            try:
                return observe(owner, json.loads(self._nft(["-j", "list", "table", FAMILY, table_name(owner)])))
            except RoutingError as error:
                # Usually the table does not exist, which nft reports in words that may change. Otherwise someone may
                # have changed the ruleset meanwhile, which does not make nftables unusable.
                failure = error
                if not self._has_table(owner):
                    return Observed()
        raise failure

    def write(self, owner: str, marks: Iterable[Mark]) -> None:
        """Replace the owner's table, or remove it without marks."""
        self._nft(["-j", "-f", "-"], json.dumps(transaction(owner, marks)))

    def _has_table(self, owner: str) -> bool:
        # `list tables` of nft 1.0.6 reads everything: with 100 services that the kernel forwards, this takes 1.4 s.
        output = self._nft(["-j", "list", "chains"])
        chains = [item.get("chain", {}) for item in (json.loads(output)["nftables"] if output.strip() else [])]
        return any((chain.get("family"), chain.get("table")) == (FAMILY, table_name(owner)) for chain in chains)

    def _nft(self, arguments: list[str], stdin: str | None = None) -> str:
        try:
            done = self._run(["nft", *arguments], stdin)
        except MissingCommand as error:
            raise MissingPackage("nftables", "marks need the command nft") from error
        if done.code:
            reason = (done.stderr or done.stdout).strip() or f"exit status {done.code}"
            raise RoutingError(f"nft {' '.join(arguments)}: {reason}")
        return done.stdout
