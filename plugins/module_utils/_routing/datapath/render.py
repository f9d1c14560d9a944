# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nft table of kernel services: from their values and states to a Table. Pure.

    syn_bound (raw)        a SYN to a service: within the service's bound and that of all services, or dropped
    bypass (mangle)        packets of translated connections from a backend, and ICMP errors about them: count, mark
                           other packets from a served backend: mark, unless this host has a socket for them
                           packets to a service that conntrack finds invalid: drop, or this host would reset them
    dispatch (nat)         ADDRESS . PROTOCOL . PORT -> service_X
    service_X              not if this host has a socket bound to that address; lists, bounds, limits -> buckets_X
    buckets_X              hash of the client -> to_X_BACKEND; refuses if no backend serves
    to_X_BACKEND           count a new connection, translate it
    forward (filter)       marked -> from_backend; translated connections to a backend: count, accept
                           everything else of the families in ``strangers``: drop
    from_backend           packets without a connection: no SYN, and others within a bound
    reverse (nat)          new connection from a served backend's port: translate its source to the service's address

Here X is PROTOCOL-ADDRESS-PORT, with ``_`` for colons. Only new connections reach the nat chains. A connection that is
known costs one look-up in ``bypass`` and at most one in ``forward``; both count it.

The mark (all bits of the mask) makes the rule before local delivery send packets to the main table. A retiring service
has no rules in syn_bound and dispatch. It may have the address of a service that stays: then it lists the backends that
this has lost. What a live service and a retiring one both have is the live one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

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
ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
# A client is an address or, of IPv6, a /64.
CLIENT = {"ipv4": "ip saddr", "ipv6": "ip6 saddr & ffff:ffff:ffff:ffff::"}
REFUSE = {"tcp": "reject with tcp reset", "udp": "reject with icmpx port-unreachable"}
TRANSLATED = "ct status snat,dnat"
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
    return name.replace(":", "_")


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
            self._add_service(service, states.serving(service))
        self._bypass()
        self._forward(strangers)
        for family in _families(self._services):
            served = self._served(family).items()
            values = _set(f"{' . '.join(map(str, key))} : {one.address} . {one.port}" for key, (one, _) in served)
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
            self._add("syn_bound", SYN, f"{IP[family]} daddr . tcp dport vmap {chains}")
        for service in tcp:
            self._add(f"syn_{name_of(service)}", self._drop_flood(service))
            self._add(f"syn_{name_of(service)}", "goto syn_all")
        if tcp:
            self._add("syn_all", _limit_over(self._bounds), self._count("flood"), "drop")

    def _add_service(self, service: KernelService, serving: frozenset[str]) -> None:
        chain = f"service_{name_of(service)}"
        source = f"{IP[service.family]} saddr"
        self._add(chain, "socket wildcard 0 accept")
        if service.allow:
            self._add(chain, f"{source} != {_set(sorted(service.allow))}", self._refuse("denied", service))
        if service.deny:
            self._add(chain, f"{source} {_set(sorted(service.deny))}", self._refuse("denied", service))
        self._add(chain, NO_SYN if service.protocol == "tcp" else "", self._drop_flood(service))
        self._add_limits(chain, service)
        self._add(chain, f"goto buckets_{name_of(service)}")
        self._table.chains[f"buckets_{name_of(service)}"] = Chain(rules=[self._buckets(service, serving)])
        for server in service.servers:
            target = f"[{server.address}]" if service.family == "ipv6" else server.address
            counted = self._count(counter_name("new", service, server))
            translation = f"dnat {IP[service.family]} to {target}:{server.port}"
            self._add(_to(service, server.name), f"meta l4proto {service.protocol}", counted, translation)

    def _add_limits(self, chain: str, service: KernelService) -> None:
        """A connection that begins without a SYN is older than this host's entry: it is counted, and not refused."""
        begins = SYN if service.protocol == "tcp" else ""
        attributes = f"type {service.family}_addr; size {SET_SIZE};"
        client, refused = CLIENT[service.family], self._refuse("limited", service)
        if service.rate_per_client:
            rate, timeout = _client_rate(service.rate_per_client)
            name = f"rate_{name_of(service)}_{service.rate_per_client:g}"
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
        if not serving:
            return self._refuse("no_backend", service)
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
        self._add("bypass", TRANSLATED, "goto translated")
        self._add("bypass", "ct state invalid goto invalid")
        for family in _families(self._services):
            mine = [service for service in self._services if service.family == family]
            source, destination = _endpoint(family, "s"), _endpoint(family, "d")
            served = _set(" . ".join(map(str, key)) for key in self._served(family))
            self._add("translated", self._count_by("out", family, "s"), self._set_mark(), "accept")
            for direction in ("original", "reply"):
                about = f"ct {direction} {IP[family]} daddr {_set(sorted({service.address for service in mine}))}"
                related = f"meta l4proto {ICMP[family]} ct state related"
                self._add("translated", related, about, self._set_mark(), "accept")
            self._add("bypass", f"{source} {served} goto unknown")
            self._add("invalid", f"{source} {served} goto unknown")
            # This host would answer with RST, and end a connection that is alive.
            ours = f"{destination} {_set(sorted({_address(service) for service in mine}))}"
            self._add("invalid", ours, "socket wildcard 0 accept")
            self._add("invalid", ours, self._count(f"invalid_{family}"), "drop")
        # Answers to health checks, from a client's address or from one of this host.
        self._add("unknown", "socket transparent 1 accept")
        self._add("unknown", "fib daddr type local accept")
        self._add("unknown", self._set_mark())

    def _forward(self, strangers: frozenset[str]) -> None:
        self._add("forward", f"{self._marked()} goto from_backend")
        for family in _families(self._services):
            self._add("forward", TRANSLATED, self._count_by("in", family, "d"), "accept")
        for family in sorted(strangers):
            self._add("forward", f"meta nfproto {family}", self._count(f"strangers_{family}"), "drop")
        unasked = self._count("backend_unasked")
        self._add("from_backend", "ct state established,related accept")
        self._add("from_backend", "ct state invalid", self._count("backend_invalid"), "drop")
        self._add("from_backend", "tcp flags & (syn|ack) == syn", unasked, "drop")
        self._add("from_backend", f"udp dport < {CLIENT_PORTS}", unasked, "drop")
        self._add("from_backend", _limit_over(self._bounds), unasked, "drop")

    def _marked(self) -> str:
        return (
            f"meta mark {self._bits:#x}" if self._mask == MAX_U32 else f"meta mark & {self._mask:#x} == {self._bits:#x}"
        )

    def _set_mark(self) -> str:
        others = MAX_U32 & ~self._mask
        return (
            f"meta mark set meta mark & {others:#x} | {self._bits:#x}" if others else f"meta mark set {self._bits:#x}"
        )


def _limit_over(bounds: tuple[int, int]) -> str:
    rate, burst = bounds
    return f"limit rate over {rate}/second burst {burst} packets"


def _client_rate(rate: float) -> tuple[str, int]:
    """(limit, seconds until a client has its whole burst again); a limit of nft has a whole number."""
    burst = max(1, int(rate))
    per, seconds = next(
        (pair for pair in (("second", 1), ("minute", 60)) if (rate * pair[1]).is_integer()), ("hour", 3600)
    )
    return f"limit rate over {max(1, round(rate * seconds))}/{per} burst {burst} packets", int(burst / rate) + 1
