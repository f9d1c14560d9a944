# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packet filters: those that drop clients, those that overwrite our marks, and those that translate addresses."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import replace

from ...marks.nft import PRIORITY
from .. import rule_matching
from ..facts.model import Facts, Peer, spelled
from ..facts.unread import require
from ..finding import FAIL, WARN, Finding, skip
from ..firewall.model import DNAT, SYNPROXY, UNTRACK, Chain, MarkWrite, Packet, Reached, Verdict
from ..rule_matching import Reply

TCP = 6
# NF_IP_PRI_CONNTRACK: what a rule keeps from conntrack, it keeps from it before.
CONNTRACK = -200
NO_RULESET = "packet filters cannot be listed without nft"
# A port of the far end, to stand for any.
ANY_PORT = 40000


def is_unlisted(facts: Facts) -> bool:
    """Whether nothing here can list packet filters. NotRead where that failed."""
    require(facts.ruleset)
    return facts.ruleset is None


def firewall(facts: Facts) -> Iterator[Finding]:
    if is_unlisted(facts):
        yield skip(NO_RULESET)
        return
    yield from _clients_at_backend(facts)
    yield from _clients_at_proxy(facts)
    yield from _replies_at_proxy(facts)


def _clients_at_backend(facts: Facts) -> Iterator[Finding]:
    """A port that admits the proxy and not the clients; a port that was named must admit the clients anyway."""
    named = set(facts.ports)
    listening = {(one.protocol, one.port) for one in facts.sockets if one.protocol == "tcp"}
    for peer in facts.peers:
        for protocol, port in sorted(named or listening) if peer.own and peer.dev else ():
            packet = Packet(peer.family, facts.clients[peer.family], peer.own, protocol, ANY_PORT, port, peer.dev)
            client = facts.ruleset.verdict("input", packet)
            proxy = facts.ruleset.verdict("input", replace(packet, src=peer.via))
            if client.accepted or not (proxy.accepted or (protocol, port) in named):
                continue
            who = f"admits proxy {peer.name} but drops" if proxy.accepted else "drops"
            yield _dropped(
                facts,
                packet,
                client,
                f"a packet filter {who} clients such as {packet.src} at {protocol} port {port}",
                "with a transparent proxy the backend sees the clients' own addresses, so a rule that names the proxy "
                "does not let them in, while checks from the proxy stay green",
                f"admit the clients: `nft insert rule TABLE CHAIN {protocol} dport {port} accept`",
            )


def _clients_at_proxy(facts: Facts) -> Iterator[Finding]:
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        client = facts.clients[listener.family]
        packet = Packet(listener.family, client, listener.address, listener.protocol, ANY_PORT, listener.port)
        dropped: dict[Verdict, list[int]] = {}
        for port in listener.ports:
            verdict = facts.ruleset.verdict("input", replace(packet, dport=port))
            if not verdict.accepted:
                dropped.setdefault(verdict, []).append(port)
        for verdict, ports in dropped.items():
            yield _dropped(
                facts,
                replace(packet, dport=ports[0]),
                verdict,
                f"a packet filter drops clients such as {client} at {listener.protocol} port {spelled(ports)}",
                "the service listens there and nobody gets in",
                f"`nft insert rule TABLE CHAIN {listener.protocol} dport {ports[0]} accept`",
            )


def _replies_at_proxy(facts: Facts) -> Iterator[Finding]:
    for reply in (one for one in facts.replies if one.iif and one.ip_proto == TCP):
        packet = Packet(reply.family, reply.src, reply.dst, "tcp", None, ANY_PORT, reply.iif, state="established")
        verdict = facts.ruleset.verdict("input", replace(packet, mark=reply.mark))
        if not verdict.accepted:
            yield _dropped(
                facts,
                packet,
                verdict,
                f"a packet filter drops replies of backend {reply.src} to clients such as {reply.dst}",
                "their destination is not an address of this host, and they have to come in all the same",
                "`nft insert rule TABLE CHAIN ct state established accept`",
            )


def _dropped(facts: Facts, packet: Packet, verdict: Verdict, what: str, why: str, fix: str) -> Finding:
    """It fails for a client that was named; the sample stands for clients that may not be meant to get in."""
    doubt = "" if verdict.certain else "; a rule before it is not understood here and may let them pass"
    certain = verdict.certain and (packet.state == "established" or packet.family in facts.clients_given)
    subject = f"{packet.protocol} {packet.dport}" if packet.dport else packet.src
    return Finding(FAIL if certain else WARN, subject, f"{what} ({verdict.by}{doubt})", why, fix)


HOOKS_OF_REQUESTS, HOOKS_OF_REPLIES = ("prerouting", "input"), ("output", "postrouting")


def mark_clobbered(facts: Facts) -> Iterator[Finding]:
    if is_unlisted(facts):
        yield skip(NO_RULESET)
        return
    named = set()
    for peer, reply in _marked_replies(facts):
        for hook in (*HOOKS_OF_REQUESTS, *HOOKS_OF_REPLIES):
            packet = _packet(peer, reply, hook)
            for one in facts.ruleset.reached(hook, packet):
                # At our own priority the order of the two chains changes whenever either is loaded anew.
                sure = one.sure and not (peer.tracked and one.base.type == "route" and one.base.priority == PRIORITY)
                chain, rule = one.chain, one.rule
                written = [write.bits for write in rule.writes if _harms(peer, one.base, write)]
                if written and (chain.table, rule.text) not in named:
                    named.add((chain.table, rule.text))
                    verb = "overwrites" if sure else "may overwrite"
                    yield Finding(
                        FAIL if sure else WARN,
                        chain.table,
                        f"`{rule.text}` in chain {chain.table} {chain.name} {verb} bits "
                        f"{peer.mask:#x} of the mark, which tell the proxy",
                        "replies that have lost their mark bypass the proxy, or go to another one",
                        f"let that rule keep our bits: mark and {0xFFFFFFFF & peer.mask:#x} "
                        "(iptables: a mask with --set-xmark, --restore-mark, --save-mark)"
                        + rule_matching.other_bits(functools.reduce(operator.or_, written, peer.mask)),
                    )


