# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's configuration: a JSON document in, frozen dataclasses out, every error at once.

Pure: load() and dump() touch no file. All defaults of the forwarder live here. Durations are seconds, addresses are
strings in their canonical form (RFC 5952 for IPv6).
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass, field

from . import options, settings
from .options import Limits, PortRange
from .settings import IPV4, IPV6, Admin, Health, Log, Metrics
from .validation import Fields

SCHEMA = 1

PROTOCOLS = ("tcp", "udp")
BALANCES = ("round_robin", "least_connections", "source_hash", "random")
ON_ALL_DOWN = ("refuse", "try_all")
SERVICE_LOGS = ("all", "errors", "none")

_SPELLED = {IPV4: "IPv4", IPV6: "IPv6"}

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
        return self.address in ("0.0.0.0", "::")

    def __str__(self):
        return f"[{self.address}]:{self.port}" if self.family == IPV6 else f"{self.address}:{self.port}"

    def overlaps(self, other):
        """Whether one connection could belong to both listeners."""
        if self.port != other.port or self.family != other.family:
            return False
        return self.address == other.address or self.wildcard or other.wildcard


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
    sections = {
        "log": settings.log(document.section("log")),
        "source_ports": options.source_ports(document),
        "workers": document.integer("workers", 0, MAX_WORKERS, "a number of workers", 0),
        "admin": settings.admin(document.section("admin")),
        "metrics": settings.metrics(document.section("metrics")),
    }
    parts = document.objects("services", "service")
    services = [_service(part, proxy_id or 1) for part in parts]
    document.done()
    _refuse_duplicate_names(parts, services)
    _refuse_overlapping_listeners(parts, services)
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
    _refuse_twin_backends(backend_parts, service.backends)
    _refuse_uneven_ranges(backend_parts, service, entries)
    _refuse_family_without_backend(listen_parts, service, entries)
    return service


def _listeners(part):
    """Return the listeners of one entry of ``listen``, one for each port; what was refused has "" and 0 instead."""
    address = part.address("address")
    ports = part.ports("port", options.MAX_RANGE)
    part.done()
    if address is not None and not address.is_unspecified:
        _refuse_unusable(part, "address", address, "listen on")
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
            _refuse_unusable(part, key, address, "forward to")
            if address.is_loopback:
                part.error(
                    key,
                    f"{address} is a loopback address: replies to a client's address never leave that host;"
                    " give the backend's address on the network it shares with the proxy",
                )
    return backend


def _refuse_unusable(part, key, address, verb):
    """Refuse addresses no server can have, and those that need more than an address to be reached."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped:
        part.error(key, f"{address} is IPv4 in IPv6 clothes: give {mapped}")
        return
    checks = (
        (address.is_unspecified, "the unspecified address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address"),
        (address == ipaddress.IPv4Address("255.255.255.255"), "the broadcast address"),
    )
    for wrong, what in checks:
        if wrong:
            part.error(key, f"{address} is {what}; no service can {verb} it")


def _refuse_twin_backends(parts, backends):
    """Refuse two backends of one name, or of one address and port, in a service: weight says the same more clearly."""
    for index, backend in enumerate(backends):
        for other in range(index):
            earlier = backends[other]
            if backend.name is not None and backend.name == earlier.name:
                parts[index].error("name", f'"{backend.name}" is already the name of backends[{other}] of this service')
            for family in (IPV4, IPV6):
                address = backend.address(family)
                if address and (address, backend.port) == (earlier.address(family), earlier.port):
                    parts[index].error(
                        family,
                        f"{address} port {backend.port} is already backends[{other}] of this service; use weight",
                    )


def _refuse_uneven_ranges(parts, service, entries):
    """A backend with a range of ports needs one for each port of every listen entry."""
    lengths = sorted({len(entry) for entry in entries})
    for part, backend in zip(parts, service.backends):
        if backend.last_port and lengths != [backend.last_port - backend.port + 1]:
            part.error(
                "port",
                f"{backend.port}-{backend.last_port} is {backend.last_port - backend.port + 1} ports, and the listen"
                f" addresses of this service have {' and '.join(map(str, lengths))}; give as many, or one port for all",
            )


def _refuse_family_without_backend(parts, service, entries):
    """A client of one family is forwarded to that family, unless it may be hidden behind the proxy's own address."""
    if not service.backends or service.source_fallback == "own":
        return  # the former was said already
    for part, entry in zip(parts, entries):
        listener = entry[0]
        if listener.address and not service.backends_of(listener.family):
            part.error(
                "address",
                f"{listener.address} is {_SPELLED[listener.family]}, but no backend of service"
                f" {service.name} has {listener.family}; give one, remove this listener, or set source_fallback: own"
                " (the backends then see the proxy's address)",
            )


def _refuse_duplicate_names(parts, services):
    first = {}
    for index, service in enumerate(services):
        if service.name is None:
            continue
        if service.name in first:
            parts[index].error("name", f'"{service.name}" is already the name of services[{first[service.name]}]')
        first.setdefault(service.name, index)


def _refuse_overlapping_listeners(parts, services):
    """Two listeners that could take the same connection are refused, within one service as well."""
    placed = {}  # (protocol, family, port) -> [(place, listener)]
    refused = set()
    for index, service in enumerate(services):
        number = -1
        for listener in service.listen:
            number += listener.offset == 0
            if not (listener.address and listener.port):
                continue  # refused already
            others = placed.setdefault((service.protocol, listener.family, listener.port), [])
            for place, other in others:
                if listener.overlaps(other) and (place, index, number) not in refused:
                    refused.add((place, index, number))  # a range is refused once, not for each of its ports
                    parts[index].error(
                        f"listen[{number}]",
                        f"{listener} overlaps {other} of services[{place[0]}].listen[{place[1]}]"
                        " (same port; a wildcard covers every address of its family)",
                    )
            others.append(((index, number), listener))
