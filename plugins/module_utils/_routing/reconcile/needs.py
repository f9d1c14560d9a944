# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections need a retiring object, and cannot use what the document lists instead. Pure.

    mark, rule by its fwmark        connections with this mark in conntrack, and sockets with this mark
    transparent mark, and its rule  sockets whose own address is not one of this host (``connections`` calls it foreign)
    address, rule by a source that  sockets with this address; what conntrack knows: sessions of UDP servers without a
    this host sends from            peer, and connections to containers
    rule by a source, on a proxy    foreign sockets with this peer: the backend
    route                           what the rules that look up its table need
    service                         what conntrack knows of connections to its address and port, and to its servers
    rule that looks up table main   what the retiring services of its family need
    sysctl                          any other retiring object

An object that nothing needs any more has no needs: a new rule with the same selectors has taken over, for example. What
other connections need, such as those that this host routes, is UNKNOWN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Union

from ..document.documents import Document
from ..document.kernel_service import KernelService
from ..document.model import IP_PROTOCOLS, MAIN, Address, Mark, Route, Rule, prefix

LOCAL_DELIVERY = "local_delivery"


@dataclass(frozen=True)
class Marked:
    """Connections with a mark, of one family or of both, but not those to ``other_ways``, addresses with rules of
    their own. ``sockets``: those that have a socket with this mark do not need it either. ``port``: only those to this
    port, as (protocol, port).
    """

    mark: int
    mask: int
    family: str | None = None
    tracked: bool = True
    other_ways: frozenset[str] = frozenset()
    sockets: bool = False
    port: tuple[int, int] | None = None


@dataclass(frozen=True)
class To:
    """Connections to an address or prefix of this host. Servers on ``udp_ports`` answer from any of its addresses."""

    target: str
    udp_ports: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class From:
    """Foreign sockets whose peer is in a prefix, with one protocol or (None) with any."""

    peer: str
    protocol: int | None = None


@dataclass(frozen=True)
class Foreign:
    """Foreign sockets, but not those whose peer is one of ``other_ways``, prefixes with rules of their own."""

    family: str | None = None
    other_ways: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Forwarded:
    """Connections to an address and port that the kernel translates to one of ``servers``, each (address, port).

    After a proxy took over from another one, the server's packet may come first; then it is the server who begins.
    """

    protocol: int
    address: str
    port: int
    servers: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Unknown:
    """Connections that no list of this host shows."""


Need = Union[Marked, To, From, Foreign, Forwarded, Unknown]
NOTHING: frozenset[Need] = frozenset()
UNKNOWN: frozenset[Need] = frozenset({Unknown()})


def of(value: Any, document: Document) -> frozenset[Need]:
    """The needs of a retiring object, but of a sysctl."""
    if isinstance(value, Mark):
        return _of_mark(value, document)
    if isinstance(value, Rule):
        taken_over = any(_same_packets(rule, value) for rule in document.rules if not rule.retiring)
        return NOTHING if taken_over else _of_rule(value, document)
    if isinstance(value, Route):
        return _of_route(value, document)
    if isinstance(value, KernelService):
        return frozenset({_of_service(value)})
    if isinstance(value, Address):
        # Also while it moves to another interface: neighbours on the old link still ask for it there.
        return frozenset({To(prefix(value.address), _udp_ports(value.address, document))})
    return NOTHING


def _same_packets(new: Rule, old: Rule) -> bool:
    return (new.family, *new.selectors, new.is_guard) == (old.family, *old.selectors, old.is_guard)


def _of_mark(mark: Mark, document: Document) -> frozenset[Need]:
    if mark.transparent:
        return _of_foreign(None, document)
    successors = [
        other for other in document.marks if not other.retiring and (other.id, other.mask) == (mark.id, mark.mask)
    ]
    if not mark.conntrack and successors:
        return NOTHING  # the sockets have the mark already
    ways = _other_ways(document)
    return frozenset({Marked(mark.id, mark.mask, None, mark.conntrack, ways, sockets=bool(successors))})


