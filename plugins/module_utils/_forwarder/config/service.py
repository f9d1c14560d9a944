# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service: its options as frozen dataclasses, and how they are read from the document.

To add an option: a field here, its default and bounds in defaults.py, its row in docs/docsite/rst/services.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._shared.endpoints import join_endpoint
from ..._shared.families import IPV4, IPV6, family_of
from . import cross_checks, defaults
from .health_check import HealthCheck, read_health_check
from .kernel_datapath import kernel_refusals
from .validation import Fields


@dataclass(frozen=True)
class Backend:
    """One server of a service; a client reaches it by the client's own address family.

    With ``last_port`` it has one port for each port of the service's listen ranges, in the same order.
    """

    name: str
    port: int
    ipv4: str | None = None
    ipv6: str | None = None
    weight: int = defaults.WEIGHT.default
    last_port: int | None = None
    send_proxy: str | None = None
    backup: bool = False  # used only while no other backend is available, of whatever priority
    priority: int | None = None  # version 0.1.0 reads what dump() returns, so it must not have the default
    max_connections: int | None = None  # at once, in all workers together; None: no limit
    enabled: bool | None = None  # False: it gets no new connections; None: true, which version 0.1.0 cannot read

    @property
    def disabled(self) -> bool:
        """Whether the config gives it no new connections."""
        return self.enabled is False

    def address(self, family: str) -> str | None:
        """Return the address of ``family`` ("ipv4" or "ipv6"), or None."""
        return self.ipv4 if family == IPV4 else self.ipv6

    @property
    def tier(self) -> int:
        """Its place among the tiers: backends of a tier are used only while none of a lower one is available."""
        return int(defaults.PRIORITY.high) + 1 if self.backup else self.priority or 0

    def port_of(self, listener: Listener) -> int:
        """Return the port for a client of this listener."""
        return self.port + listener.offset if self.last_port else self.port


@dataclass(frozen=True)
class Listener:
    """One address and port that a service accepts on; ``offset`` is the port's place in its range."""

    address: str
    port: int
    offset: int = 0

    @property
    def family(self) -> str:
        """Either "ipv4" or "ipv6"."""
        return family_of(self.address)

    @property
    def wildcard(self) -> bool:
        """Whether it accepts on every address of its family."""
        return self.address == cross_checks.WILDCARD[self.family]

    def __str__(self) -> str:
        return join_endpoint(self.address, self.port)


@dataclass(frozen=True)
class Limits:
    """The limits of a service; 0 means no limit. A client is an IPv4 address or an IPv6 /64."""

    connections: int = defaults.CONNECTIONS.default
    connections_per_client: int = defaults.CONNECTIONS.default
    rate_per_client: float = defaults.RATE.default  # new connections per second
    at_limit: str = defaults.AT_LIMIT[0]