def _harms(peer: Peer, base: Chain, write: MarkWrite) -> bool:
    """Whether a mark set in a chain at that hook takes the proxy's bits from a packet that is still routed by them.

    Ours are set by the chains of PRIORITY: the connection's by a request, while they are zero; the reply's on OUTPUT,
    from those. Without conntrack the request's own are what its socket keeps.
    """
    if not write.bits & peer.mask:
        return False
    before_ours = base.hook == "prerouting" or base.priority < PRIORITY
    leaves_zero = write.value is not None and not write.value & peer.mask
    if write.key == "ct":
        return peer.tracked and not (base.hook in HOOKS_OF_REQUESTS and before_ours and leaves_zero)
    if base.hook in HOOKS_OF_REQUESTS:
        return not peer.tracked and not (before_ours and leaves_zero)
    # Only a chain of type route has the packet routed anew; what a filter sets afterwards, no route goes by.
    return base.hook == "output" and base.type == "route" and not (peer.tracked and before_ours)


def untracked(facts: Facts) -> Iterator[Finding]:
    """Rules that keep packets of the path from conntrack, which holds the marks."""
    if is_unlisted(facts):
        yield skip(NO_RULESET)
        return
    named = set()
    for peer in (one for one in facts.peers if one.tracked and one.own and one.dev):
        for protocol, port in [("tcp", None), ("udp", None), *facts.served(peer.own)]:
            for one in _untracking(facts, peer, protocol, port):
                key = (one.chain.table, one.chain.name, one.rule.text)
                # Of a rule for some ports alone, the ports decide.
                if key in named or (port is None and not one.sure):
                    continue
                named.add(key)
                yield _untracks(one, protocol, port, one.sure and (port is None or (protocol, port) in facts.ports))


def _untracking(facts: Facts, peer: Peer, protocol: str, port: int | None) -> Iterator[Reached]:
    request = Packet(peer.family, facts.clients[peer.family], peer.own, protocol, ANY_PORT, port, peer.dev, state=None)
    request = replace(request, src_type="unicast", dst_type="local", syn="yes")
    reply = Packet(peer.family, peer.own, facts.clients[peer.family], protocol, port, ANY_PORT, None, peer.dev, None)
    # A SYN proxy answers what was kept from conntrack before.
    at_input = replace(request, state="untracked")
    for hook, packet in (("prerouting", request), ("input", at_input), ("output", reply)):
        for one in facts.ruleset.reached(hook, packet):
            early = one.rule.effect == UNTRACK and one.base.priority < CONNTRACK
            if early or (one.rule.effect == SYNPROXY and protocol == "tcp"):
                yield one


def _untracks(one: Reached, protocol: str, port: int | None, sure: bool) -> Finding:
    which = f"{protocol} port {port}" if port else "every port"
    does = "answers in the place of the server at" if one.rule.effect == SYNPROXY else "keeps from conntrack"
    return Finding(
        FAIL if sure else WARN,
        f"{protocol} {port}" if port else one.chain.table,
        f"`{one.rule.text}` in chain {one.chain.table} {one.chain.name} {does} {which} of this backend",
        "conntrack holds the marks, so replies without an entry have none: they bypass the proxy, and clients time out",
        "leave the ports that a proxy serves out of that rule; or, in the host_vars of this backend, "
        "return_path_strategy: address, which needs no conntrack",
    )


def _marked_replies(facts: Facts) -> Iterator[tuple]:
    for peer in facts.peers:
        for reply in facts.replies:
            if peer.id and reply.mark == peer.id and reply.family == peer.family and peer.dev and not reply.iif:
                yield peer, reply


def _packet(peer, reply: Reply, hook: str) -> Packet:
    """The client's request as it comes in, or the reply as it goes out."""
    if hook in HOOKS_OF_REQUESTS:
        return Packet(peer.family, reply.dst, reply.src, "tcp", ANY_PORT, None, peer.dev)
    return Packet(peer.family, reply.src, reply.dst, "tcp", None, ANY_PORT, None, peer.dev, "established", peer.id)


def containers(facts: Facts) -> Iterator[Finding]:
    """Replies of a container behind a published port are forwarded: OUTPUT never sees them."""
    if is_unlisted(facts):
        yield skip(NO_RULESET)
        return
    for peer, reply in _marked_replies(facts):
        packet = _packet(peer, reply, "prerouting")
        for one in facts.ruleset.reached("prerouting", packet):
            chain, rule = one.chain, one.rule
            if rule.effect == DNAT and not facts.restores_forwarded:
                yield Finding(
                    WARN,
                    chain.table,
                    f"`{rule.text}` in chain {chain.table} {chain.name} sends published ports to containers",
                    "replies of a container are forwarded, not sent by this host, and get no mark back",
                    "serve the port from this host itself, or run the return_path role of a version that restores the "
                    "mark in PREROUTING",
                )
                return
