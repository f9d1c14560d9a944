# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks between the values of a config, each of which is right by itself.

Each function reports what it refuses through the validation.Fields it is given, at the key that has to change. A value
that was refused before is None, "" or 0, and is not refused again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._shared.families import FAMILIES, IPV4, IPV6, SPELLED, family_of
from . import defaults
from .validation import Fields

if TYPE_CHECKING:
    from .service import Backend, Listener, Service
    from .settings import Metrics

WILDCARD = {IPV4: "0.0.0.0", IPV6: "::"}
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


# -- an address ------------------------------------------------------------------------------------------------------


def refuse_unusable(part: Fields, key: str, address: Any, verb: str) -> None:
    """Refuse addresses that no server can have, and those that are ambiguous without an interface."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped:
        part.error(key, f"{address} is an IPv4-mapped IPv6 address; use {mapped}")
        return
    kinds = (
        (address.is_unspecified, "the unspecified address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address"),
        (address == _BROADCAST, "the broadcast address"),
    )
    for wrong, kind in kinds:
        if wrong:
            part.error(key, f"{address} is {kind}; a service cannot {verb} it")


def refuse_loopback(part: Fields, key: str, address: Any) -> None:
    """Refuse a backend's loopback address."""
    if address.is_loopback:
        part.error(
            key,
            f"{address} is a loopback address, so replies to a client's address would never leave that host; use the"
            " address of another host, on a network that it shares with the proxy",
        )


# -- one service -----------------------------------------------------------------------------------------------------


def refuse_tcp_only_options(part: Fields, service: Service, backend_parts: Iterable[Fields]) -> None:
    """Refuse options of a UDP service that only TCP has, and an idle timeout of 0."""
    if service.idle_timeout == 0:
        part.error("idle_timeout", "0 would keep UDP sessions for ever; use a value above 0")
    if service.health.port and service.health.request is None:
        part.error("health.port", "has no effect on a UDP service without health.request; set health.request too")
    if service.health.expect_regex is not None and service.health.request is None:
        part.error("health.expect_regex", "a UDP server answers only health.request; set health.request too")
    for key in ("tls", "http"):
        if getattr(service.health, key) is not None:
            part.error(f"health.{key}", "a UDP service has no such check; use health.request, or remove it")
    if service.accept_proxy:
        part.error("accept_proxy", "a UDP service cannot receive PROXY headers; remove it")
    for backend_part, backend in zip(backend_parts, service.backends):
        if backend.send_proxy:
            backend_part.error("send_proxy", "a UDP service cannot send PROXY headers; remove it")


def refuse_reset_without_checks(part: Fields, service: Service) -> None:
    """Refuse to reset the sessions of a backend that is down where no health check can find that out."""
    if service.resets_on_down and not service.checked:
        part.error(
            "on_down", f"reset needs health checks, which find out that a backend is down; set {_checks(service)}"
        )


def refuse_caution_without_checks(part: Fields, service: Service) -> None:
    """Refuse options of health checks that have no effect because there are no health checks."""
    for key in ("max_out", "flap_pause"):
        if getattr(service.health, key) and not service.checked:
            part.error(f"health.{key}", f"has no effect without health checks; set {_checks(service)}, or remove it")


def _checks(service: Service) -> str:
    """Return which key switches on the health checks of a service that has none."""
    return "health.request" if service.protocol == "udp" and service.health.enabled else "health.enabled: true"


def refuse_deadline_below_timeout(part: Fields, service: Service) -> None:
    """Refuse a deadline of all connection attempts that is shorter than the timeout of one."""
    timeout, deadline = service.connect_timeout, service.connect_deadline
    if timeout and deadline and deadline < timeout:
        part.error(
            "connect_deadline",
            f"{deadline:g} is shorter than connect_timeout ({timeout:g}); raise it, or lower connect_timeout",
        )


def refuse_factor_without_hash(part: Fields, service: Service) -> None:
    """Refuse the bound on a backend's connections where ``balance`` does not choose by a hash."""
    if service.hash_balance_factor and service.balance not in ("source_hash", None):
        part.error(
            "hash_balance_factor", f"has no effect with balance: {service.balance}; remove it, or use source_hash"
        )


def refuse_twin_backends(parts: Iterable[Fields], backends: Iterable[Backend]) -> None:
    """Refuse two backends of a service with the same name, or with the same address and port."""
    first_with_name: dict[str, int] = {}
    first_at: dict[tuple[str, int], int] = {}
    for index, (part, backend) in enumerate(zip(parts, backends)):
        if backend.name is not None and first_with_name.setdefault(backend.name, index) != index:
            first = first_with_name[backend.name]
            part.error(
                "name", f'"{backend.name}" is already the name of backends[{first}] of this service; choose another'
            )
        for family in FAMILIES:
            address = backend.address(family)
            if not address:
                continue
            first = first_at.setdefault((address, backend.port), index)
            if first != index:
                part.error(
                    family,
                    f"{address} port {backend.port} is already backends[{first}] of this service;"
                    " to give it more connections, raise its weight",
                )


