# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nft table of kernel services: from their values and states to a Table. Pure.

    syn_bound (raw)        a SYN to a service: within the service's bound and that of all services, or dropped
    bypass (mangle)        our bits of the connection's mark are all set -> set them in the packet's mark
                           conntrack finds a packet to a service invalid: drop, or this host would answer with RST
                           from a served backend, without such a connection -> unknown
    unknown                not if this host has a transparent socket for it: set the bits in both marks
    dispatch (nat)         ADDRESS . PROTOCOL . PORT -> service_X
    service_X              sockets_X; lists, bounds, limits -> buckets_X
    sockets_X              not if the forwarder has a socket for it, and has not handed the service over
    buckets_X              hash of the client -> to_X_BACKEND; refuses if no backend serves
    to_X_BACKEND           refuse the backend itself; count a new connection, set the bits in both marks, translate the
                           destination
    forward (filter)       our connections: count by backend, accept; of those that a backend begins here, no SYN
                           invalid packets of a backend -> as_X
                           everything else of the families in ``strangers``: drop
    as_X                   translate the source of a single packet
    reverse (nat)          a connection that begins here with a packet of a served backend: translate the source

Here X is PROTOCOL-ADDRESS-PORT, with ``_`` for colons. Only the first packet of a connection reaches the nat chains.
All others cost one look-up, in forward, which counts them as well.

The packet's mark takes both directions past the rules of local delivery, which are for the forwarder's sockets: replies
themselves, and clients' packets when the kernel validates their source, with src_valid_mark. For that it looks up the
reply's route.

Conntrack finds a FIN or RST of a connection invalid that another proxy began. It would never reach the client.

A retiring service has no rules in syn_bound and dispatch. It may have the address of a service that stays: then it
lists the backends that this has lost. What a live service and a retiring one both have is the live one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from ..._shared.client_hash import SEED
from ..document.kernel_service import KernelService, Server
from ..document.model import MAX_U32
from ..host.backend_states import States
from . import buckets
from .model import Chain, Late, Table

# NF_IP_PRI_RAW, MANGLE, NAT_DST, FILTER and NAT_SRC
HOOKS = {
    "syn_bound": ("filter", "prerouting", -300),
    "bypass": ("filter", "prerouting", -150),
    "dispatch": ("nat", "prerouting", -100),
    "forward": ("filter", "forward", 0),
    "reverse": ("nat", "postrouting", 100),
}
# Why a client is refused; ``flood`` is more new connections than the service's bound.
CAUSES = ("denied", "limited", "no_backend", "flood")
IP = {"ipv4": "ip", "ipv6": "ip6"}
# A client is an address or, of IPv6, a /64.
CLIENT = {"ipv4": "ip saddr", "ipv6": "ip6 saddr & ffff:ffff:ffff:ffff::"}
REFUSE = {"tcp": "reject with tcp reset", "udp": "reject with icmpx port-unreachable"}
SYN = "tcp flags & (fin|syn|rst|ack) == syn"
NO_SYN = "tcp flags & syn == 0"
# Clients in one set; when it is full, further clients are not limited.
SET_SIZE = 65536
# Servers have ports below this one; clients seldom.
CLIENT_PORTS = 1024
# Of nf_conntrack_max: new connections at once, and each second. Entries of a flood of SYNs live for 60 s, those of UDP
# for 30 s: together they are at most 83 % of nf_conntrack_max.
BURST, PER_SECOND = 1 / 16, 1 / 128
# What one service may use of that, if there are others.
SHARE = 3 / 4
DEFAULT_ENTRIES = 65536
Served = dict[tuple[str, str, int], tuple[KernelService, Server]]


def name_of(service: KernelService) -> str:
    """The X in the names of a service's chains, sets and counters."""
    return f"{service.protocol}-{service.address.replace(':', '_')}-{service.port}"


def counter_name(kind: str, service: KernelService, server: Server | None = None) -> str:
    """``kind``: one of CAUSES; of a backend ``new`` (its packets are connections), ``in`` (to it) or ``out``."""
    return f"{kind}_{name_of(service)}" + (f"_{_word(server.name)}" if server else "")


