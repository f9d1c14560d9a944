# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's configuration: a JSON document in, frozen dataclasses out, every error at once.

Pure: load() and dump() touch no file. All defaults of the forwarder live here. Durations are seconds, addresses are
strings in their canonical form (RFC 5952 for IPv6).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from . import cross_checks, options, settings
from .options import Limits, PortRange
from .settings import Admin, Health, Log, Metrics
from .validation import IPV4, IPV6, Fields

SCHEMA = 1

PROTOCOLS = ("tcp", "udp")
BALANCES = ("round_robin", "least_connections", "source_hash", "random")
ON_ALL_DOWN = ("refuse", "try_all")
SERVICE_LOGS = ("all", "errors", "none")

DEFAULT_DRAIN_TIMEOUT = 30.0
DEFAULT_CONNECT_TIMEOUT = 1.0
DEFAULT_CONNECT_DEADLINE = 5.0
DEFAULT_RETRIES = 2
DEFAULT_BACKLOG = 4096  # the kernel caps it at net.core.somaxconn, whose default is 4096 since Linux 5.4
DEFAULT_WEIGHT = 1

MAX_WEIGHT = 65535
MAX_BACKLOG = 65535
MAX_RETRIES = 64
MAX_WORKERS = 64
MAX_CONNECTIONS = 10_000_000


class ConfigError(ValueError):
    """The document is refused; ``errors`` lists one line for each thing that is wrong with it."""

    def __init__(self, errors):
        super().__init__("\n".join(errors))
        self.errors = list(errors)


@dataclass(frozen=True)
class Backend:
    """One server of a service; it is reached by the family the client came with.

    With a ``last_port`` it has a port for each port of the service's ranges, the first for the first.
    """

    name: str
    port: int
    ipv4: str | None = None
    ipv6: str | None = None
    weight: int = DEFAULT_WEIGHT
    last_port: int | None = None
    send_proxy: str | None = None
    backup: bool = False  # only used while no other backend is
    max_connections: int | None = None  # at once, over all workers; None: no limit

    def address(self, family):
        """Return this backend's address of ``family`` ("ipv4" or "ipv6"), or None."""
        return self.ipv4 if family == IPV4 else self.ipv6

    def port_of(self, listener):
        """Return the port for a client of this listener."""
        return self.port + listener.offset if self.last_port else self.port


@dataclass(frozen=True)
class Listener:
    """One address and port a service accepts on; ``offset`` is the port's place in the range it was given in."""

    address: str
    port: int
    offset: int = 0

    @property
    def family(self):
        """Either "ipv4" or "ipv6"."""
        return IPV6 if ":" in self.address else IPV4

    @property
    def wildcard(self):
        """Whether it accepts on every address of its family."""
        return self.address == cross_checks.WILDCARD[self.family]

    def __str__(self):
        return f"[{self.address}]:{self.port}" if self.family == IPV6 else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Service:
    """A listener and what it forwards to."""

    name: str
    listen: tuple[Listener, ...]
    backends: tuple[Backend, ...]
    protocol: str = "tcp"
    balance: str = "round_robin"
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    connect_deadline: float = DEFAULT_CONNECT_DEADLINE
    retries: int = DEFAULT_RETRIES
    backlog: int = DEFAULT_BACKLOG
    source_port: str = "any"
    source_fallback: str = "refuse"
    idle_timeout: float = options.DEFAULT_IDLE_TIMEOUT
    half_closed_timeout: float = options.DEFAULT_HALF_CLOSED_TIMEOUT
    tcp_user_timeout: float = options.DEFAULT_TCP_USER_TIMEOUT
    keepalive: int = options.DEFAULT_KEEPALIVE
    accept_proxy: tuple[str, ...] = ()
    proxy_timeout: float = options.DEFAULT_PROXY_TIMEOUT
    limits: Limits = field(default_factory=Limits)
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    health: Health = field(default_factory=Health)
    on_all_down: str = "refuse"
    slow_start: float = 0.0
    log: str = "all"

    @property
    def asked(self):
        """Whether there is a health question for its backends; else only clients tell how they are."""
        return self.health.enabled and (self.protocol == "tcp" or self.health.request is not None)

    def backends_of(self, family):
        """Return the backends that have an address of ``family``, in the document's order."""
        return tuple(backend for backend in self.backends if backend.address(family))


@dataclass(frozen=True)
class Config:
    """The whole document."""

    proxy_id: int
    services: tuple[Service, ...]
    drain_timeout: float = DEFAULT_DRAIN_TIMEOUT
    log: Log = field(default_factory=Log)
    source_ports: PortRange | None = None
    workers: int = 0  # 0: one a core
    admin: Admin = field(default_factory=Admin)
    metrics: Metrics = field(default_factory=Metrics)


def load(data):
    """Return the Config of a parsed JSON document; raise ConfigError with all that is wrong with it."""
    errors = []
    document = Fields(data, "", errors)
    document.integer("schema", SCHEMA, SCHEMA, "the schema this version reads")
    proxy_id = document.integer("proxy_id", 1, 255, "a proxy id")
    drain_timeout = document.seconds("drain_timeout", 0, 86400, DEFAULT_DRAIN_TIMEOUT)
    metrics = document.section("metrics")
    sections = {
        "log": settings.log(document.section("log")),
        "source_ports": options.source_ports(document),
        "workers": document.integer("workers", 0, MAX_WORKERS, "a number of workers", 0),
        "admin": settings.admin(document.section("admin")),
        "metrics": settings.metrics(metrics),
    }
    parts = document.objects("services", "service")
    services = [_service(part, proxy_id or 1) for part in parts]
    document.done()
    cross_checks.refuse_duplicate_names(parts, services)
    cross_checks.refuse_overlapping_listeners(parts, services)
    cross_checks.refuse_metrics_on_a_service(metrics, sections["metrics"], services)
    cross_checks.refuse_too_many(document, services)
    if errors:
        raise ConfigError(errors)
    return Config(proxy_id=proxy_id, services=tuple(services), drain_timeout=drain_timeout, **sections)


