# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet of one inventory: its services, groups and hosts, and which proxy serves which backend. Pure.

The documents of both ends are derived from this alone, so they agree. At which addresses two hosts reach each other:
_reachability. How a backend sends replies back: the files _return_path*.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.endpoints import join_endpoint
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _marks_and_tables, _return_path_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, raise_all
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address, fact_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host, host_from_variables
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._known_addresses import known_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE, Dedicated
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import MARK, STRATEGY_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import (
    VARIABLE,
    BackendRef,
    Port,
    ServiceRef,
    parse_services,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import VERSIONS


class Fleet:
    """Services, groups and hosts of one run, as seen from the host that is being configured.

    :param services: ``l4proxy_services`` as the user wrote it, or None.
    :param view: ``host`` (the name it is seen from), ``proxies``, ``backends`` and ``inventory`` (names), ``known``
        (documents of an earlier run on that host: ``return_path``, ``local_delivery``, ``kernel_datapath``,
        ``forwarder``, ``virtual_ip``), ``settings`` (lines ``/proc/sys/NAME:VALUE`` of that host).
    :param hostvars: variables of every host, by name; ``__l4proxy_fleet`` is the view from that host, if it is in the
        run, else ``__l4proxy_known`` has documents of an earlier run there. A host in ``removed`` of the view counts as
        if the inventory did not have it, whatever the services say.
    :raises DerivationError: faults of ``l4proxy_services`` itself, or an empty group.
    """

    def __init__(self, services: Any, view: Mapping[str, Any], hostvars: Mapping[str, Mapping[str, Any]]) -> None:
        self.name = str(view["host"])
        self.proxies = [str(name) for name in view.get("proxies", ())]
        self.backends = [str(name) for name in view.get("backends", ())]
        inventory = [str(name) for name in view.get("inventory", ())]
        self.services = parse_services(services, inventory, self.proxies, self.backends)
        self.known: Mapping[str, Any] = view.get("known") or {}
        self.settings = _read_settings(view.get("settings") or ())
        self._hostvars = hostvars
        self.known_addresses = known_addresses(self.known)
        self._hosts: dict[str, Host] = {}
        self._own: dict[str, set[Address]] = {}
        self._check_groups()
        self._remove({str(name) for name in view.get("removed") or ()})

    def _remove(self, names: Set[str]) -> None:
        """Leave hosts out, as the inventory will when the operator has edited it."""
        self.removed = names
        self.proxies = [name for name in self.proxies if name not in names]
        self.backends = [name for name in self.backends if name not in names]
        self.services = [
            replace(
                service,
                backends=tuple(ref for ref in service.backends if ref.host not in names),
                proxies=service.proxies and tuple(name for name in service.proxies if name not in names),
            )
            for service in self.services
        ]

    def _check_groups(self) -> None:
        hosts = [(ref.path, ref.host) for service in self.services for ref in service.backends if ref.host]
        if hosts and not self.backends:
            raise DerivationError(
                [f"the group of backends has no hosts, but {VARIABLE} names some; add them to the group"]
            )
        raise_all(
            f"{path}.host: {host!r} is not in the group of backends, so no return path would be set on it; add it to "
            "the group, or use its address instead of its name"
            for path, host in hosts
            if host not in self.backends
        )

    # -- hosts -----------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Return one host of the inventory with its known addresses.

        The addresses that it has for its proxies are not among them: other hosts reach it at others.
        """
        if name not in self._hosts:
            known = self.known_addresses.get(name, ()) if name != self.name else ()
            host = host_from_variables(name, self._hostvars[name], known)
            self._hosts[name] = host.without(self._for_proxies(name))
        return self._hosts[name]

    def facts(self, name: str) -> Mapping[str, Any]:
        """Return the ``ansible_facts`` of a host; empty if they were not gathered."""
        return self._hostvars[name].get("ansible_facts") or {}

    def own_addresses(self, name: str) -> set[Address]:
        """Return every address that a host is known to have: from facts, declared, or for its proxies."""
        if name not in self._own:
            addresses = (*fact_addresses(self.facts(name)), *self.host(name).addresses)
            self._own[name] = {one.address for one in addresses} | self._for_proxies(name)
        return self._own[name]

    def _for_proxies(self, backend: str) -> set[Address]:
        """Return the addresses that a backend has for its proxies, or had until lately."""
        declared = {one.address for addresses in self.return_path_addresses(backend).values() for one in addresses}
        return declared | _return_path_addresses.applied_addresses(self.stored_return_path(backend))

    def bridges(self, name: str) -> set[str]:
        """Return the bridges of a host that do not lead to its router: those to its containers."""
        facts = self.facts(name)
        routers = {(facts.get(f"default_ipv{version}") or {}).get("interface") for version in VERSIONS}
        bridges = [fact for fact in facts.values() if isinstance(fact, Mapping) and fact.get("type") == "bridge"]
        return {str(fact.get("device")) for fact in bridges} - {str(router) for router in routers}

    # -- variables and documents of a host -------------------------------------------------------------------------

    def return_path_addresses(self, backend: str) -> Dedicated:
        """Return the addresses that a backend has for each of its proxies.

        :raises DerivationError: faults of ``return_path_addresses``.
        """
        declared = self._hostvars[backend].get(ADDRESSES_VARIABLE)
        by_proxy = _return_path_addresses.read(backend, declared, [*self.proxies, *self.removed])
        return {proxy: addresses for proxy, addresses in by_proxy.items() if proxy not in self.removed}

    def variable(self, host: str, name: str) -> Any:
        """Return a variable of a host as the inventory has it; None if it is not defined."""
        return self._hostvars[host].get(name)

    def declared_strategy(self, backend: str) -> Any:
        """Return ``return_path_strategy`` of a backend as the inventory has it."""
        return self._hostvars[backend].get(STRATEGY_VARIABLE, MARK)

    def numbers(self, host: str) -> _marks_and_tables.Numbers:
        """Return the mark, tables and priorities of a host.

        :raises DerivationError: faults of ``l4proxy_numbers``.
        """
        return _marks_and_tables.read(host, self._hostvars[host].get(_marks_and_tables.VARIABLE))

    def stored_return_path(self, name: str) -> Mapping[str, Any] | None:
        """Return the return path document that an earlier run stored on a host, if this run has read it."""
        return self._stored(name, "return_path")

    def stored_forwarder(self, name: str) -> Mapping[str, Any] | None:
        """Return the forwarder's config that an earlier run stored on a proxy, if this run has read it."""
        return self._stored(name, "forwarder")

    def _stored(self, name: str, document: str) -> Mapping[str, Any] | None:
        variables = self._hostvars[name]
        view = {"known": self.known} if name == self.name else variables.get("__l4proxy_fleet") or {}
        known: Mapping[str, Any] = view.get("known") or variables.get("__l4proxy_known") or {}
        stored: Mapping[str, Any] | None = known.get(document)
        return stored

    def services_at(self, name: str) -> list[ServiceRef]:
        """Return the services as another host of the run has evaluated them; empty if it has not."""
        view = self._hostvars[name].get("__l4proxy_fleet") or {}
        services = json.loads(view.get("services") or "null")
        groups = ([str(one) for one in view.get(key, ())] for key in ("inventory", "proxies", "backends"))
        return parse_services(services, *groups) if services else []

    # -- who serves whom -------------------------------------------------------------------------------------------

    def services_of_proxy(self, proxy: str) -> list[ServiceRef]:
        """Return the services that a proxy serves, each without that host among the backends.

        A host may be both: it is then a backend of the other proxies. What it sends to itself would never leave it.
        """
        served = [service for service in self.services if service.proxies is None or proxy in service.proxies]
        return [
            replace(service, backends=tuple(ref for ref in service.backends if ref.host != proxy)) for service in served
        ]

    def services_of_backend(self, backend: str) -> list[ServiceRef]:
        """Return the services that have a host as a backend."""
        return [service for service in self.services if any(ref.host == backend for ref in service.backends)]

    def proxies_of_service(self, service: ServiceRef) -> list[str]:
        """Return the proxies that serve a service, in inventory order."""
        return [proxy for proxy in self.proxies if service.proxies is None or proxy in service.proxies]

    def proxies_of_backend(self, backend: str) -> list[str]:
        """Return the proxies that forward to a backend, in inventory order."""
        services = self.services_of_backend(backend)
        serving = {proxy for service in services for proxy in self.proxies_of_service(service)} - {backend}
        return [proxy for proxy in self.proxies if proxy in serving]

    def backend_hosts_of_proxy(self, proxy: str) -> list[str]:
        """Return the inventory hosts that a proxy forwards to, each once."""
        refs = [ref.host for service in self.services_of_proxy(proxy) for ref in service.backends if ref.host]
        return list(dict.fromkeys(refs))

    def udp_ports(self, backend: str) -> dict[Port, set[str]]:
        """Return the UDP ports (or ranges) of a backend, each with the proxies that forward to it."""
        by_port: dict[Port, set[str]] = {}
        for service in self.services_of_backend(backend):
            for ref in service.backends:
                if service.protocol == "udp" and ref.host == backend:
                    by_port.setdefault(ref.port, set()).update({*self.proxies_of_service(service)} - {backend})
        return by_port

    def refs_by_address(self, backend: str) -> list[BackendRef]:
        """Return the backends in services that are an address of this host, without its name."""
        own = {one.address for one in self.host(backend).addresses}
        refs = [ref for service in self.services for ref in service.backends if ref.host is None]
        return [ref for ref in refs if ref.address and ip_address(ref.address) in own]

    def peers(self, names: Iterable[str]) -> list[str]:
        """Return the hosts whose addresses the configuration of ``names`` depends on, these hosts included."""
        wanted: dict[str, None] = {}
        for name in names:
            peers = [name]
            if name in self.backends:
                peers += self.proxies_of_backend(name)
            if name in self.proxies:
                # The other proxies too: each has its own slice of the source ports.
                peers += self.backend_hosts_of_proxy(name) + self.proxies
            wanted.update(dict.fromkeys(peers))
        return list(wanted)

    def why_unserved(self, name: str) -> str:
        """Return, as a fault, why a host has nothing to do in any service."""
        role, group = ("forwarder", "proxies") if name in self.proxies else ("return_path", "backends")
        if name not in [*self.proxies, *self.backends]:
            return f"{name} is neither in the group proxies nor in the group backends; add it to one of them"
        if self.services_of_backend(name) and not self.proxies_of_backend(name):
            return (
                f"{name} is in the group backends, but the only proxy that would use it is {name} itself, and a proxy "
                "cannot be its own backend; remove it from the group, or let another proxy serve one of its services"
            )
        for ref in self.refs_by_address(name) if group == "backends" else ():
            return (
                f"{ref.path}: {ref.address} is an address of {name}, a host of the group {group}, but no service names "
                f"{name}, so no return path would be set on it; write {join_endpoint(name, ref.port)} instead"
            )
        return (
            f"{name} is in the group {group}, but no service of {VARIABLE} names it, and an empty configuration would "
            f"stop what it serves; name it in a service, remove it from the group, or set {role}_state: absent for it"
        )


def _read_settings(lines: Iterable[str]) -> dict[str, str]:
    """Return sysctls by name, from lines ``/proc/sys/net/ipv4/ip_forward:1`` as grep prints them."""
    pairs = [line.rpartition(":") for line in lines]
    return {path.replace("/proc/sys/", "").replace("/", "."): value.strip() for path, _colon, value in pairs}
