# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The return path: what sends a backend's replies to the proxy they came through. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import (
    _conntrack_timeouts,
    _return_path_strategies,
    _tunnels,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._derivation import (
    check_ids,
    collect,
    conf_sysctls,
    state_document,
    unserved,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError, Meeting
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import PROTOCOL_RETURN_PATH
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    FWMARK_ACCEPT,
    MARK,
    STRATEGY_VARIABLE,
)

Meetings = Mapping[str, Mapping[int, Meeting]]


def return_path(fleet: Fleet, backend: str, strategy: str | None = None, mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the state document of the return path.

    :param strategy: what the role was given; the inventory's value where that is None.
    :param mark_engine: what makes the marks.
    """
    proxies = fleet.proxies_of_backend(backend)
    if not proxies:
        raise DerivationError([unserved(fleet, backend)])
    errors: list[str] = []
    collect(errors, _same_as_inventory, fleet, backend, strategy)
    collect(errors, fleet.numbers, backend)
    choice = collect(errors, fleet.strategy, backend)
    if choice is None:
        raise DerivationError(errors)
    met = {proxy: collect(errors, fleet.meetings, proxy, backend) for proxy in proxies}
    if not errors:
        errors += _refusals(fleet, backend, choice.strategy, met)
    if errors:
        raise DerivationError(errors)
    ids = {proxy: fleet.proxy_id(proxy, meetings.values()) for proxy, meetings in met.items()}
    check_ids(ids)
    ways = [
        collect(errors, _way, fleet, backend, choice.strategy, (proxy, ids[proxy]), met[proxy]) for proxy in proxies
    ]
    if errors:
        raise DerivationError(errors)
    sections = _return_path_strategies.together(ways)
    protocols = {service.protocol for service in fleet.services_of_backend(backend)}
    sections["sysctls"] = _sysctls(choice.strategy, met.values(), protocols)
    if choice.strategy == MARK:
        sections["sysctls"] += _conntrack_timeouts.sysctls(fleet, backend)
    return state_document("return_path", PROTOCOL_RETURN_PATH, sections, mark_engine)


def _same_as_inventory(fleet: Fleet, backend: str, strategy: str | None) -> None:
    """Refuse a strategy that only this role was told: the proxies, who have to know it too, read the inventory."""
    declared = fleet.declared_strategy(backend)
    if strategy not in (None, declared):
        raise DerivationError(
            [
                f"{STRATEGY_VARIABLE} of {backend} is {strategy} in this play, but {declared} in the inventory, where "
                f"the proxies look; set it in the host_vars or group_vars of {backend}"
            ]
        )


def _refusals(fleet: Fleet, backend: str, strategy: str, met: Meetings) -> list[str]:
    where = f"{STRATEGY_VARIABLE} of {backend}"
    names = [service.name for service in fleet.services_of_backend(backend) if service.protocol == "udp"]
    if strategy == FWMARK_ACCEPT and names:
        return [
            f"{where}: {strategy} is for TCP alone, and service {name} is UDP; use {MARK} or {ADDRESS}"
            for name in names
        ]
    if strategy != ADDRESS:
        return [
            f"{where}: {strategy} cannot work: {one}; use {ADDRESS}"
            for one in _tunnels.indistinct(fleet.tunnels(backend))
        ]
    main = fleet.host(backend).preferred
    found = [(proxy, one.backend) for proxy, meetings in met.items() for one in meetings.values()]
    return [
        f"{where}: {own.address} cannot be the address for {proxy}, because it is the one {backend} uses for all else, "
        f"which would go to {proxy} as well; put an unused address into {ADDRESSES_VARIABLE}"
        for proxy, own in found
        if str(own.address) in main
    ] + [
        f"{where}: {own.address}, the address for {proxy}, is in no subnet of {backend}'s interfaces; put one into "
        f"{ADDRESSES_VARIABLE} that is"
        for proxy, own in found
        if own.device is None
    ]


def _way(
    fleet: Fleet, backend: str, strategy: str, proxy: tuple[str, int], meetings: Mapping[int, Meeting]
) -> _return_path_strategies.Sections:
    """Return the way back through one proxy, given by name and id."""
    (name, number), numbers = proxy, fleet.numbers(backend)
    if strategy == ADDRESS:
        own = [port for port, proxies in fleet.udp_ports(backend).items() if proxies == {name}]
        return _return_path_strategies.by_address(numbers, number, meetings, own)
    mac = fleet.host(name).mac
    return _return_path_strategies.by_mark(numbers, name, number, meetings, mac, conntrack=strategy == MARK)


def _sysctls(strategy: str, met: Iterable[Mapping[int, Meeting]], protocols: Set[str]) -> list[dict[str, str]]:
    devices: dict[int, set[str | None]] = {}
    for meetings in met:
        for version, meeting in meetings.items():
            devices.setdefault(version, set()).add(meeting.backend.device)
    found: list[dict[str, str]] = []
    for version, names in sorted(devices.items()):
        # A redirect that a backend has accepted outranks every policy route for 300 seconds.
        found += conf_sysctls(version, names, "accept_redirects")
    if strategy == FWMARK_ACCEPT or (strategy == MARK and "tcp" in protocols):
        # An accepted connection takes the mark of its SYN, IPv6 too (ip-sysctl). With strategy mark it is what still
        # knows the proxy when conntrack has forgotten the connection.
        found.append({"name": "net.ipv4.tcp_fwmark_accept", "value": "1"})
    if strategy == FWMARK_ACCEPT:
        # What no socket sends (RST, ICMP errors) takes the mark of the packet it answers.
        found += [{"name": f"net.ipv{version}.fwmark_reflect", "value": "1"} for version in sorted(devices)]
    return found


def about(fleet: Fleet, backend: str) -> dict[str, Any]:
    """Say which strategy a backend has and why, and what one has to know of it.

    :returns: ``strategy``, ``reason``, ``notes`` (sentences).
    """
    choice = fleet.strategy(backend)
    notes = _left_out(fleet, backend)
    if choice.strategy == ADDRESS:
        notes += [
            f"UDP port {port} of {backend} is reached through {', '.join(sorted(proxies))}: a server that listens on "
            "all addresses there has to answer from the address it was asked at; strategy mark does not need that"
            for port, proxies in sorted(fleet.udp_ports(backend).items(), key=str)
            if len(proxies) > 1
        ]
    return {"strategy": choice.strategy, "reason": choice.reason, "notes": notes}


def _left_out(fleet: Fleet, backend: str) -> list[str]:
    """Say where a host that is a proxy as well does not use itself."""
    served = fleet.services_of_proxy(backend) if backend in fleet.proxies else []
    shared = {service.index: service.name for service in fleet.services_of_backend(backend)}
    return [
        f"{backend} is a proxy of service {service.name} and one of its backends: it forwards to the others and leaves "
        f"itself out; used by {', '.join(fleet.proxies_of_backend(backend))}"
        for service in served
        if service.index in shared
    ]