def dump(config):
    """Return the JSON document of ``config``, all defaults spelled out: load(dump(config)) == config."""
    document = json.loads(json.dumps(asdict(config)))  # tuples become lists, as in JSON
    for service in document["services"]:
        service["listen"] = _listen_entries(service["listen"])
        for backend in service["backends"]:
            last = backend.pop("last_port")
            if last:
                backend["port"] = f"{backend['port']}-{last}"
    return {"schema": SCHEMA, **_without_nulls(document)}


def _without_nulls(value):
    """Leave out what is None: in the document such a key is missing."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _listen_entries(listeners):
    """Return the entries that listeners (as dictionaries) came from: those of a range follow each other."""
    ranges = []
    for listener in listeners:
        if listener["offset"]:
            ranges[-1][1] = listener["port"]
        else:
            ranges.append([listener, listener["port"]])
    return [
        {"address": one["address"], "port": one["port"] if last == one["port"] else f"{one['port']}-{last}"}
        for one, last in ranges
    ]


def parse(text, source):
    """Return the Config of JSON ``text`` (str or bytes); ``source`` names it in errors. Raise ConfigError."""
    try:
        data = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError([f"{source}: not a JSON document: {error}"]) from None
    return load(data)


def load_file(path):
    """Return the Config in the file at ``path``; raise ConfigError, also for a file that cannot be read."""
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    return parse(text, path)


def _object_without_duplicates(pairs):
    """Refuse what json.loads would silently settle: two values for one key."""
    seen = dict(pairs)
    if len(seen) != len(pairs):
        names = [key for key, _value in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"key {', '.join(map(repr, twice))} appears twice in one object")
    return seen


def _service(part, proxy_id):
    """Return the Service of one object of ``services``; fields that were refused are None."""
    listen_parts = part.objects("listen", "listen address")
    backend_parts = part.objects("backends", "backend")
    protocol = part.choice("protocol", PROTOCOLS, "tcp")
    entries = [_listeners(listen) for listen in listen_parts]
    service = Service(
        name=part.name("name"),
        listen=tuple(listener for entry in entries for listener in entry),
        backends=tuple(_backend(backend) for backend in backend_parts),
        protocol=protocol,
        balance=part.choice("balance", BALANCES, "round_robin"),
        connect_timeout=part.seconds("connect_timeout", 0.1, 600, DEFAULT_CONNECT_TIMEOUT),
        connect_deadline=part.seconds("connect_deadline", 0.1, 600, DEFAULT_CONNECT_DEADLINE),
        retries=part.integer("retries", 0, MAX_RETRIES, "a number of retries", DEFAULT_RETRIES),
        backlog=part.integer("backlog", 1, MAX_BACKLOG, "a backlog", DEFAULT_BACKLOG),
        health=settings.health(part.section("health"), proxy_id),
        on_all_down=part.choice("on_all_down", ON_ALL_DOWN, "refuse"),
        slow_start=part.seconds("slow_start", 0, 3600, 0.0),
        log=part.choice("log", SERVICE_LOGS, "all"),
        **options.service_options(part, protocol),
    )
    part.done()
    if protocol == "udp":
        options.refuse_streams_only(part, service, backend_parts)
    timeout, deadline = service.connect_timeout, service.connect_deadline
    if timeout and deadline and deadline < timeout:
        part.error("connect_deadline", f"{deadline:g} is below connect_timeout ({timeout:g})")
    cross_checks.refuse_twin_backends(backend_parts, service.backends)
    cross_checks.refuse_uneven_ranges(backend_parts, service, entries)
    cross_checks.refuse_family_without_backend(listen_parts, service, entries)
    return service


def _listeners(part):
    """Return the listeners of one entry of ``listen``, one for each port; what was refused has "" and 0 instead."""
    address = part.address("address")
    ports = part.ports("port", options.MAX_RANGE)
    part.done()
    if address is not None and not address.is_unspecified:
        cross_checks.refuse_unusable(part, "address", address, "listen on")
    text = str(address) if address is not None else ""
    return [Listener(address=text, port=port, offset=offset) for offset, port in enumerate(ports or (0,))]


def _backend(part):
    ipv4 = part.address("ipv4", 4, None)
    ipv6 = part.address("ipv6", 6, None)
    name = part.name("name", colons=True)
    ports = part.ports("port", options.MAX_RANGE)
    backend = Backend(
        name=name,
        port=ports[0] if ports else None,
        last_port=ports[-1] if ports and len(ports) > 1 else None,
        ipv4=str(ipv4) if ipv4 else None,
        ipv6=str(ipv6) if ipv6 else None,
        weight=part.integer("weight", 1, MAX_WEIGHT, "a weight", DEFAULT_WEIGHT),
        backup=part.boolean("backup", False),
        max_connections=part.integer("max_connections", 1, MAX_CONNECTIONS, "a number of connections", None),
        send_proxy=part.choice("send_proxy", options.PROXY_VERSIONS, None),
    )
    part.done()
    if part.data is not None and not {IPV4, IPV6} & set(part.data):
        part.error("", "has no address; give ipv4, ipv6 or both")
    for key, address in ((IPV4, ipv4), (IPV6, ipv6)):
        if address is not None:
            cross_checks.refuse_unusable(part, key, address, "forward to")
            if address.is_loopback:
                part.error(
                    key,
                    f"{address} is a loopback address: replies to a client's address never leave that host;"
                    " give the address of another host, on a network that it shares with the proxy",
                )
    return backend
