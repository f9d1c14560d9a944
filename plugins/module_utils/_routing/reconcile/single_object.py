# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One rule or one route, present or absent, beside whatever else a host has: what policy_rule and policy_route do.

An object is found by its key (a rule's priority and selectors; a route's table, destination and metric) and its owner,
and made to be as it is wanted. One with that key and another owner is never touched.
"""

from __future__ import annotations

from typing import Any

from ..document import formatting, own_traffic
from ..document.model import RESERVED_PROTOCOLS, KernelObject, Route, Rule
from ..errors import MissingPackage, NotReady, Refused
from ..netlink.kernel import COMMON_TABLES
from . import apply, engine, host_state, plan
from .engine import Outcome
from .host_state import Host
from .plan import State


def ensure(value: Rule | Route, host: Host, *, protocol: int, present: bool = True, check: bool = False) -> Outcome:
    """Make one object be there, exactly so, or not be there; ``after`` of the outcome has it, or nothing.

    Raises Refused before anything is touched, MissingPackage (with ``check`` only a warning), ApplyError after
    everything was undone.
    """
    with engine.locked(host, check):
        try:
            want, have = _look(value, host, protocol, present)
            warnings: tuple[str, ...] = ()
        except MissingPackage as missing:
            if not check:
                raise
            want, have = _state(value) if present else State(), State()
            warnings = (f"{missing}; the object was taken for absent",)
        changes = plan.plan(want, have)
        after = plan.predict(have, changes)
        if changes and not check:
            _perform(value, host, want, changes, protocol)
    diff = engine.difference(have, after)
    return Outcome(tuple(change.sentence for change in changes), (diff,) if diff else (), (), warnings, after)


def _state(*values: Rule | Route) -> State:
    return State(
        tuple(value for value in values if isinstance(value, Rule)),
        tuple(value for value in values if isinstance(value, Route)),
    )


def _look(value: Any, host: Host, protocol: int, present: bool) -> tuple[State, State]:
    """What is wanted, with what this host adds to it, and what is there."""
    with host.make_kernel() as kernel:
        found = _listed(kernel, value)
        same = [one for one in found if one.value is not None and one.value.key == value.key]
        errors = [_foreign(one) for one in same if one.protocol != protocol]
        if present and isinstance(value, Route):
            errors += _shared_table(value, found, protocol)
        if present:
            errors += _cuts_off(kernel, value)
        if errors:
            raise Refused(errors)
        have = _state(*(one.value for one in same))
        if not present:
            return State(), have
        try:
            return host_state.resolve(kernel, _state(value)), have
        except NotReady as error:
            raise Refused(
                [f"{formatting.describe(value)}: cannot be applied now, {sentence}" for sentence in error.errors]
            ) from error


def _listed(kernel: Any, value: Rule | Route) -> list[KernelObject]:
    if isinstance(value, Rule):
        return [one for one in kernel.rules() if one.family == value.family]
    return [one for one in kernel.routes(table=value.table) if one.family == value.family]


def _cuts_off(kernel: Any, value: Rule | Route) -> list[str]:
    """Why the host would deliver to itself what it sends: a local default route, and a rule that is not bounded."""
    if isinstance(value, Rule):
        rules, routes = [value], [one.value for one in kernel.routes(table=value.table)] if value.table else []
    else:
        rules, routes = [one.value for one in kernel.rules() if one.value is not None], [value]
    local = own_traffic.local_tables(route for route in routes if route is not None)
    if not local:
        return []
    own = frozenset(found.value.address for found in kernel.addresses())
    reasons = ((rule, own_traffic.unbounded(rule, local)) for rule in rules)
    errors = [f"`{formatting.rule(rule)}` {reason}" for rule, reason in reasons if reason]
    return errors + own_traffic.sentences(own_traffic.from_own(rules, local, own))


def _foreign(found: KernelObject) -> str:
    manage = "" if found.protocol in RESERVED_PROTOCOLS else f", or say protocol: {found.protocol} to manage it here"
    owner = formatting.owner_name(found.protocol)
    return f"{formatting.describe(found.value)} is there already and belongs to {owner}; remove it there{manage}"


def _shared_table(route: Route, found: list[KernelObject], protocol: int) -> list[str]:
    """Main and default are everybody's; another table is its owner's."""
    others = [one for one in found if one.protocol != protocol]
    if route.table in COMMON_TABLES or not others:
        return []
    first = others[0]
    return [
        f"table {route.table} already holds routes of another owner ({formatting.owner_name(first.protocol)}): "
        f"{first.text}; choose another table, or say protocol: {first.protocol} to be that owner"
    ]


def _perform(value: Any, host: Host, want: State, changes: tuple[plan.Change, ...], protocol: int) -> None:
    def verify() -> str | None:
        same = [one.value for one in _listed(kernel, value) if one.value is not None and one.value.key == value.key]
        return engine.still_needed(plan.plan(want, _state(*same)))

    with host.make_kernel() as kernel:
        apply.perform(apply.steps(changes, kernel, host, "", protocol), verify)
