# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packet filters that drop clients, overwrite our marks, bypass conntrack, or send clients to containers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import replace

from ...marks.nft import PRIORITY
from .. import rule_matching
from ..facts.model import Facts, Peer, format_ports
from ..facts.unread import require
from ..finding import Finding, fail_or_warn, skip, warn
from ..firewall.model import DNAT, SYNPROXY, UNTRACK, Chain, MarkWrite, Packet, Reached, Verdict
from ..rule_matching import Reply

TCP = 6
# NF_IP_PRI_CONNTRACK: only a rule before this priority can keep a packet from conntrack.
CONNTRACK = -200
NO_RULESET = "packet filters cannot be listed without nft"
# Stands for any port of the far end.
ANY_PORT = 40000
REQUEST_HOOKS, REPLY_HOOKS = ("prerouting", "input"), ("output", "postrouting")


def no_ruleset(facts: Facts) -> bool:
    """Whether this host has no tool to list packet filters. NotRead if listing them failed."""
    require(facts.ruleset)
    return facts.ruleset is None


def firewall(facts: Facts) -> Iterator[Finding]:
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    yield from _clients_at_backend(facts)
    yield from _clients_at_proxy(facts)
    yield from _replies_at_proxy(facts)


def _clients_at_backend(facts: Facts) -> Iterator[Finding]:
    """Ports that accept the proxy but not the clients; a port named by the caller must accept the clients anyway."""
    named = set(facts.ports)
    listening = {(socket.protocol, socket.port) for socket in facts.sockets if socket.protocol == "tcp"}
    for peer in facts.peers:
        for protocol, port in sorted(named or listening) if peer.own and peer.dev else ():
            packet = Packet(peer.family, facts.clients[peer.family], peer.own, protocol, ANY_PORT, port, peer.dev)
            client = facts.filters.verdict("input", packet)
            proxy = facts.filters.verdict("input", replace(packet, src=peer.via))
            if client.accepted or not (proxy.accepted or (protocol, port) in named):
                continue
            verb = f"accepts proxy {peer.name} but drops" if proxy.accepted else "drops"
            yield _dropped(
                facts,
                packet,
                client,
                f"a packet filter {verb} clients such as {packet.src} at {protocol} port {port}",
                "a backend behind a transparent proxy sees the clients' own addresses, so a rule for the proxy's "
                "address does not admit them, although checks from the proxy succeed",
                f"accept the clients: `nft insert rule TABLE CHAIN {protocol} dport {port} accept`",
            )


def _clients_at_proxy(facts: Facts) -> Iterator[Finding]:
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        client = facts.clients[listener.family]
        packet = Packet(listener.family, client, listener.address, listener.protocol, ANY_PORT, listener.port)
        dropped: dict[Verdict, list[int]] = {}
        for port in listener.ports:
            verdict = facts.filters.verdict("input", replace(packet, dport=port))
            if not verdict.accepted:
                dropped.setdefault(verdict, []).append(port)
        for verdict, ports in dropped.items():
            yield _dropped(
                facts,
                replace(packet, dport=ports[0]),
                verdict,
                f"a packet filter drops clients such as {client} at {listener.protocol} port {format_ports(ports)}",
                "a service listens there, but clients cannot connect",
                f"accept the clients: `nft insert rule TABLE CHAIN {listener.protocol} dport {ports[0]} accept`",
            )


def _replies_at_proxy(facts: Facts) -> Iterator[Finding]:
    for reply in (reply for reply in facts.replies if reply.iif and reply.ip_proto == TCP):
        packet = Packet(reply.family, reply.src, reply.dst, "tcp", None, ANY_PORT, reply.iif, state="established")
        verdict = facts.filters.verdict("input", replace(packet, mark=reply.mark))
        if not verdict.accepted:
            yield _dropped(
                facts,
                packet,
                verdict,
                f"a packet filter drops replies of backend {reply.src} to clients such as {reply.dst}",
                "replies are addressed to the client, not to this host, and the filter must still accept them",
                "accept replies: `nft insert rule TABLE CHAIN ct state established accept`",
            )


def _dropped(facts: Facts, packet: Packet, verdict: Verdict, what: str, why: str, fix: str) -> Finding:
    """A failure only for a client that the caller named; clients like the sample may be unwanted."""
    doubt = "" if verdict.certain else "; a rule before it that the doctor cannot interpret may accept them"
    certain = verdict.certain and (packet.state == "established" or packet.family in facts.clients_given)
    subject = f"{packet.protocol} {packet.dport}" if packet.dport else packet.src
    return fail_or_warn(certain, subject, f"{what} ({verdict.by}{doubt})", why, fix)


def mark_clobbered(facts: Facts) -> Iterator[Finding]:
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    reported = set()
    for peer, reply in _marked_replies(facts):
        for hook in (*REQUEST_HOOKS, *REPLY_HOOKS):
            for reached in facts.filters.reached(hook, _packet(peer, reply, hook)):
                written = [write.bits for write in reached.rule.writes if _harms(peer, reached.base, write)]
                key = (reached.chain.table, reached.rule.text)
                if written and key not in reported:
                    reported.add(key)
                    yield _clobbering(peer, reached, functools.reduce(operator.or_, written, peer.mask))