@dataclass(frozen=True)
class Service:
    """What the forwarder accepts, and what it forwards to."""

    name: str
    listen: tuple[Listener, ...]
    backends: tuple[Backend, ...]
    protocol: str = defaults.PROTOCOLS[0]
    balance: str = defaults.BALANCES[0]
    hash_balance_factor: int | None = None  # percent; None: a backend may have any part of the connections
    connect_timeout: float = defaults.CONNECT_TIMEOUT.default
    connect_deadline: float = defaults.CONNECT_DEADLINE.default
    retries: int = defaults.RETRIES.default
    backlog: int = defaults.BACKLOG.default
    source_port: str = defaults.SOURCE_PORTS[0]
    source_fallback: str = defaults.SOURCE_FALLBACKS[0]
    idle_timeout: float = defaults.IDLE_TIMEOUT.default
    half_closed_timeout: float = defaults.HALF_CLOSED_TIMEOUT.default
    drain_timeout: float | None = defaults.DRAIN_TIMEOUT.default  # of sessions that left the config; None: the config's
    tcp_user_timeout: float = defaults.TCP_USER_TIMEOUT.default
    keepalive: int = defaults.KEEPALIVE.default
    accept_proxy: tuple[str, ...] = ()
    proxy_timeout: float = defaults.PROXY_TIMEOUT.default
    limits: Limits = field(default_factory=Limits)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    health: HealthCheck = field(default_factory=HealthCheck)
    on_all_down: str = defaults.ON_ALL_DOWN[0]
    on_down: str | None = None  # version 0.1.0 reads what dump() returns, so it must not have the default
    slow_start: float = defaults.SLOW_START.default
    log: str = defaults.SERVICE_LOGS[0]
    log_start: bool | None = None  # whether the start of a session is logged; version 0.1.0 does not know these two
    log_every: int | None = None  # seconds between two lines about a session that is open
    datapath: str | None = None  # "kernel"; None: the forwarder, which version 0.1.0 reads

    @property
    def in_kernel(self) -> bool:
        """Whether the kernel forwards its packets; the forwarder then checks its backends and listens nowhere."""
        return self.datapath == defaults.KERNEL

    @property
    def checked(self) -> bool:
        """Whether its backends have health checks; if not, only clients' connections show how they are."""
        return self.health.enabled and (self.protocol == "tcp" or self.health.request is not None)

    @property
    def resets_on_down(self) -> bool:
        """Whether the open sessions of a backend end when health checks find it down."""
        return self.on_down == "reset"

    def backends_of(self, family: str) -> tuple[Backend, ...]:
        """Return the backends that have an address of ``family``, in the document's order."""
        return tuple(backend for backend in self.backends if backend.address(family))


def read_service(part: Fields, proxy_id: int) -> Service:
    """Return the Service of one object of ``services``; a value that was refused is None."""
    listen_parts = part.objects("listen", "listen address")
    backend_parts = part.objects("backends", "backend")
    protocol = part.choice("protocol", defaults.PROTOCOLS)
    entries = [_read_listeners(listen) for listen in listen_parts]
    service = Service(
        name=part.name("name"),
        listen=tuple(listener for entry in entries for listener in entry),
        backends=tuple(_read_backend(backend) for backend in backend_parts),
        protocol=protocol,
        health=read_health_check(part.section("health"), proxy_id),
        limits=_read_limits(part.section("limits")),
        **_read_options(part, protocol),
    )
    part.done()
    if protocol == "udp":
        cross_checks.refuse_tcp_only_options(part, service, backend_parts)
    cross_checks.refuse_reset_without_checks(part, service)
    cross_checks.refuse_caution_without_checks(part, service)
    cross_checks.refuse_deadline_below_timeout(part, service)
    cross_checks.refuse_factor_without_hash(part, service)
    cross_checks.refuse_twin_backends(backend_parts, service.backends)
    cross_checks.refuse_uneven_ranges(backend_parts, service, entries)
    cross_checks.refuse_family_without_backend(listen_parts, service, entries)
    for key, sentence in kernel_refusals(service) if service.in_kernel else ():
        part.error(key, sentence)
    return service


