# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has, and what a document means on this very host: interfaces and MACs filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import files, runner
from .document import Document
from .errors import MissingPackage, NotReady, Refused
from .kernel import Kernel
from .model import Mark, Route
from .nft import Nft, Observed
from .plan import Foreign, State
from .sysctl import Sysctls

# How long a proxy may take to answer ARP or ND: the kernel asks three times, one second apart (neigh/mcast_solicit).
NEIGHBOUR_WAIT = 2.0


@dataclass(frozen=True)
class Host:
    """The ways to the host, each replaceable: commands, settings, the kernel and the lock."""

    runner: runner.Runner = runner.run
    sysctls: Sysctls = field(default_factory=Sysctls)
    make_kernel: Callable[[], Any] = Kernel
    lock: str = files.LOCK
    neighbour_wait: float = NEIGHBOUR_WAIT


@dataclass
class View:
    """Want and have, side by side; ``waiting`` is what is applied without for now, ``warnings`` are for a human."""

    want: State
    have: State
    foreign: Foreign = field(default_factory=Foreign)
    waiting: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read(kernel: Any, host: Host, document: Document) -> tuple[State, Foreign]:
    """The owner's set as it is on the host, and what others own. ``document`` says the owner and the settings."""
    rules, routes = kernel.rules(), kernel.routes()
    ours = document.protocol
    have = State(
        rules=tuple(found.value for found in rules if found.protocol == ours and found.value is not None),
        routes=tuple(found.value for found in routes if found.protocol == ours and found.value is not None),
        sysctls=host.sysctls.read(document.owner, document.sysctls),
    )
    observed = read_marks(host, document)
    foreign = Foreign(
        tuple((found.value, found.protocol) for found in rules if found.protocol != ours and found.value is not None),
        tuple((found.family, found.table, found.protocol, found.text) for found in routes if found.protocol != ours),
    )
    return replace(have, marks=observed.marks, sound=observed.sound), foreign


def read_marks(host: Host, document: Document) -> Observed:
    try:
        return Nft(host.runner).read(document.owner)
    except MissingPackage:
        if document.marks:
            raise
        return Observed()  # without nft there is no table, and none is wanted


def view(host: Host, document: Document) -> View:
    """Read the host and resolve the document on it. NotReady, Refused, MissingPackage as they come."""
    with host.make_kernel() as kernel:
        have, foreign = read(kernel, host, document)
        problems: list[str] = []
        routes = tuple(_route(kernel, route, problems) for route in document.routes)
        if problems:
            raise NotReady(list(dict.fromkeys(problems)))
        found = View(State(document.rules, routes, (), document.sysctls), have, foreign)
        marks = tuple(_mark(kernel, host, mark, found) for mark in document.marks)
    _refuse_shared_macs(marks)
    found.want = replace(found.want, marks=marks)
    return found


def view_without_tools(host: Host, document: Document, missing: MissingPackage) -> View:
    """For check mode on a fresh host: nothing of ours can be there yet, except for settings, which need no tool."""
    settings = host.sysctls.read(document.owner, document.sysctls)
    want = State(document.rules, document.routes, document.marks, document.sysctls)
    return View(want, State(sysctls=settings), warnings=[f"{missing}; compared with an empty owned set"])


def _route(kernel: Any, route: Route, problems: list[str]) -> Route:
    """The route with its interface; what it still needs goes to ``problems``."""
    if route.retiring or route.type != "unicast":
        return route
    if route.dev and route.dev not in kernel.links():
        problems.append(f"waiting for link {route.dev} to be up")
    elif route.src and route.src not in kernel.addresses():
        problems.append(f"waiting for address {route.src} to be on this host")
    elif route.via:
        dev = kernel.on_link(route.via, route.dev)
        if dev:
            return replace(route, dev=dev)
        own = route.via in kernel.addresses()
        where = f" on {route.dev}" if route.dev else ""
        problems.append(
            f"{route.via} is an address of this host itself and cannot be its next hop"
            if own
            else f"waiting for {route.via} to be on-link{where}"
        )
    return route


def _mark(kernel: Any, host: Host, mark: Mark, found: View) -> Mark:
    """The mark with its MAC: declared, or from the neighbour table, or as the live table has it."""
    if mark.retiring:
        return mark
    if mark.macs:
        for via in mark.via:
            _compare(mark, via, kernel.neighbour(via, 0), found)
        return mark
    answers = ((via, kernel.neighbour(via, host.neighbour_wait)) for via in mark.via)
    via, mac = next(((via, mac) for via, mac in answers if mac), ("", None))
    if mac:
        resolved = replace(mark, macs=(mac,))
        for other in mark.via:
            if other != via:
                _compare(resolved, other, kernel.neighbour(other, 0), found)
        return resolved
    live = next((known for known in found.have.marks if known.key == mark.key and known.via == mark.via), None)
    if live and live.macs:
        return replace(mark, macs=live.macs)
    found.waiting.append(
        f"waiting for {' or '.join(mark.via)} to answer: the MAC of proxy {mark.name} is not known yet"
    )
    return mark


def _compare(mark: Mark, via: str, mac: str | None, found: View) -> None:
    if mac and mac not in mark.macs:
        found.warnings.append(f"proxy {mark.name} is expected at {mark.macs[0]}, but {via} is at {mac}")


def _refuse_shared_macs(marks: tuple[Mark, ...]) -> None:
    owner: dict[str, str] = {}
    errors = [
        f"proxies {owner[mac]} and {mark.name} both answer from {mac}: one interface cannot be two proxies"
        for mark in marks
        for mac in mark.macs
        if owner.setdefault(mac, mark.name) != mark.name
    ]
    if errors:
        raise Refused(errors)
