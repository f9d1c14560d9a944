# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which return path strategy a backend has, and how ``auto`` chooses one. Pure.

``auto`` is sticky: what an earlier run has applied stays, whatever the facts are now. A host's routes or addresses may
change for a day, and a change of strategy moves every connection of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.families import SPELLED, family_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _tunnels
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    FWMARK_ACCEPT,
    MARK,
    STRATEGIES,
    STRATEGY_VARIABLE,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import VERSIONS

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A strategy, and as half a sentence the reason for it."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class Situation:
    """What the choice of ``auto`` depends on.

    :ivar applied: the strategy that an earlier run has applied, or None.
    :ivar dedicated: whether ``return_path_addresses`` is set.
    :ivar without_default: the families ("IPv4", "IPv6") that are served and have no default route.
    :ivar udp: whether the backend serves UDP.
    :ivar tunnels: interfaces without MAC addresses that proxies are behind.
    :ivar indistinct: sentences on proxies that such an interface cannot tell apart.
    """

    applied: str | None = None
    dedicated: bool = False
    without_default: tuple[str, ...] = ()
    udp: bool = False
    tunnels: tuple[str, ...] = ()
    indistinct: tuple[str, ...] = ()


def strategy_of(fleet: Fleet, backend: str) -> Choice:
    """Return the return path strategy of a backend, and the reason.

    :raises DerivationError: it is unknown, or ``auto`` finds none that works.
    """
    wanted = fleet.declared_strategy(backend)
    return choose(backend, wanted, _situation(fleet, backend) if wanted == AUTO else Situation())


def tunnels_of(fleet: Fleet, backend: str) -> dict[str, list[str]]:
    """Return the proxies behind each interface of a backend that has no MAC addresses."""
    proxies = [fleet.host(proxy) for proxy in fleet.proxies_of_backend(backend) if proxy != backend]
    return _tunnels.proxies_behind(fleet.host(backend), fleet.facts(backend), proxies)


def _situation(fleet: Fleet, backend: str) -> Situation:
    applied = applied_strategy(fleet.stored_return_path(backend))
    dedicated = {one.address for addresses in fleet.return_path_addresses(backend).values() for one in addresses}
    known = {one.address for one in fleet.known_addresses.get(backend, ())}
    if applied is None and known:
        # The backend did not answer, but an earlier run has stored on this proxy where to reach it.
        applied = ADDRESS if known & dedicated else MARK
    facts = fleet.facts(backend)
    services = fleet.services_of_backend(backend)
    served = {family_of(address) for service in services for address, _port in service.listen}
    own = {one.address.version for one in fleet.host(backend).addresses}
    missing = [
        FAMILY[version]
        for version in VERSIONS
        if FAMILY[version] in served and version in own and not facts.get(f"default_ipv{version}")
    ]
    tunnels = tunnels_of(fleet, backend)
    return Situation(
        applied=applied,
        tunnels=tuple(tunnels),
        indistinct=tuple(_tunnels.indistinct(tunnels)),
        dedicated=bool(dedicated),
        without_default=tuple(SPELLED[family] for family in missing) if facts else (),
        udp=any(service.protocol == "udp" for service in services),
    )


def applied_strategy(document: Mapping[str, Any] | None) -> str | None:
    """Return the strategy that a return path document applies, or None; retiring objects do not count."""

    def active(section: str) -> list[Mapping[str, Any]]:
        return [one for one in (document or {}).get(section) or () if not one.get("retiring")]

    if any(rule.get("src") for rule in active("rules")):
        return ADDRESS
    for mark in active("marks"):
        return MARK if mark.get("conntrack", True) else FWMARK_ACCEPT
    return None


def choose(backend: str, wanted: Any, situation: Situation) -> Choice:
    """Return the strategy of a backend.

    :param wanted: the value of ``return_path_strategy``.
    :raises DerivationError: it is not a strategy, or none can work.
    """
    where = f"{STRATEGY_VARIABLE} of {backend}"
    if wanted in STRATEGIES:
        return Choice(wanted, f"{STRATEGY_VARIABLE} sets it")
    if wanted != AUTO:
        known = ", ".join((*STRATEGIES, AUTO))
        raise DerivationError([f"{where}: {wanted!r} is not a strategy of this version; use {known}"])
    if situation.applied:
        return Choice(situation.applied, f"an earlier run has applied it; set {STRATEGY_VARIABLE} to change it")
    if situation.dedicated:
        return Choice(ADDRESS, f"{ADDRESSES_VARIABLE} gives each proxy an address of its own")
    if situation.indistinct:
        raise DerivationError(
            f"{where}: auto finds no strategy that works: {sentence}; set {ADDRESSES_VARIABLE} of {backend}"
            for sentence in situation.indistinct
        )
    if not situation.without_default:
        links = f"; only one proxy is behind {' and '.join(situation.tunnels)}" if situation.tunnels else ""
        return Choice(MARK, f"the host has one address for all proxies, and a default route{links}")
    families = " and ".join(situation.without_default)
    if situation.udp:
        raise DerivationError(
            [
                f"{where}: auto finds no strategy that works: without an {families} default route the UDP replies of "
                f"{MARK} are lost, and {FWMARK_ACCEPT} does not support UDP; set {ADDRESSES_VARIABLE} of {backend}, or "
                "give it a default route"
            ]
        )
    lost = f"{MARK} would lose the replies that no socket sends (RST, ICMP errors)"
    return Choice(FWMARK_ACCEPT, f"the host has no {families} default route, so {lost}")
