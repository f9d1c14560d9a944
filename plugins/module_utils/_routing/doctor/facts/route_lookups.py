# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's route lookups for the addresses in the documents: proxies, backends, containers, sample replies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...document.documents import Document
from ...document.kernel_service import KernelService, Server
from ...document.model import Mark, Route, Rule
from ...netlink import neighbour_messages, route_query
from ...netlink.messages import Netlink, link_index
from ...netlink.route_query import RouteAnswer
from .. import rule_matching
from ..firewall.model import DNAT
from ..rule_matching import Reply
from .model import Backend, Facts, KernelTarget, Peer


def ask(dst: str, **selectors: Any) -> RouteAnswer | None:
    """The kernel's answer to one lookup; None if it fails, for example because an interface is gone."""
    try:
        return route_query.route_get(dst, **selectors)
    except OSError:
        return None


def own_sources(documents: Iterable[Document]) -> frozenset[str]:
    """The source addresses in the documents that this host has."""
    wanted = {route.src for document in documents for route in document.routes if route.src}
    return frozenset(address for address in wanted if _type(ask(address)) == "local")


def _type(answer: RouteAnswer | None) -> str:
    return answer.type if answer else ""


def peers(facts: Facts, kernel: Any, wait: float) -> tuple[Peer, ...]:
    """One Peer for each next hop of a return path. If ``kernel`` is None, their neighbour entries are unknown."""
    found = [
        _peer(facts, via, route, rule, document, kernel, wait)
        for document in facts.return_path
        for via, route, rule in _default_routes(document)
    ]
    known = [(peer.family, peer.via, peer.mac) for peer in found] + [("ipv4", *entry) for entry in facts.arp]
    return tuple(replace(peer, same_mac=_same_mac(peer, known)) for peer in found)


def _same_mac(peer: Peer, known: list[tuple[str, str, str | None]]) -> tuple[str, ...]:
    """Other neighbours than proxy and router that have the proxy's MAC."""
    same = {address for family, address, mac in known if (family, mac) == (peer.family, peer.mac) and peer.mac}
    return tuple(sorted(same - {peer.via, peer.router}))


def _default_routes(document: Document) -> Iterator[tuple[str, Route, Rule]]:
    """Each next hop of a default route, the route, and the first rule that looks it up."""
    for route in document.routes:
        # A route with fallbacks leads to a proxy of another route.
        if route.via and route.dst == "default" and not route.retiring and not route.fallback:
            lookups = (rule for rule in rule_matching.lookups(document) if rule.family == route.family)
            rule = next((rule for rule in lookups if rule.table == route.table), None)
            if rule:
                yield route.via, route, rule


def _peer(facts: Facts, via: str, route: Route, rule: Rule, document: Document, kernel: Any, wait: float) -> Peer:
    mark = _mark(document, rule)
    client = facts.clients[route.family]
    towards = ask(via)
    # An answer without a table is no evidence: the kernel assumed that the interface leads there.
    dev = towards.dev if towards and towards.type == "unicast" and not towards.via and towards.table else None
    own = rule_matching.host_of(rule.src) or (towards.src if towards and dev else None)
    unmarked = ask(client)
    router = unmarked.via if unmarked and unmarked.via and unmarked.via != via and unmarked.dev == dev else None
    with_macs = (neighbour_messages.MAC, neighbour_messages.DECLARED_MAC)
    has_mac = not (kernel and dev) or kernel.sender_identity(dev) in with_macs
    return Peer(
        name=mark.name if mark else via,
        family=route.family,
        via=via,
        table=route.table,
        id=rule.fwmark,
        mask=rule.fwmask or 0,
        tracked=bool(mark and mark.conntrack),
        wanted_dev=route.dev,
        dev=dev,
        own=own,
        is_local=_type(towards) == "local",
        declared=mark.macs if mark else (),
        mac=kernel.neighbour(via, wait) if kernel and dev and has_mac else None,
        has_mac=has_mac,
        router=router,
        router_mac=kernel.neighbour(router, wait) if kernel and router and has_mac else None,
        arrival=ask(own, src=client, iif=dev) if own and dev else None,
        unmarked=unmarked,
    )


def _mark(document: Document, rule: Rule) -> Mark | None:
    return next((mark for mark in document.marks if mark.id == rule.fwmark), None)


def backends(facts: Facts) -> tuple[Backend, ...]:
    """Every backend that a document or the forwarder's config names."""
    rules = [rule for document in facts.local_delivery for rule in rule_matching.lookups(document)]
    named = {host for rule in rules if (host := rule_matching.host_of(rule.src))}
    named |= set(facts.forwarder.backends if facts.forwarder and facts.local_delivery else ())
    return tuple(_backend(facts, address) for address in sorted(named))


def _backend(facts: Facts, address: str) -> Backend:
    family = "ipv6" if ":" in address else "ipv4"
    towards = ask(address)
    dev = towards.dev if towards and towards.type == "unicast" else None
    if dev is None:
        return Backend(family, address)
    out = ask(facts.clients[family])
    return Backend(family, address, dev, is_bridge(dev) and (out is None or out.dev != dev))


