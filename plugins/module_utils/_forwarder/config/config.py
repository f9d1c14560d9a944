# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's config as a whole: a JSON document in; a frozen Config, or all errors at once, out.

load() and dump() are pure. Durations are seconds, addresses are strings in their canonical form (RFC 5952 for IPv6).
Defaults and bounds: defaults.py. A service and its backends: service.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from . import cross_checks, defaults, settings
from .service import Service, read_service
from .settings import Admin, Log, Metrics, PortRange
from .validation import Fields

SCHEMA = 1


class ConfigError(ValueError):
    """The document is refused; ``errors`` has one line for each fault."""

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class Config:
    """The whole document."""

    proxy_id: int
    services: tuple[Service, ...]
    drain_timeout: float | None = defaults.DRAIN_TIMEOUT.default  # of every session that has to end; None: see below
    drain_memory: int | None = None  # MiB; version 0.1.0 reads what dump() returns, so it must not have the default
    hash_table: str | None = None  # None: the first of HASH_TABLES; 0.1.0 does not have the key
    deny_files: tuple[str, ...] | None = None  # nor these two
    never_ban: tuple[str, ...] | None = None
    healthy_needs: str | None = None  # None: none; 0.1.0 does not have the key
    virtual_addresses: dict[str, tuple[str, ...]] | None = None  # by name; 0.1.0 does not have the key
    log: Log = field(default_factory=Log)
    source_ports: PortRange | None = None
    workers: int = defaults.WORKERS.default
    admin: Admin = field(default_factory=Admin)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def stop_timeout(self) -> float:
        """Seconds that connections have after a stop."""
        return defaults.STOP_TIMEOUT if self.drain_timeout is None else self.drain_timeout

    def removal_timeout(self, service: Service) -> float:
        """Seconds that sessions of ``service`` have after it, or their backend, has left the config."""
        return self.stop_timeout if service.drain_timeout is None else service.drain_timeout

    @property
    def most_drain_memory(self) -> int:
        """MiB that all draining workers together may use."""
        return defaults.DRAIN_MEMORY.default if self.drain_memory is None else self.drain_memory

    @property
    def used_hash_table(self) -> str:
        """How services with ``balance: source_hash`` find a client's backend: one of HASH_TABLES."""
        return self.hash_table or defaults.HASH_TABLES[0]


def load(data: Any) -> Config:
    """Return the Config of a parsed JSON document; raise ConfigError with all its faults."""
    errors: list[str] = []
    document = Fields(data, "", errors)
    document.integer("schema", "the schema of this version", SCHEMA, SCHEMA)
    proxy_id = document.integer("proxy_id", "a proxy id", 1, 255)
    metrics_part = document.section("metrics")
    forwarder = {
        "drain_timeout": document.seconds("drain_timeout", *defaults.DRAIN_TIMEOUT),
        "drain_memory": document.integer("drain_memory", "a number of MiB", *defaults.DRAIN_MEMORY[:2], None),
        "hash_table": document.choice("hash_table", defaults.HASH_TABLES, None),
        "deny_files": document.files("deny_files", defaults.MAX_PATH, defaults.MAX_DENY_FILES) or None,
        "never_ban": document.networks("never_ban") or None,
        "healthy_needs": settings.read_healthy_needs(document),
        "virtual_addresses": settings.read_virtual_addresses(document),
        "log": settings.read_log(document.section("log")),
        "source_ports": settings.read_source_ports(document),
        "workers": document.integer("workers", "a number of workers", *defaults.WORKERS),
        "admin": settings.read_admin(document.section("admin")),
        "metrics": settings.read_metrics(metrics_part),
    }
    service_parts = document.objects("services", "service")
    services = tuple(read_service(part, proxy_id or 1) for part in service_parts)
    document.done()
    cross_checks.refuse_duplicate_names(service_parts, services)
    cross_checks.refuse_overlapping_listeners(service_parts, services)
    cross_checks.refuse_metrics_on_a_service(metrics_part, forwarder["metrics"], services)
    cross_checks.refuse_too_many(document, services)
    if errors:
        raise ConfigError(errors)
    return Config(proxy_id=proxy_id, services=services, **forwarder)


def dump(config: Config) -> dict[str, Any]:
    """Return the JSON document of ``config`` with all defaults spelled out: load(dump(config)) == config."""
    document = json.loads(json.dumps(asdict(config)))  # tuples become lists, as in JSON
    for service in document["services"]:
        service["listen"] = _listen_entries(service["listen"])
        for backend in service["backends"]:
            last = backend.pop("last_port")
            if last:
                backend["port"] = f"{backend['port']}-{last}"
    return {"schema": SCHEMA, **_without_nulls(document)}


def _without_nulls(value: Any) -> Any:
    """Leave out keys whose value is None: the document does not have them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _listen_entries(listeners: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of ``listen`` that these listeners came from; those of a range follow each other."""
    ranges: list[list[Any]] = []
    for listener in listeners:
        if listener["offset"]:
            ranges[-1][2] = listener["port"]
        else:
            ranges.append([listener["address"], listener["port"], listener["port"]])
    return [
        {"address": address, "port": first if first == last else f"{first}-{last}"} for address, first, last in ranges
    ]


def parse(text: str | bytes, source: str) -> Config:
    """Return the Config of JSON ``text``; ``source`` names it in errors. Raise ConfigError."""
    try:
        data = json.loads(text, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError([f"{source}: not a JSON document: {error}"]) from None
    return load(data)


def load_file(path: str) -> Config:
    """Return the Config in the file at ``path``; raise ConfigError, also when the file cannot be read."""
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    return parse(text, path)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two values for one key, of which json.loads would silently keep the last."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [key for key, _value in pairs]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"key {', '.join(map(repr, duplicates))} appears twice in one object")
    return unique