def refuse_uneven_ranges(parts: Iterable[Fields], service: Service, entries: Iterable[Sequence[Listener]]) -> None:
    """Refuse a backend whose port range is not as long as each listen range."""
    lengths = sorted({len(entry) for entry in entries})
    for part, backend in zip(parts, service.backends):
        if backend.last_port and lengths != [backend.last_port - backend.port + 1]:
            part.error(
                "port",
                f"{backend.port}-{backend.last_port} is {backend.last_port - backend.port + 1} ports, but the listen"
                f" addresses of this service have {' and '.join(map(str, lengths))}; use as many ports, or one port for"
                " all",
            )


def refuse_family_without_backend(parts: Iterable[Fields], service: Service, entries: Iterable[Any]) -> None:
    """Refuse a listener whose family no backend has, unless its clients may be hidden behind the proxy's address."""
    if not service.backends or service.source_fallback == "own":
        return
    served = [family for family in FAMILIES if service.backends_of(family)]
    for part, entry in zip(parts, entries):
        listener = entry[0]
        if listener.address and listener.family not in served:
            family = SPELLED[listener.family]
            part.error(
                "address",
                f"{listener.address} is {family}, but no backend of service {service.name} has an {family} address; add"
                " one, remove this listener, or set source_fallback: own (the backends then see the proxy's address)",
            )


# -- all services ----------------------------------------------------------------------------------------------------


def refuse_duplicate_names(parts: Sequence[Fields], services: Iterable[Service]) -> None:
    """Refuse two services with one name."""
    first: dict[str, int] = {}
    for index, service in enumerate(services):
        if service.name is not None and first.setdefault(service.name, index) != index:
            parts[index].error(
                "name", f'"{service.name}" is already the name of services[{first[service.name]}]; choose another'
            )


def refuse_metrics_on_a_service(part: Fields, metrics: Metrics, services: Iterable[Service]) -> None:
    """Refuse to serve metrics where a TCP service listens."""
    if metrics.endpoint is None:
        return
    address, port = metrics.endpoint
    for index, service in enumerate(services):
        for listener in service.listen if service.protocol == "tcp" else ():
            same = listener.port == port and listener.family == family_of(address)
            if same and (listener.wildcard or address in (listener.address, *WILDCARD.values())):
                part.error("listen", f"{metrics.listen} overlaps {listener} of services[{index}]; choose another port")
                return


def refuse_overlapping_listeners(parts: Sequence[Fields], services: Iterable[Service]) -> None:
    """Refuse two listeners that could accept the same connection, also within one service."""
    placed: dict[Any, dict[str, Any]] = {}  # (protocol, family, port) -> {address: ((service, entry), listener)}
    refused = set()
    for index, service in enumerate(services):
        entry = -1
        for listener in service.listen:
            entry += listener.offset == 0
            if not (listener.address and listener.port):
                continue  # refused already
            same_port = placed.setdefault((service.protocol, listener.family, listener.port), {})
            for place, other in _overlapping(listener, same_port):
                if (place, index, entry) not in refused:
                    refused.add((place, index, entry))  # one error for a range, not one per port
                    parts[index].error(
                        f"listen[{entry}]",
                        f"{listener} overlaps {other} of services[{place[0]}].listen[{place[1]}]"
                        " (same port; a wildcard covers every address of its family)",
                    )
            same_port.setdefault(listener.address, ((index, entry), listener))


def _overlapping(listener: Listener, same_port: Mapping[str, Any]) -> list[Any]:
    """Return the listeners on the same port, ((service, entry), listener), that a listener overlaps."""
    if listener.wildcard:
        return list(same_port.values())
    return [same_port[address] for address in (listener.address, WILDCARD[listener.family]) if address in same_port]


def refuse_too_many(document: Fields, services: Iterable[Service]) -> None:
    """Refuse more listeners or backends than the forwarder is known to start with."""
    limits = (
        ("listen", "listen addresses (each port of a range counts)", defaults.MAX_LISTENERS),
        ("backends", "backends", defaults.MAX_BACKENDS),
    )
    for key, noun, limit in limits:
        count = sum(len(getattr(service, key)) for service in services)
        if count > limit:
            document.error("services", f"have {count} {noun}; the limit is {limit} per proxy: use several proxies")
