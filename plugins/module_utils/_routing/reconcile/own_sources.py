# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that would deliver to this host what it sends itself, as far as its own addresses decide.

``document.own_traffic`` has the reasons, and what can be decided without the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..document import formatting, own_traffic
from ..document.documents import Document
from ..document.model import MAIN, Route, Rule
from ..errors import Refused
from .run import Run
from .state import State


def leave_out(run: Run) -> Run:
    """The run with ``want`` without such rules; ``left_out`` says why. Refused where the main address is concerned."""
    own, routes = _own_addresses(run.kernel, run.want), _foreign_routes(run.kernel, run.want, run.document.protocol)
    _refuse_main_address(run.kernel, run.document, own)
    want, sentences = without_own_sources(run.want, routes, own)
    return replace(run, want=want, own_addresses=own, foreign_routes=routes, left_out=tuple(sentences))


def without_own_sources(want: State, foreign_routes: Iterable[Route], own: frozenset[str]) -> tuple[State, list[str]]:
    """The state without the rules whose source is an address of this host; and a sentence for each address."""
    local = own_traffic.local_tables((*want.routes, *foreign_routes))
    taking = own_traffic.from_own(want.rules, local, own)
    dropped = {each.rule for each in taking}
    rules = tuple(rule for rule in want.rules if rule not in dropped)
    return replace(want, rules=rules), own_traffic.sentences(taking)


def _own_addresses(kernel: Any, want: State) -> frozenset[str]:
    """The addresses that this host has, or is about to get."""
    ours = {address.address for address in want.addresses if not address.retiring}
    return frozenset(ours | {each.value.address for each in kernel.addresses()})


def _foreign_routes(kernel: Any, want: State, protocol: int) -> tuple[Route, ...]:
    """The routes of others in tables that our rules look up and our routes do not fill."""
    filled = {route.table for route in want.routes}
    looked_up = {rule.table for rule in want.rules if rule.table is not None} - filled - {MAIN}
    listed = (route for table in sorted(looked_up) for route in kernel.routes(table=table))
    return tuple(route.value for route in listed if route.protocol != protocol and route.value is not None)


def _refuse_main_address(kernel: Any, document: Document, own: frozenset[str]) -> None:
    """A return path by source captures all that the host sends from it: that address must have no other use."""
    ours = {address.address for address in document.addresses}
    hops = {(route.family, route.table): route.via for route in document.routes if route.dst == "default" and route.via}
    errors = []
    for rule in document.rules if document.owner == "return_path" else ():
        source, via = (rule.src or "").partition("/")[0], hops.get((rule.family, rule.table or 0))
        selective = rule.fwmark or rule.sport or rule.dport or rule.uid_range or rule.retiring
        if via and source in own - ours and not selective and kernel.source_towards(via) == source:
            errors.append(
                f"`{formatting.rule(rule)}` would send all traffic of this host to {via}, because {source} is its "
                "default source address; use an address that only this proxy connects to"
            )
    if errors:
        raise Refused(errors)


def hold_back_unknown(run: Run) -> Run:
    """At boot: hold back rules whose source may still become an address of this host; ``missing`` says why.

    A backend that no route leads to cannot be reached anyway; once there is one, the host's own addresses are known.
    """
    local = own_traffic.local_tables((*run.want.routes, *run.foreign_routes))
    anywhere = [rule for rule in run.want.rules if rule.iif in (None, "lo") and own_traffic.delivers(rule, local)]
    sources = {rule.src: rule.src.partition("/")[0] for rule in anywhere if rule.src and not rule.retiring}
    unknown = {prefix: address for prefix, address in sources.items() if not _has_route_to(run.kernel, address)}
    early = tuple(rule for rule in anywhere if rule.src in unknown)
    return replace(
        run,
        want=replace(run.want, rules=tuple(rule for rule in run.want.rules if rule not in early)),
        held_back=(*run.held_back, *early),
        missing=(*run.missing, *(f"waiting for a route to {address}" for address in unknown.values())),
    )


def _has_route_to(kernel: Any, address: str) -> bool:
    """Whether this host has a route to an address, and a source address that can be used on it."""
    source = kernel.source_towards(address)
    return bool(source) and (not source.startswith("fe80:") or address.startswith("fe80:"))


def unbounded(run: Run) -> list[str]:
    """Rules, ours or foreign, that would deliver to this host whatever it sends; a sentence each."""
    routes = [*run.want.routes, *(() if run.options.purge else run.have.routes)]
    ours, looked_up = own_traffic.local_tables(routes), own_traffic.local_tables([*routes, *run.foreign_routes])
    reasons: list[tuple[Rule, str, str | None]] = [
        (rule, "", own_traffic.unbounded(rule, looked_up)) for rule in run.want.rules
    ]
    reasons += [
        (rule, f" ({formatting.owner_name(protocol)}, already there)", own_traffic.unbounded(rule, ours))
        for rule, protocol in run.foreign.rules
    ]
    return [f"`{formatting.rule(rule)}`{whose} {reason}" for rule, whose, reason in reasons if reason]
