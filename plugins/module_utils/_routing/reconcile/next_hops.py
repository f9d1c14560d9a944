# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which next hop a route with fallbacks has: its own, or a fallback while its own does not answer. Pure.

Only the keeper knows who answers. Every other run accepts any of the next hops, so it never moves a route back to a
proxy that is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Optional

from ..document.model import Route

# Whether a next hop answers; None if that is not known.
Answers = Callable[[str], Optional[bool]]


def is_as_wanted(live: Route | None, wanted: Route) -> bool:
    """Whether a live route is the wanted one, or differs only in that it uses a fallback."""
    if live is not None and live.via in wanted.fallback:
        live = replace(live, via=wanted.via, dev=wanted.dev)
    return live == replace(wanted, fallback=())


def choose(routes: Iterable[Route], live: Iterable[Route], answers: Answers) -> tuple[Route, ...]:
    """The routes, each through the next hop that it should have now."""
    hops = {route.key: route.via for route in live}
    return tuple(_chosen(route, hops.get(route.key), answers) if route.fallback else route for route in routes)


def _chosen(route: Route, live: str | None, answers: Answers) -> Route:
    """The route through its own next hop if that answers; if it is dead, through a fallback that answers.

    It stays where it is while nothing is known, and when nobody answers: the fault is then probably this host's.
    """
    own = str(route.via)
    hop = live if live and live in route.fallback else own
    if answers(own):
        hop = own
    elif answers(own) is False and (hop == own or answers(hop) is False):
        hop = next((each for each in route.fallback if answers(each)), hop)
    return replace(route, via=hop, fallback=())