def render(
    services: Iterable[KernelService],
    states: States | None = None,
    strangers: frozenset[str] = frozenset(),
    mark: int = 0xFF,
    mask: int = 0xFF,
    entries: int = DEFAULT_ENTRIES,
) -> Table:
    """The table for these services, live and retiring. Without services it is empty: no table.

    ``strangers`` are the families whose packets are not forwarded unless they belong to a service. ``entries`` is
    nf_conntrack_max.
    """
    services = sorted(services, key=lambda service: (not service.retiring, service.order))
    table = Table()
    if services:
        table.chains.update((name, Chain(hook)) for name, hook in HOOKS.items())
        _Renderer(table, services, (mark, mask), entries).render(states or States(), strangers)
    return table


def _word(name: str) -> str:
    """A backend's name as part of a name in nft. No name of a backend has a slash, so no two become the same."""
    return name.replace(":", "/")


def _address(service: KernelService) -> str:
    return f"{service.address} . {service.protocol} . {service.port}"


def _to(service: KernelService, backend: str) -> str:
    return f"to_{name_of(service)}_{_word(backend)}"


def _set(values: Iterable[object]) -> str:
    return "{ " + ", ".join(map(str, values)) + " }"


def _families(services: Iterable[KernelService]) -> list[str]:
    return sorted({service.family for service in services})


def _endpoint(family: str, end: str) -> str:
    """A packet's source (``end`` is "s") or destination ("d")."""
    return f"{IP[family]} {end}addr . meta l4proto . th {end}port"