def _other_ways(document: Document) -> frozenset[str]:
    """The addresses whose replies find their way without a mark."""
    return frozenset(rule.src for rule in document.rules if not rule.retiring and rule.src and rule.iif == "lo")


def _of_foreign(family: str | None, document: Document) -> frozenset[Need]:
    listed = frozenset(rule.src for rule in document.rules if not rule.retiring and rule.src)
    return frozenset({Foreign(family, listed)})


def _of_service(service: KernelService) -> Need:
    servers = frozenset((server.address, server.port) for server in service.servers)
    return Forwarded(IP_PROTOCOLS[service.protocol], service.address, service.port, servers)


def _of_rule(rule: Rule, document: Document) -> frozenset[Need]:
    if rule.table == MAIN:
        retiring = [service for service in document.services if service.retiring and service.family == rule.family]
        return frozenset(map(_of_service, retiring))
    if rule.fwmark is not None and rule.fwmask is not None:
        marks = [mark for mark in document.marks if (mark.id, mark.mask) == (rule.fwmark, rule.fwmask)]
        if any(mark.transparent for mark in marks):
            return _of_foreign(rule.family, document)
        tracked = not marks or any(mark.conntrack for mark in marks)
        need = Marked(rule.fwmark, rule.fwmask, rule.family, tracked, _other_ways(document))
        return _of_port(rule, need, document) if rule.ip_proto and rule.sport else frozenset({need})
    if rule.src and rule.iif == "lo":
        return frozenset({To(rule.src, _udp_ports(rule.src.partition("/")[0], document))})
    if rule.src and document.owner == LOCAL_DELIVERY:
        if any(mark.transparent and not mark.retiring for mark in document.marks):
            return NOTHING
        protocol = rule.ip_proto if rule.ip_proto in (IP_PROTOCOLS["tcp"], IP_PROTOCOLS["udp"]) else None
        return frozenset({From(rule.src, protocol)})
    sources = _sources_of_port(rule, document)
    return frozenset(To(prefix(source), _udp_ports(source, document)) for source in sources) or UNKNOWN


def _of_port(rule: Rule, need: Marked, document: Document) -> frozenset[Need]:
    """The connections to a port that follow their last sender: any of the proxies may be the next one."""
    same = (rule.family, rule.ip_proto, rule.sport)
    marks = {other.fwmark for other in document.rules if (other.family, other.ip_proto, other.sport) == same}
    port = (rule.ip_proto or 0, rule.sport[0] if rule.sport else 0)
    return frozenset(replace(need, mark=mark, port=port) for mark in marks if mark is not None)


def _sources_of_port(rule: Rule, document: Document) -> set[str]:
    """The source addresses of replies from a port: those of the routes that the rule, or the one it guards, looks up.

    Empty for all other rules.
    """
    if not rule.sport:
        return set()
    same = (rule.family, *rule.selectors)
    tables = {other.table for other in document.rules if (other.family, *other.selectors) == same}
    routes = [route for route in document.routes if route.family == rule.family and route.table in tables]
    return {route.src for route in routes if route.src}


def _udp_ports(source: str, document: Document) -> frozenset[tuple[int, int]]:
    tables = {(route.family, route.table) for route in document.routes if route.src == source}
    rules = (rule for rule in document.rules if (rule.family, rule.table) in tables)
    return frozenset(rule.sport for rule in rules if rule.sport and rule.ip_proto == IP_PROTOCOLS["udp"])


def _of_route(route: Route, document: Document) -> frozenset[Need]:
    same = [(other.family, other.table, other.dst) for other in document.routes if not other.retiring]
    if (route.family, route.table, route.dst) in same:
        return NOTHING
    lookups = [rule for rule in document.rules if (rule.family, rule.table) == (route.family, route.table)]
    return frozenset(need for rule in lookups for need in _of_rule(rule, document))
