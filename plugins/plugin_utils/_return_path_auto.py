# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a backend tells which proxy a connection came through: the strategies, and which one ``auto`` takes.

Pure. ``auto`` is sticky: what an earlier run has applied stays, whatever the facts are by now, because a host's routes
or addresses may change for a day, and a change of strategy moves every connection of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    FWMARK_ACCEPT,
    MARK,
    STRATEGIES,
    STRATEGY_VARIABLE,
)

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A strategy, and in a sentence's second half why it is this one."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class Situation:
    """What the choice of ``auto`` depends on.

    :ivar applied: the strategy of an earlier run, None where there was none.
    :ivar dedicated: whether ``return_path_addresses`` is given.
    :ivar without_default: the families ("IPv4", "IPv6") that are served and have no default route.
    :ivar udp: whether the backend serves UDP.
    :ivar tunnels: interfaces without MAC addresses that proxies are behind.
    :ivar indistinct: in words, which proxies such an interface cannot tell apart.
    """

    applied: str | None = None
    dedicated: bool = False
    without_default: tuple[str, ...] = ()
    udp: bool = False
    tunnels: tuple[str, ...] = ()
    indistinct: tuple[str, ...] = ()


def applied(document: Mapping[str, Any] | None) -> str | None:
    """Tell the strategy of a return path document; None where there is none in it. What is retiring does not count."""

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
    :raises DerivationError: it is none, or none can work.
    """
    where = f"{STRATEGY_VARIABLE} of {backend}"
    if wanted in STRATEGIES:
        return Choice(wanted, f"{STRATEGY_VARIABLE} says so")
    if wanted != AUTO:
        known = ", ".join((*STRATEGIES, AUTO))
        raise DerivationError(
            [f"{STRATEGY_VARIABLE} of {backend}: {wanted!r} is not a strategy of this version; use {known}"]
        )
    if situation.applied:
        return Choice(situation.applied, f"an earlier run has applied it; only a set {STRATEGY_VARIABLE} changes it")
    if situation.dedicated:
        return Choice(ADDRESS, f"{ADDRESSES_VARIABLE} gives each proxy an address of its own")
    if situation.indistinct:
        raise DerivationError(
            [
                f"{where}: auto finds none that works: {one}; set {ADDRESSES_VARIABLE} of {backend}"
                for one in situation.indistinct
            ]
        )
    if not situation.without_default:
        links = f"; one proxy alone is behind {' and '.join(situation.tunnels)}" if situation.tunnels else ""
        return Choice(
            MARK, f"the host has one address for all, and a default route that marked replies are taken off{links}"
        )
    families = " and ".join(situation.without_default)
    if situation.udp:
        raise DerivationError(
            [
                f"{where}: auto finds none that works: without an {families} default route the UDP "
                f"replies of {MARK} are lost, and {FWMARK_ACCEPT} does not do UDP; set {ADDRESSES_VARIABLE} of "
                f"{backend}, or give it a default route"
            ]
        )
    lost = f"without which {MARK} loses the replies that no socket sends (RST, ICMP errors)"
    return Choice(FWMARK_ACCEPT, f"it has no {families} default route, {lost}")