class _Renderer:
    """Adds the objects of some services to a table."""

    def __init__(self, table: Table, services: list[KernelService], mark: tuple[int, int], entries: int) -> None:
        self._table = table
        self._services = services
        self._live = [service for service in services if not service.retiring]
        self._bits, self._mask = mark
        # Of all services together, and of each: new connections per second, and at once.
        self._bounds = (max(1, round(entries * PER_SECOND)), max(1, round(entries * BURST)))
        self._share = self._bounds
        if len(self._live) > 1:
            self._share = (max(1, round(self._bounds[0] * SHARE)), max(1, round(self._bounds[1] * SHARE)))

    def render(self, states: States, strangers: frozenset[str]) -> None:
        self._bound_syns()
        for family in _families(self._live):
            mine = [service for service in self._live if service.family == family]
            verdicts = _set(f"{_address(service)} : goto service_{name_of(service)}" for service in mine)
            self._add("dispatch", f"{_endpoint(family, 'd')} vmap {verdicts}")
        for service in self._live:
            self._add_service(service, states)
        self._bypass()
        self._forward(strangers)
        for family in _families(self._services):
            served = self._served(family).items()
            values = _set(f"{' . '.join(map(str, key))} : {one.address} . {one.port}" for key, (one, _server) in served)
            self._add("reverse", f"snat {IP[family]} to {_endpoint(family, 's')} map {values}")

    def _add(self, chain: str, *statements: str) -> None:
        """Add a rule to a chain."""
        self._table.chains.setdefault(chain, Chain()).rules.append(" ".join(filter(None, statements)))

    def _count(self, name: str) -> str:
        self._table.counters.add(name)
        return f'counter name "{name}"'

    def _refuse(self, cause: str, service: KernelService) -> str:
        return f"{self._count(counter_name(cause, service))} {REFUSE[service.protocol]}"

    def _drop_flood(self, service: KernelService) -> str:
        return f"{_limit_over(self._share)} {self._count(counter_name('flood', service))} drop"

    def _served(self, family: str) -> Served:
        """Each backend of a family and its service. Retiring services come first, so live ones replace them."""
        ordered = sorted(self._services, key=lambda service: not service.retiring)
        return {
            (server.address, service.protocol, server.port): (service, server)
            for service in ordered
            if service.family == family
            for server in service.servers
        }

    def _count_by(self, kind: str, family: str, end: str) -> str:
        """Count a packet of a served backend; another one does not match."""
        pairs = self._served(family).items()
        names = [(" . ".join(map(str, key)), counter_name(kind, *pair)) for key, pair in pairs]
        self._table.counters.update(name for _key, name in names)
        return f"counter name {_endpoint(family, end)} map " + _set(f'{key} : "{name}"' for key, name in names)

    # -- new connections of clients ----------------------------------------------------------------------------------

    def _bound_syns(self) -> None:
        tcp = [service for service in self._live if service.protocol == "tcp"]
        for family in _families(tcp):
            mine = [service for service in tcp if service.family == family]
            chains = _set(f"{one.address} . {one.port} : goto syn_{name_of(one)}" for one in mine)
            self._add("syn", f"{IP[family]} daddr . tcp dport vmap {chains}")
        for service in tcp:
            self._add(f"syn_{name_of(service)}", self._drop_flood(service))
            self._add(f"syn_{name_of(service)}", "goto syn_all")
        if tcp:
            self._add("syn_bound", f"{SYN} goto syn")
        for chain in ["flood_all", *(["syn_all"] if tcp else [])]:
            self._add(chain, _limit_over(self._bounds), self._count("flood"), "drop")

    def _add_service(self, service: KernelService, states: States) -> None:
        chain = f"service_{name_of(service)}"
        source = f"{IP[service.family]} saddr"
        self._add(chain, f"jump sockets_{name_of(service)}")
        begins = "return" if service.protocol == "udp" else f"{NO_SYN} socket wildcard 0 accept"
        rule = begins if states.is_handed_over(service) else "socket wildcard 0 accept"
        self._table.chains[f"sockets_{name_of(service)}"] = Chain(rules=[rule])
        for prefixes, relation in ((service.allow, "!= "), (service.deny, "")):
            mine = _networks(prefixes, service.family)
            if mine:
                self._add(chain, f"{source} {relation}{_set(mine)}", self._refuse("denied", service))
            elif prefixes and relation:  # nobody of this family is allowed
                self._add(chain, self._refuse("denied", service))
        for bound in (self._drop_flood(service), "jump flood_all"):
            self._add(chain, NO_SYN if service.protocol == "tcp" else "", bound)
        self._add_limits(chain, service)
        self._add(chain, f"goto buckets_{name_of(service)}")
        self._table.chains[f"buckets_{name_of(service)}"] = Chain(
            rules=[self._buckets(service, states.serving(service))]
        )
        for server in service.servers:
            target = f"[{server.address}]" if service.family == "ipv6" else server.address
            counted = f"meta l4proto {service.protocol} {self._count(counter_name('new', service, server))}"
            translation = f"dnat {IP[service.family]} to {target}:{server.port}"
            # Its own packets: it would drop them.
            self._add(_to(service, server.name), f"{source} {server.address}", self._refuse("no_backend", service))
            self._add(_to(service, server.name), counted, self._set("ct"), self._set("meta"), translation)

    def _add_limits(self, chain: str, service: KernelService) -> None:
        """A connection that begins without a SYN is older than this host's entry: it is counted, and not refused."""
        begins = SYN if service.protocol == "tcp" else ""
        attributes = f"type {service.family}_addr; size {SET_SIZE};"
        client, refused = CLIENT[service.family], self._refuse("limited", service)
        if service.rate_per_client:
            rate, timeout = _client_rate(service.rate_per_client)
            name = f"rate_{name_of(service)}_{service.rate_per_client:g}".replace("+", "")  # 1e+06
            self._table.sets[name] = f"{attributes} flags dynamic, timeout; timeout {timeout}s;"
            self._add(chain, begins, f"update @{name} {{ {client} {rate} }}", refused)
        counts = []
        if service.connections_per_client:
            name = f"clients_{name_of(service)}_{service.connections_per_client}"
            self._table.sets[name] = f"{attributes} flags dynamic;"
            counts.append(f"add @{name} {{ {client} ct count over {service.connections_per_client} }}")
        if service.connections:
            counts.append(f"ct count over {service.connections}")
        for count in counts:
            self._add(chain, begins, count, refused)
            if begins:
                self._add(chain, NO_SYN, count)

    def _buckets(self, service: KernelService, serving: frozenset[str]) -> str | Late:
        """The rule that chooses a backend."""
        refuse = self._refuse("no_backend", service)  # its counter stays when there is a backend again
        if not serving:
            return refuse
        if len(serving) == 1:
            return f"goto {_to(service, *serving)}"

        def make() -> str:
            key = f"{IP[service.family]} saddr"
            if service.balance == "hash":
                key += f" . {service.protocol} sport"
            chains = {backend: _to(service, backend) for backend in serving}
            owners = enumerate(buckets.owners(service, serving))
            verdicts = _set(f"{bucket} : goto {chains[owner]}" for bucket, owner in owners)
            return f"jhash {key} mod {buckets.size(service)} seed {SEED:#x} vmap {verdicts}"

        weights = sorted((server.name, server.weight) for server in service.servers)
        return Late(json.dumps([name_of(service), service.balance, weights, sorted(serving)]), make)

    # -- packets of connections --------------------------------------------------------------------------------------

    def _bypass(self) -> None:
        self._add("bypass", f"{self._is_set('ct')} {self._set('meta')} accept")
        self._add("bypass", "ct state invalid goto invalid")
        for family in _families(self._services):
            source, destination = _endpoint(family, "s"), _endpoint(family, "d")
            served = _set(" . ".join(map(str, key)) for key in self._served(family))
            self._add("bypass", f"{source} {served} goto unknown")
            self._add("invalid", f"{source} {served} goto unknown")
            mine = {_address(service) for service in self._services if service.family == family}
            self._add("invalid", f"{destination} {_set(sorted(mine))} socket wildcard 0 accept")
            self._add("invalid", f"{destination} {_set(sorted(mine))} {self._count(f'invalid_{family}')} drop")
        # Answers to health checks from clients' addresses. Others for this host are delivered in spite of the mark.
        self._add("unknown", "socket transparent 1 accept")
        self._add("unknown", self._set("meta"))
        self._add("unknown", f"ct state new {self._set('ct')}")

    def _forward(self, strangers: frozenset[str]) -> None:
        self._add("forward", f"{self._is_set('ct')} jump connection")
        self._add("forward", f"{self._is_set('meta')} ct state invalid jump single")
        for family in sorted(strangers):
            self._add("forward", f"meta nfproto {family} {self._count(f'strangers_{family}')} drop")
        families = _families(self._services)
        inwards = [f"{self._count_by('in', family, 'd')} accept" for family in families]
        outwards = [f"{self._count_by('out', family, 's')} accept" for family in families]
        # A connection that began here with a packet of the backend has the directions the other way round.
        unasked = self._count("unasked")
        rules = {
            "connection": ["ct direction original jump original", *outwards, *inwards],
            "original": [*inwards, "ct state new jump begun_by_backend", *outwards],
            "begun_by_backend": [
                f"tcp flags & (syn|ack) == syn {unasked} drop",
                f"udp dport < {CLIENT_PORTS} {unasked} drop",
                f"{_limit_over(self._bounds)} {unasked} drop",
            ],
        }
        # Words of nft: "ipv6-icmp" is in /etc/protocols, which a host without the package netbase does not have.
        icmp = "meta l4proto { icmp, icmpv6 } ct state related accept"
        for chain, texts in rules.items():
            for text in texts:
                self._add(chain, text)
        self._add("connection", icmp)
        self._add("single", f"tcp flags & (syn|ack) == syn {unasked} drop")
        self._add("single", f"{_limit_over(self._bounds)} {unasked} drop")
        for family in families:
            verdicts = {key: f"as_{name_of(service)}" for key, (service, _server) in self._served(family).items()}
            texts = [f"{' . '.join(map(str, key))} : goto {chain}" for key, chain in verdicts.items() if "tcp" in key]
            if texts:
                self._add("single", f"{_endpoint(family, 's')} vmap {_set(texts)}")
        self._add("single", f"{unasked} drop")
        for service in (one for one in self._services if one.protocol == "tcp"):
            rewrite = f"{IP[service.family]} saddr set {service.address} {service.protocol} sport set {service.port}"
            self._table.chains[f"as_{name_of(service)}"] = Chain(rules=[f"{rewrite} accept"])

    def _is_set(self, subject: str) -> str:
        """Whether all our bits of the packet's (``meta``) or the connection's (``ct``) mark are set."""
        return f"{subject} mark {'' if self._mask == MAX_U32 else f'& {self._mask:#x} '}== {self._bits:#x}"

    def _set(self, subject: str) -> str:
        others = "" if self._mask == MAX_U32 else f"{subject} mark & {MAX_U32 & ~self._mask:#x} | "
        return f"{subject} mark set {others}{self._bits:#x}"


def _networks(prefixes: Iterable[str], family: str) -> list[str]:
    """Those of a family; networks within another one are left out, because nft refuses them."""
    network: Any = {"ipv4": IPv4Network, "ipv6": IPv6Network}[family]
    mine = [prefix for prefix in prefixes if (":" in prefix) == (family == "ipv6")]
    return [str(one) for one in collapse_addresses(network(prefix, strict=False) for prefix in mine)]


def _limit_over(bounds: tuple[int, int]) -> str:
    rate, burst = bounds
    return f"limit rate over {rate}/second burst {burst} packets"


def _client_rate(rate: float) -> tuple[str, int]:
    """(limit, seconds until a client has its whole burst again); a limit of nft has a whole number."""
    burst = max(1, int(rate))
    units = (("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400))
    per, seconds = next((unit for unit in units if float(rate * unit[1]).is_integer()), units[-1])
    return f"limit rate over {max(1, round(rate * seconds))}/{per} burst {burst} packets", int(burst / rate) + 1