def _read_options(part: Fields, protocol: str) -> dict[str, Any]:
    """Return the options of a service that are plain values, by name."""
    idle_timeout = defaults.UDP_IDLE_TIMEOUT if protocol == "udp" else defaults.IDLE_TIMEOUT
    return {
        "balance": part.choice("balance", defaults.BALANCES),
        "hash_balance_factor": part.integer("hash_balance_factor", "a percentage", *defaults.HASH_BALANCE_FACTOR),
        "connect_timeout": part.seconds("connect_timeout", *defaults.CONNECT_TIMEOUT),
        "connect_deadline": part.seconds("connect_deadline", *defaults.CONNECT_DEADLINE),
        "retries": part.integer("retries", "a number of retries", *defaults.RETRIES),
        "backlog": part.integer("backlog", "a backlog", *defaults.BACKLOG),
        "source_port": part.choice("source_port", defaults.SOURCE_PORTS),
        "source_fallback": part.choice("source_fallback", defaults.SOURCE_FALLBACKS),
        "idle_timeout": part.seconds("idle_timeout", *idle_timeout),
        "half_closed_timeout": part.seconds("half_closed_timeout", *defaults.HALF_CLOSED_TIMEOUT),
        "drain_timeout": part.seconds("drain_timeout", *defaults.DRAIN_TIMEOUT),
        "tcp_user_timeout": part.seconds("tcp_user_timeout", *defaults.TCP_USER_TIMEOUT),
        "keepalive": part.integer("keepalive", "a number of seconds", *defaults.KEEPALIVE),
        "accept_proxy": part.networks("accept_proxy"),
        "proxy_timeout": part.seconds("proxy_timeout", *defaults.PROXY_TIMEOUT),
        "allow": part.networks("allow"),
        "deny": part.networks("deny"),
        "on_all_down": part.choice("on_all_down", defaults.ON_ALL_DOWN),
        "on_down": part.choice("on_down", defaults.ON_DOWN, None),
        "slow_start": part.seconds("slow_start", *defaults.SLOW_START),
        "log": part.choice("log", defaults.SERVICE_LOGS),
        "log_start": part.boolean("log_start", False) or None,
        "log_every": part.integer("log_every", "a number of seconds", *defaults.LOG_EVERY) or None,
        "datapath": defaults.KERNEL if part.choice("datapath", defaults.DATAPATHS) == defaults.KERNEL else None,
    }


def _read_limits(part: Fields) -> Limits:
    limits = Limits(
        connections=part.integer("connections", "a number of connections", *defaults.CONNECTIONS),
        connections_per_client=part.integer("connections_per_client", "a number of connections", *defaults.CONNECTIONS),
        rate_per_client=part.number("rate_per_client", "a rate of connections per second", *defaults.RATE),
        at_limit=part.choice("at_limit", defaults.AT_LIMIT),
    )
    part.done()
    rate = limits.rate_per_client
    if rate and rate < defaults.MIN_RATE:
        part.error("rate_per_client", f"{rate:g} is too low; use at least {defaults.MIN_RATE:g}, or 0 for no limit")
    return limits


def _read_listeners(part: Fields) -> Sequence[Listener]:
    """Return the listeners of one entry of ``listen``, one per port; a refused address is "", a refused port 0."""
    address = part.address("address")
    ports = part.ports("port", defaults.MAX_PORT_RANGE)
    part.done()
    if address is not None and not address.is_unspecified:
        cross_checks.refuse_unusable(part, "address", address, "listen on")
    text = str(address) if address is not None else ""
    return [Listener(address=text, port=port, offset=offset) for offset, port in enumerate(ports or (0,))]


def _read_backend(part: Fields) -> Backend:
    ipv4 = part.address("ipv4", 4, None)
    ipv6 = part.address("ipv6", 6, None)
    name = part.name("name", colons=True)
    ports: Any = part.ports("port", defaults.MAX_PORT_RANGE) or (None,)
    backend = Backend(
        name=name,
        port=ports[0],
        last_port=ports[-1] if len(ports) > 1 else None,
        ipv4=str(ipv4) if ipv4 else None,
        ipv6=str(ipv6) if ipv6 else None,
        weight=part.integer("weight", "a weight", *defaults.WEIGHT),
        backup=part.boolean("backup", False),
        priority=part.integer("priority", "a priority", *defaults.PRIORITY[:2], None),
        max_connections=part.integer("max_connections", "a number of connections", *defaults.MAX_CONNECTIONS),
        send_proxy=part.choice("send_proxy", defaults.PROXY_VERSIONS, None),
        enabled=None if part.boolean("enabled", True) else False,
    )
    part.done()
    if backend.backup and backend.priority is not None:
        part.error("priority", "has no effect on a backup, which comes after all priorities; remove one of the two")
    if part.data is not None and not {IPV4, IPV6} & set(part.data):
        part.error("", "has no address; set ipv4, ipv6 or both")
    for key, address in ((IPV4, ipv4), (IPV6, ipv6)):
        if address is not None:
            cross_checks.refuse_unusable(part, key, address, "forward to")
            cross_checks.refuse_loopback(part, key, address)
    return backend
