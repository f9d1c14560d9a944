# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state document of the return path: what sends a backend's replies to the proxy they came through. Pure.

Which strategy a backend has: _return_path_auto. The rules, routes and marks of each: _return_path_strategies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import (
    _conntrack_timeouts,
    _return_path_strategies,
    _tunnels,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, collect
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import PROTOCOL_RETURN_PATH
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import proxy_id, refuse_duplicate_ids
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import subnets_of_host
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_auto import strategy_of, tunnels_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_kernel import LastSenders
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    FWMARK_ACCEPT,
    MARK,
    STRATEGY_VARIABLE,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._state_document import conf_sysctls, state_document

Subnets = Mapping[int, SharedSubnet]


def return_path(fleet: Fleet, backend: str, strategy: str | None = None, mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the state document of the return path.

    :param strategy: the role's option; None: the inventory's value.
    :param mark_engine: what makes the marks.
    :raises DerivationError: with every fault.
    """
    proxies = fleet.proxies_of_backend(backend)
    if not proxies:
        raise DerivationError([fleet.why_unserved(backend)])
    errors: list[str] = []
    collect(errors, _refuse_other_strategy, fleet, backend, strategy)
    collect(errors, fleet.numbers, backend)
    choice = collect(errors, strategy_of, fleet, backend)
    if choice is None:
        raise DerivationError(errors)
    subnets = {proxy: collect(errors, subnets_of_host, fleet, proxy, backend) for proxy in proxies}
    datapaths = Datapaths(fleet)
    errors += [fault for service in fleet.services_of_backend(backend) for fault in datapaths.faults(service)]
    if not errors:
        errors += _faults(fleet, backend, choice.strategy, subnets)
    if errors:
        raise DerivationError(errors)
    ids = {proxy: proxy_id(fleet, proxy, subnets[proxy].values()) for proxy in proxies}
    refuse_duplicate_ids(ids)
    last_senders = LastSenders(fleet, backend)
    parts = [collect(errors, _objects, fleet, backend, choice.strategy, proxy, ids[proxy], subnets, last_senders)
             for proxy in proxies]  # fmt: skip
    if errors:
        raise DerivationError(errors)
    sections = _return_path_strategies.merged(parts)
    protocols = {service.protocol for service in fleet.services_of_backend(backend)}
    sections["sysctls"] = _sysctls(choice.strategy, subnets.values(), protocols)
    if choice.strategy == MARK:
        sections["sysctls"] += _conntrack_timeouts.sysctls(fleet, backend)
    return state_document("return_path", PROTOCOL_RETURN_PATH, sections, mark_engine)


def _refuse_other_strategy(fleet: Fleet, backend: str, strategy: str | None) -> None:
    """Refuse a strategy that only this role has: the proxies have to know it too, and they read the inventory."""
    declared = fleet.declared_strategy(backend)
    if strategy not in (None, declared):
        raise DerivationError(
            [
                f"{STRATEGY_VARIABLE} of {backend} is {strategy} in this play, but {declared} in the inventory, which "
                f"the proxies read; set it in the host_vars or group_vars of {backend}"
            ]
        )


def _faults(fleet: Fleet, backend: str, strategy: str, subnets: Mapping[str, Subnets]) -> list[str]:
    """Return why a strategy cannot work on a backend; empty if it can."""
    where = f"{STRATEGY_VARIABLE} of {backend}"
    udp_services = [service.name for service in fleet.services_of_backend(backend) if service.protocol == "udp"]
    if strategy == FWMARK_ACCEPT and udp_services:
        return [
            f"{where}: {strategy} supports TCP only, but service {name} is UDP; use {MARK} or {ADDRESS}"
            for name in udp_services
        ]
    if strategy != ADDRESS:
        return [
            f"{where}: {strategy} cannot work: {sentence}; use {ADDRESS}"
            for sentence in _tunnels.indistinct(tunnels_of(fleet, backend))
        ]
    main = fleet.host(backend).preferred
    own = [(proxy, subnet.backend) for proxy, by_version in subnets.items() for subnet in by_version.values()]
    return [
        f"{where}: {address.address} cannot be the address for {proxy}, because {backend} uses it for all other "
        f"traffic, which would go to {proxy} too; put an unused address into {ADDRESSES_VARIABLE}"
        for proxy, address in own
        if str(address.address) in main
    ] + [
        f"{where}: {address.address}, the address for {proxy}, is in no subnet of {backend}'s interfaces; put an "
        f"address of one of these subnets into {ADDRESSES_VARIABLE}"
        for proxy, address in own
        if address.device is None
    ]


def _objects(
    fleet: Fleet,
    backend: str,
    strategy: str,
    proxy: str,
    number: int,
    every: Mapping[str, Subnets],
    last_senders: LastSenders,
) -> _return_path_strategies.Sections:
    """Return the objects of the return path to one proxy, whose id is ``number``."""
    numbers, subnets = fleet.numbers(backend), every[proxy]
    if strategy == ADDRESS:
        exclusive_ports = [port for port, proxies in fleet.udp_ports(backend).items() if proxies == {proxy}]
        return _return_path_strategies.by_address(numbers, number, subnets, exclusive_ports)
    mac = fleet.host(proxy).mac
    ports = last_senders.ports(proxy)
    sections = _return_path_strategies.by_mark(numbers, proxy, number, subnets, mac, strategy == MARK, ports)
    return _return_path_strategies.merged([sections, last_senders.objects(proxy, number, every)])


def _sysctls(strategy: str, subnets: Iterable[Subnets], protocols: Set[str]) -> list[dict[str, str]]:
    devices: dict[int, set[str | None]] = {}
    for by_version in subnets:
        for version, subnet in by_version.items():
            devices.setdefault(version, set()).add(subnet.backend.device)
    sysctls: list[dict[str, str]] = []
    for version, names in sorted(devices.items()):
        # A redirect that a backend has accepted takes precedence over every policy route for 300 seconds.
        sysctls += conf_sysctls(version, names, "accept_redirects")
    if strategy == FWMARK_ACCEPT or (strategy == MARK and "tcp" in protocols):
        # An accepted connection keeps the mark of its SYN, over IPv6 too (ip-sysctl). With strategy mark this still
        # identifies the proxy when conntrack has forgotten the connection.
        sysctls.append({"name": "net.ipv4.tcp_fwmark_accept", "value": "1"})
    if strategy == FWMARK_ACCEPT:
        # Replies that no socket sends (RST, ICMP errors) get the mark of the packet they answer.
        sysctls += [{"name": f"net.ipv{version}.fwmark_reflect", "value": "1"} for version in sorted(devices)]
    return sysctls


def describe_strategy(fleet: Fleet, backend: str) -> dict[str, Any]:
    """Return the strategy of a backend, why it is that one, and what servers on the host have to do for it.

    :returns: ``strategy``, ``reason``, ``notes`` (sentences).
    """
    choice = strategy_of(fleet, backend)
    notes = _skips_itself(fleet, backend)
    if choice.strategy != ADDRESS:
        notes += LastSenders(fleet, backend).notes()
    else:
        notes += [
            f"UDP port {port} of {backend} is used by {', '.join(sorted(proxies))}: a server that listens on all "
            "addresses there has to reply from the address that received the request; strategy mark does not need that"
            for port, proxies in sorted(fleet.udp_ports(backend).items(), key=str)
            if len(proxies) > 1
        ]
    return {"strategy": choice.strategy, "reason": choice.reason, "notes": notes}


def _skips_itself(fleet: Fleet, backend: str) -> list[str]:
    """Return a note for each service in which a host is both proxy and backend."""
    served = fleet.services_of_proxy(backend) if backend in fleet.proxies else []
    shared = {service.index: service.name for service in fleet.services_of_backend(backend)}
    return [
        f"{backend} is a proxy of service {service.name} and one of its backends: as a proxy it skips itself; as a "
        f"backend it is used by {', '.join(fleet.proxies_of_backend(backend))}"
        for service in served
        if service.index in shared
    ]
