# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which routes and addresses can be applied now, and by which interface a route leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..document.model import Route
from ..errors import NotReady
from .state import State


def resolve(kernel: Any, want: State) -> State:
    """The state with the interfaces of its routes. NotReady when something that it needs is missing."""
    resolved, _held_back, missing = applicable(kernel, want)
    if missing:
        raise NotReady(missing)
    return resolved


def applicable(kernel: Any, want: State) -> tuple[State, tuple[Any, ...], list[str]]:
    """What can be applied now, routes with their interfaces; the addresses and routes that cannot be; and why not.

    A rule for a missing link is only reported: the kernel accepts it.
    """
    links = kernel.links()
    own = {each.value.address for each in kernel.addresses()}
    ours = {address.address for address in want.addresses if not address.retiring}
    problems = [
        f"waiting for link {name} to exist"
        for rule in want.rules
        for name in (rule.iif, rule.oif)
        if name and name not in links and not rule.retiring
    ]
    down = [address for address in want.addresses if not links.get(address.dev) and not address.retiring]
    problems += [f"waiting for link {address.dev} to be up" for address in down]
    routes, blocked = [], []
    for route in want.routes:
        resolved = _with_interface(kernel, route, links, own | ours)
        if isinstance(resolved, str):
            problems.append(resolved)
            blocked.append(route)
        else:
            routes.append(resolved)
    addresses = tuple(address for address in want.addresses if address not in down)
    state = replace(want, routes=tuple(routes), addresses=addresses)
    return state, (*down, *blocked), list(dict.fromkeys(problems))


def _with_interface(kernel: Any, route: Route, links: dict[str, bool], own: set[str]) -> Route | str:
    """The route with its interface, or a sentence about what it still needs."""
    if route.retiring or route.type not in ("unicast", "local"):
        return route
    if route.dev and not links.get(route.dev):
        return f"waiting for link {route.dev} to be up"
    if route.src and route.src not in own:
        return f"waiting for address {route.src} to be on this host"
    if route.via in own:
        return f"{route.via} is an address of this host itself and cannot be its next hop"
    if route.via and not route.onlink:
        dev = kernel.on_link(route.via, route.dev)
        where = f" on {route.dev}" if route.dev else ""
        return replace(route, dev=dev) if dev else f"waiting for {route.via} to be on-link{where}"
    return route