def is_bridge(dev: str) -> bool:
    """Whether the interface is a bridge."""
    return _of_link(dev, neighbour_messages.is_bridge) or False


def _of_link(dev: str, read: Callable[[bytes], Any]) -> Any:
    """What ``read`` finds in the kernel's description of an interface; None if it does not exist."""
    try:
        with Netlink() as netlink:
            request = neighbour_messages.links(link_index(dev))
            return read(netlink.get(neighbour_messages.RTM_GETLINK, request))
    except OSError:
        return None


def kernel_targets(facts: Facts) -> tuple[KernelTarget, ...]:
    """Each service that the kernel forwards, with each of its backends."""
    look_up = functools.lru_cache(maxsize=None)(ask)
    link_of = functools.lru_cache(maxsize=None)(functools.partial(_link_of, facts))
    return tuple(
        _kernel_target(facts, service, server, link_of(service.address), look_up)
        for document in facts.kernel_datapath
        for service in document.services
        for server in service.servers
        if not service.retiring
    )


def _kernel_target(
    facts: Facts, service: KernelService, server: Server, iif: str | None, look_up: Callable[..., RouteAnswer | None]
) -> KernelTarget:
    towards = look_up(server.address)
    return KernelTarget(
        service=service.name,
        family=service.family,
        protocol=service.protocol,
        address=service.address,
        port=service.port,
        target=server.address,
        target_port=server.port,
        iif=iif,
        oif=towards.dev if towards and towards.type == "unicast" else None,
        arrival=look_up(server.address, src=facts.clients[service.family], iif=iif) if iif else None,
    )


def _link_of(facts: Facts, address: str) -> str | None:
    """The interface on which an address's neighbours are: clients' packets to the address arrive there."""
    found = [one.value.dev for one in facts.addresses or () if one.value.address == address]
    towards = ask(address)
    if towards and towards.type == "unicast" and not towards.via and towards.dev:
        found.append(towards.dev)
    with_neighbours = (neighbour_messages.MAC, neighbour_messages.DECLARED_MAC)
    return next((dev for dev in found if _of_link(dev, neighbour_messages.sender_identity) in with_neighbours), None)


def translated(facts: Facts) -> dict[str, str]:
    """For a backend, the interface towards each destination of a DNAT rule, by address."""
    chains = facts.ruleset.chains.values() if facts.ruleset and facts.return_path else ()
    answers = {rule.to: ask(rule.to) for chain in chains for rule in chain.rules if rule.effect == DNAT and rule.to}
    return {
        address: answer.dev for address, answer in answers.items() if answer and answer.type == "unicast" and answer.dev
    }


def replies(facts: Facts) -> dict[Reply, RouteAnswer]:
    """A sample reply for each rule of the documents, with the kernel's route for it."""
    samples = [*_sent(facts), *_received(facts)]
    answers = {
        reply: ask(
            reply.dst,
            src=reply.src,
            iif=reply.iif,
            mark=reply.mark or None,
            ip_proto=reply.ip_proto,
            sport=reply.sport,
        )
        for reply in samples
    }
    return {reply: answer for reply, answer in answers.items() if answer}


def _sent(facts: Facts) -> Iterator[Reply]:
    """On a backend, one reply for each lookup rule and next hop."""
    own: dict[tuple[str, int | None], Peer] = {(peer.family, peer.table): peer for peer in facts.peers}
    by_via = {(peer.family, peer.via): peer for peer in facts.peers}
    for document in facts.return_path:
        moving = {(route.family, route.table): route for route in document.routes if route.fallback}
        for rule in rule_matching.lookups(document):
            route = moving.get((rule.family, int(rule.table or 0)))
            peer = by_via.get((route.family, str(route.via))) if route else own.get((rule.family, rule.table))
            src = rule_matching.host_of(rule.src) or (peer.own if peer else None)
            if peer and src:
                yield Reply(
                    owner=document.owner,
                    rule=rule,
                    src=src,
                    dst=facts.clients[rule.family],
                    via=peer.via,
                    ip_proto=rule.ip_proto or 6,
                    mark=rule.fwmark or 0,
                    sport=rule.sport[0] if rule.sport else None,
                    fallback=route.fallback if route else (),
                )


def _received(facts: Facts) -> Iterator[Reply]:
    """On a proxy, one reply for each lookup rule and backend; a rule without a source applies to every backend."""
    for document in facts.local_delivery:
        for rule in rule_matching.lookups(document):
            source = rule_matching.host_of(rule.src)
            for backend in facts.backends:
                fits = backend.family == rule.family and source in (None, backend.address)
                if fits and backend.dev:
                    yield Reply(
                        owner=document.owner,
                        rule=rule,
                        src=backend.address,
                        dst=facts.clients[rule.family],
                        via="local",
                        ip_proto=rule.ip_proto or 6,
                        mark=rule.fwmark or 0,
                        iif=backend.dev,
                        sport=rule.sport[0] if rule.sport else None,
                    )
