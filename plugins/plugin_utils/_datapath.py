# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which datapath each service has, how ``auto`` chooses one, and what the kernel datapath cannot do in a fleet. Pure.

All of it depends on the inventory and on stored configs, not on facts, so that every host finds the same, also in a run
that is limited to some hosts. ``auto`` is sticky: the datapath of an earlier run stays while it is possible.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.kernel_datapath import kernel_refusals
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import read_service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.validation import Fields
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.endpoints import join_endpoint
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.families import SPELLED, family_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_auto import AUTO as AUTO_STRATEGY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    MARK,
    STRATEGY_VARIABLE,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import BackendRef, ServiceRef

KEY = "datapath"
DATAPATHS = FORWARDER, KERNEL, AUTO = "forwarder", "kernel", "auto"
# For a sentence: what always works.
REMEDY = f"or use {KEY}: {FORWARDER}"


@dataclass(frozen=True)
class Choice:
    """A datapath, and as half a sentence the reason for it."""

    datapath: str
    reason: str


@dataclass(frozen=True)
class _User:
    """A backend of a service, with the bounds of its ports."""

    service: ServiceRef
    ref: BackendRef
    low: int
    high: int


class Datapaths:
    """The datapath of each service of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # A service of one proxy is without that host among its backends; the original has all.
        self._services = {service.index: service for service in fleet.services}
        self._choices: dict[int, Choice] = {}

    def in_kernel(self, service: ServiceRef) -> bool:
        """Return whether the kernel forwards the packets of a service."""
        return self.choice(service).datapath == KERNEL

    def choice(self, service: ServiceRef) -> Choice:
        """Return the datapath of a service, and the reason."""
        if service.index not in self._choices:
            self._choices[service.index] = self._choose(self._services[service.index])
        return self._choices[service.index]

    def _choose(self, service: ServiceRef) -> Choice:
        declared = service.options.get(KEY, FORWARDER)
        if declared != AUTO:
            return Choice(KERNEL if declared == KERNEL else FORWARDER, f"{KEY} sets it")
        applied = _applied(self._fleet, service)
        if applied == FORWARDER:
            return Choice(FORWARDER, f"an earlier run has applied it; set {KEY}: {KERNEL} to change it")
        for sentence in (*_own_refusals(service), *self.refusals(service)):
            return Choice(FORWARDER, sentence)
        if applied == KERNEL:
            return Choice(KERNEL, f"an earlier run has applied it; set {KEY}: {FORWARDER} to change it")
        return Choice(KERNEL, "nothing that the service asks for needs the forwarder")

    def faults(self, service: ServiceRef) -> list[str]:
        """Return why a service cannot have the datapath that it asks for; what its own options forbid is not here."""
        declared = service.options.get(KEY, FORWARDER)
        if declared not in DATAPATHS:
            return [f"{service.path}.{KEY}: {declared!r} is not a datapath; use {', '.join(DATAPATHS)}"]
        return list(self.refusals(self._services[service.index])) if declared == KERNEL else []

    def refusals(self, service: ServiceRef) -> Iterator[str]:
        """Yield why the kernel cannot forward a service in this fleet: a sentence each, with the path."""
        proxies = self._fleet.proxies_of_service(service)
        for ref in service.backends:
            if ref.host in proxies:
                yield (
                    f"{ref.path}: {ref.host} is also a proxy of service {service.name}, and a proxy cannot be its own "
                    "backend, so the proxies would not choose the same backend for a client; remove it from the "
                    f"backends, name other proxies in {service.path}.proxies, {REMEDY}"
                )
            if ref.host in self._fleet.backends and len(proxies) > 1 and _has_addresses(self._fleet, str(ref.host)):
                yield (
                    f"{ref.path}: with {STRATEGY_VARIABLE}: {ADDRESS}, each of the proxies {', '.join(proxies)} uses "
                    f"another address of {ref.host}, so a connection could not outlive its proxy; set "
                    f"{STRATEGY_VARIABLE}: {MARK} on {ref.host}, {REMEDY}"
                )
            yield from self._shared_ports(service, ref)

    def _shared_ports(self, service: ServiceRef, ref: BackendRef) -> Iterator[str]:
        """Yield the other services that use the same port of a backend in another way."""
        low, high = _bounds(ref.port)
        listening = _endpoints(service)
        for user in self._users.get(_identity(service, ref), ()):
            shared = [family for family in _endpoints(user.service) if family in listening]
            if user.service.index == service.index or not shared or user.low > high or user.high < low:
                continue
            other = f"{ref.path}: port {ref.port} of {ref.label} is also a backend of service {user.service.name}"
            remedy = f"use another port for one of the two, {REMEDY}"
            if user.service.options.get(KEY, FORWARDER) != KERNEL:
                # Also with auto, which therefore chooses the forwarder there.
                yield (
                    f"{other} ({user.ref.path}), which the forwarder serves, and a backend's port can have only one "
                    f"datapath; {remedy}"
                )
            for family in shared:
                here, there = listening[family], _endpoints(user.service)[family]
                if user.service.options.get(KEY) == KERNEL and here != there:
                    yield (
                        f"{other} ({user.ref.path}), which clients reach at {there} and not at {here}, so the kernel "
                        f"would not know which {SPELLED[family]} address its packets have to get; {remedy}"
                    )

    @functools.cached_property
    def _users(self) -> dict[tuple[str, str], list[_User]]:
        users: dict[tuple[str, str], list[_User]] = {}
        for service in self._services.values():
            for ref in service.backends:
                users.setdefault(_identity(service, ref), []).append(_User(service, ref, *_bounds(ref.port)))
        return users


def _identity(service: ServiceRef, ref: BackendRef) -> tuple[str, str]:
    return service.protocol, ref.host or str(ip_address(str(ref.address)))


def _bounds(port: Any) -> tuple[int, int]:
    """Return the first and the last port of a range, or a port twice; (0, 0) for what is refused elsewhere."""
    first, _dash, last = str(port).partition("-")
    return (int(first), int(last or first)) if first.isdecimal() and (last or "0").isdecimal() else (0, 0)


def _endpoints(service: ServiceRef) -> dict[str, str]:
    """Return what clients connect to, by family. The kernel datapath has one address and port for each."""
    return {family_of(address): join_endpoint(address, port) for address, port in reversed(service.listen)}


def _has_addresses(fleet: Fleet, backend: str) -> bool:
    """Return whether a backend has, or by ``auto`` may have, an address for each proxy."""
    strategy = fleet.declared_strategy(backend)
    return strategy == ADDRESS or (strategy == AUTO_STRATEGY and bool(fleet.return_path_addresses(backend)))


def _own_refusals(service: ServiceRef) -> Iterable[str]:
    """Yield what the options of a service ask for and the kernel does not have; wrong values are refused elsewhere."""
    data = {
        **{key: value for key, value in service.options.items() if key != KEY},
        "listen": [{"address": address, "port": port} for address, port in service.listen],
        "backends": [{"name": ref.label, "port": ref.port, **ref.options} for ref in service.backends],
    }
    for key, sentence in kernel_refusals(read_service(Fields(data, "", []), 1)):
        yield f"{service.path}.{key}: {sentence}"


def _applied(fleet: Fleet, service: ServiceRef) -> str | None:
    """Return the datapath that an earlier run has applied; None: no proxy whose config is known has the service."""
    configs = [fleet.stored_forwarder(proxy) for proxy in fleet.proxies_of_service(service)]
    services = [one for config in configs for one in (config or {}).get("services") or ()]
    applied = [one.get(KEY, FORWARDER) for one in services if one.get("name") == service.name]
    return KERNEL if KERNEL in applied else FORWARDER if applied else None


def notes(fleet: Fleet, proxy: str) -> list[str]:
    """Return what ``auto`` has chosen for the services of a proxy and why, and what keeps connections from moving."""
    datapaths = Datapaths(fleet)
    found = []
    for service in fleet.services_of_proxy(proxy):
        choice = datapaths.choice(service)
        if service.options.get(KEY) == AUTO:
            found.append(f"service {service.name}: datapath {choice.datapath}: {choice.reason}")
        if choice.datapath == KERNEL:
            found += _unequal_addresses(fleet, proxy, service)
    return found


def _unequal_addresses(fleet: Fleet, proxy: str, service: ServiceRef) -> Iterator[str]:
    """Yield where the other proxies of a service listen, if that is not where this one does."""
    here = _endpoints(service)
    for other in fleet.proxies_of_service(service):
        same = [one for one in fleet.services_at(other) if other != proxy and one.name == service.name]
        for family, there in _endpoints(same[0]).items() if same else ():
            if here.get(family, there) != there:
                yield (
                    f"service {service.name}: clients use {here[family]} at {proxy}, but {there} at {other}, so its "
                    "connections cannot move to another proxy"
                )
