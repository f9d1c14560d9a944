# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One rule or one route, present or absent, next to whatever else a host has: the work of policy_rule and policy_route.

An object is identified by its key (a rule's priority and selectors; a route's table, destination and metric) and its
owner. One with the same key and another owner is never touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..document import formatting, own_traffic
from ..document.documents import Document
from ..document.model import RESERVED_PROTOCOLS, KernelObject, Route, Rule
from ..errors import NotReady, Refused
from ..netlink.kernel import COMMON_TABLES
from . import apply, plan, read, resolve_routes
from .host import Host, locked
from .outcome import Outcome, outcome_of
from .run import Options, Run
from .state import State


def ensure(value: Rule | Route, host: Host, *, protocol: int, present: bool = True, check: bool = False) -> Outcome:
    """Make one object present exactly as given, or absent; ``after`` of the outcome has it, or nothing.

    Raises Refused before anything is changed, MissingPackage (in check mode only a warning), ApplyError after
    everything was undone.
    """
    run = Run(Document("", protocol), host, Options(check=check), lenient=check)
    with locked(host, unless=check), read.open_kernel(run, "the object is assumed to be absent") as run:
        run = replace(run, want=_state(value) if present else State())
        if run.kernel is not None:
            run = _read(run, value, present)
            run = _resolve(run, value) if present else run
        run = plan.plan(run)
        apply.apply(run, lambda run: _state(*_same(_listed(run.kernel, value), value)))
    return outcome_of(run)


def _state(*values: Rule | Route) -> State:
    return State(
        tuple(value for value in values if isinstance(value, Rule)),
        tuple(value for value in values if isinstance(value, Route)),
    )


def _read(run: Run, value: Rule | Route, present: bool) -> Run:
    """The run with the object as it is now. Refused if it is foreign, or if the desired one would do harm."""
    listed, protocol = _listed(run.kernel, value), run.document.protocol
    errors = [_foreign(each) for each in listed if _is_same(each, value) and each.protocol != protocol]
    if present:
        errors += _shared_table(value, listed, protocol) if isinstance(value, Route) else []
        errors += _cuts_off(run.kernel, value)
    if errors:
        raise Refused(errors)
    return replace(run, have=_state(*_same(listed, value)))


def _resolve(run: Run, value: Rule | Route) -> Run:
    """The run with the interface of a desired route. Refused when something that the object needs is missing."""
    try:
        return replace(run, want=resolve_routes.resolve(run.kernel, run.want))
    except NotReady as error:
        name = formatting.describe(value)
        raise Refused([f"{name}: cannot be applied now, {sentence}" for sentence in error.errors]) from error


def _listed(kernel: Any, value: Rule | Route) -> list[KernelObject]:
    listed = kernel.rules() if isinstance(value, Rule) else kernel.routes(table=value.table)
    return [each for each in listed if each.family == value.family]


def _is_same(listed: KernelObject, value: Rule | Route) -> bool:
    return listed.value is not None and listed.value.key == value.key


def _same(listed: list[KernelObject], value: Rule | Route) -> list[Rule | Route]:
    return [each.value for each in listed if _is_same(each, value)]


def _cuts_off(kernel: Any, value: Rule | Route) -> list[str]:
    """Why the host would deliver to itself what it sends: a local default route, and a rule that is not bounded."""
    if isinstance(value, Rule):
        rules, routes = [value], [each.value for each in kernel.routes(table=value.table)] if value.table else []
    else:
        rules, routes = [each.value for each in kernel.rules() if each.value is not None], [value]
    local = own_traffic.local_tables(route for route in routes if route is not None)
    if not local:
        return []
    own = frozenset(each.value.address for each in kernel.addresses())
    reasons = ((rule, own_traffic.unbounded(rule, local)) for rule in rules)
    errors = [f"`{formatting.rule(rule)}` {reason}" for rule, reason in reasons if reason]
    return errors + own_traffic.sentences(own_traffic.from_own(rules, local, own))


def _foreign(listed: KernelObject) -> str:
    manage = "" if listed.protocol in RESERVED_PROTOCOLS else f", or set protocol: {listed.protocol} to manage it here"
    owner = formatting.owner_name(listed.protocol)
    return f"{formatting.describe(listed.value)} exists already and belongs to {owner}; remove it there{manage}"


def _shared_table(route: Route, listed: list[KernelObject], protocol: int) -> list[str]:
    """Anyone may use the tables main and default; another table belongs to its owner alone."""
    others = [each for each in listed if each.protocol != protocol]
    if route.table in COMMON_TABLES or not others:
        return []
    first = others[0]
    return [
        f"table {route.table} already holds routes of another owner ({formatting.owner_name(first.protocol)}): "
        f"{first.text}; choose another table, or set protocol: {first.protocol} to act as that owner"
    ]