def _clobbering(peer: Peer, reached: Reached, written: int) -> Finding:
    base, chain = reached.base, reached.chain
    # The order of two chains of one priority changes whenever either is loaded again.
    certain = reached.certain and not (peer.tracked and base.type == "route" and base.priority == PRIORITY)
    return fail_or_warn(
        certain,
        chain.table,
        f"`{reached.rule.text}` in chain {chain.table} {chain.name} {'overwrites' if certain else 'may overwrite'} "
        f"bits {peer.mask:#x} of the mark, which identify the proxy",
        "a reply without its mark bypasses the proxy, or goes to another one",
        f"preserve our bits in that rule (nft: mark and {0xFFFFFFFF & peer.mask:#x} or VALUE; iptables: a mask with "
        "--set-xmark, --restore-mark, --save-mark)" + rule_matching.other_bits(written),
    )


def _harms(peer: Peer, base: Chain, write: MarkWrite) -> bool:
    """Whether a mark written in a chain at that hook removes our bits from a packet that is still to be routed by them.

    Our own chains have PRIORITY. They set the connection's mark on a request, if our bits are zero, and copy it to the
    reply on OUTPUT. Without conntrack the socket keeps the mark of the request itself.
    """
    if not write.bits & peer.mask:
        return False
    before_ours = base.hook == "prerouting" or base.priority < PRIORITY
    leaves_zero = write.value is not None and not write.value & peer.mask
    if write.key == "ct":
        return peer.tracked and not (base.hook in REQUEST_HOOKS and before_ours and leaves_zero)
    if base.hook in REQUEST_HOOKS:
        return not peer.tracked and not (before_ours and leaves_zero)
    # Only a chain of type route makes the kernel route the packet again; a later write has no effect on routing.
    return base.hook == "output" and base.type == "route" and not (peer.tracked and before_ours)


def untracked(facts: Facts) -> Iterator[Finding]:
    """Rules that keep packets of the path from conntrack, which holds the marks."""
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    reported = set()
    for peer in facts.peers:
        own = peer.own
        if not (own and peer.tracked and peer.dev):
            continue
        for protocol, port in [("tcp", None), ("udp", None), *facts.served(own)]:
            for reached in _untracking(facts, peer, own, protocol, port):
                key = (reached.chain.table, reached.chain.name, reached.rule.text)
                # A rule for certain ports matters only for those, so it is reported with one of them.
                if key in reported or (port is None and not reached.certain):
                    continue
                reported.add(key)
                certain = reached.certain and (port is None or (protocol, port) in facts.ports)
                yield _untracked(reached, protocol, port, certain)


def _untracking(facts: Facts, peer: Peer, own: str, protocol: str, port: int | None) -> Iterator[Reached]:
    request = Packet(peer.family, facts.clients[peer.family], own, protocol, ANY_PORT, port, peer.dev, state=None)
    request = replace(request, src_type="unicast", dst_type="local", syn="yes")
    reply = Packet(peer.family, own, facts.clients[peer.family], protocol, port, ANY_PORT, None, peer.dev, None)
    # A SYN proxy answers packets that an earlier rule has kept from conntrack.
    at_input = replace(request, state="untracked")
    for hook, packet in (("prerouting", request), ("input", at_input), ("output", reply)):
        for reached in facts.filters.reached(hook, packet):
            early = reached.rule.effect == UNTRACK and reached.base.priority < CONNTRACK
            if early or (reached.rule.effect == SYNPROXY and protocol == "tcp"):
                yield reached


def _untracked(reached: Reached, protocol: str, port: int | None, certain: bool) -> Finding:
    chain, rule = reached.chain, reached.rule
    traffic = f"{protocol} port {port}" if port else "every port"
    effect = "answers in place of the server at" if rule.effect == SYNPROXY else "disables conntrack for"
    return fail_or_warn(
        certain,
        f"{protocol} {port}" if port else chain.table,
        f"`{rule.text}` in chain {chain.table} {chain.name} {effect} {traffic} of this backend",
        "conntrack holds the marks, so a reply without a conntrack entry bypasses the proxy, and clients time out",
        "exclude the proxied ports from that rule; or set return_path_strategy: address, which needs no conntrack, in "
        "this backend's host_vars",
    )


def _marked_replies(facts: Facts) -> Iterator[tuple[Peer, Reply]]:
    for peer in facts.peers:
        for reply in facts.replies:
            if peer.id and reply.mark == peer.id and reply.family == peer.family and peer.dev and not reply.iif:
                yield peer, reply


def _packet(peer: Peer, reply: Reply, hook: str) -> Packet:
    """The client's request at the request hooks, the server's reply at the others."""
    if hook in REQUEST_HOOKS:
        return Packet(peer.family, reply.dst, reply.src, "tcp", ANY_PORT, None, peer.dev)
    return Packet(peer.family, reply.src, reply.dst, "tcp", None, ANY_PORT, None, peer.dev, "established", reply.mark)


def containers(facts: Facts) -> Iterator[Finding]:
    """The kernel forwards a container's replies, so they never pass the OUTPUT hook where ours get their mark back."""
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    for peer, reply in _marked_replies(facts):
        for reached in facts.filters.reached("prerouting", _packet(peer, reply, "prerouting")):
            chain, rule = reached.chain, reached.rule
            if rule.effect == DNAT and not facts.restores_forwarded:
                yield warn(
                    chain.table,
                    f"`{rule.text}` in chain {chain.table} {chain.name} sends published ports to containers",
                    "this host forwards a container's replies instead of sending them, so they do not get their mark "
                    "back",
                    "serve the port from this host itself, or run the return_path role of a version that restores the "
                    "mark in PREROUTING",
                )
                return
