# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plan the changes that turn the actual state into the desired one, in an order that interrupts nothing in use.

Adding comes before removing. What is added, in this order: sysctls; addresses (a route may name one as its source);
guard rules, so that replies are blocked from the first moment; routes; the rules that look them up; the marks that
make packets match those rules, and services, whose table keeps strangers out; conntrack's sysctls, which exist once
these have loaded it; and forwarding, which ends before services do. Removing is the same in reverse. A route with
another next hop is replaced in one step. All marks of an engine change at once, and so do all services.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..document.kernel_service import KernelService
from ..document.model import OF_CONNTRACK, Route, Setting, Sysctl
from ..document.service_schema import SWITCHES
from . import next_hops, store
from .change import Change
from .run import Run
from .state import State

FORWARDING = 2


def plan(run: Run) -> Run:
    """The run with its ``changes``, the state ``after`` them, and the change of the document's file."""
    changes = find_changes(run.want, run.have, run.options.purge)
    return replace(run, changes=changes, after=predict(run.have, changes), file_change=store.file_change(run))


def find_changes(want: State, have: State, purge: bool = True) -> tuple[Change, ...]:
    """The changes that turn ``have`` into ``want``, in order. Pure.

    Without ``purge`` only what is replaced is removed. Retiring objects stay as they are, and are never added.
    """
    add_addresses, remove_addresses = _objects("address", want.addresses, have.addresses, purge)
    add_announced, remove_announced = _objects("announced", want.announce, have.announce, purge)
    add_rules, remove_rules = _objects("rule", want.rules, have.rules, purge)
    set_routes, remove_routes = _routes(want.routes, have.routes, purge)
    settings, releases = _sysctls(want.sysctls, have.sysctls, purge)
    guards = [change for change in add_rules if change.after.is_guard]
    lookups = [change for change in add_rules if not change.after.is_guard]
    late = [change for change in remove_rules if change.before.is_guard]
    early = [change for change in remove_rules if not change.before.is_guard]
    services = _services(want, have)
    settings = sorted(settings, key=lambda change: _stage(change.after.name))
    late_settings = [change for change in settings if _stage(change.after.name)]
    settings = [change for change in settings if change not in late_settings]
    switches = [change for change in releases if _stage(change.before.name) == FORWARDING]
    releases = [change for change in releases if change not in switches]
    # Without forwarding first, a family that loses its services would be forwarded for strangers for a moment.
    prepared = (settings, add_addresses, add_announced, guards, set_routes, lookups)
    additions = (*prepared, _marks(want, have, purge), switches, services)
    removals = (early, remove_routes, late, remove_announced, remove_addresses, releases)
    return tuple(change for step in (*additions, late_settings, *removals) for change in step)


def _stage(name: str) -> int:
    """When a sysctl is set: 0 first, 1 after what loads conntrack, FORWARDING after everything else."""
    return FORWARDING if name in SWITCHES.values() else int(name.startswith(OF_CONNTRACK))


def _split(want: Iterable[Any]) -> tuple[dict[Any, Any], set[Any]]:
    """The active objects by key, and the keys of the retiring ones."""
    objects = list(want)
    active = {value.key: value for value in objects if not value.retiring}
    return active, {value.key for value in objects if value.retiring}


def _objects(kind: str, want: Iterable[Any], have: Sequence[Any], purge: bool) -> tuple[list[Change], list[Change]]:
    """Changes of rules or addresses: the old and the new one can exist at the same time."""
    active, retiring = _split(want)
    present = set(have)
    new = [value for value in active.values() if value not in present]
    gone = [value for value in have if value != active.get(value.key) and value.key not in retiring]
    old = [value for value in gone if purge or value.key in active]
    return (
        [Change(kind, "add", after=value) for value in in_order(new)],
        [Change(kind, "remove", before=value) for value in reversed(in_order(old))],
    )


def _routes(want: Iterable[Route], have: Sequence[Route], purge: bool) -> tuple[list[Change], list[Change]]:
    active, retiring = _split(want)
    present = {route.key: route for route in have}
    changes = [
        Change(
            "route", "replace" if route.key in present else "add", present.get(route.key), replace(route, fallback=())
        )
        for route in in_order(active.values())
        if not next_hops.is_as_wanted(present.get(route.key), route)
    ]
    gone = [route for route in have if purge and route.key not in active and route.key not in retiring]
    return changes, [Change("route", "remove", before=route) for route in reversed(in_order(gone))]


def _marks(want: State, have: State, purge: bool) -> list[Change]:
    active, retiring = _split(want.marks)
    # A sender has one id: new connections of a proxy whose id has changed get its new one.
    taken = {sender for mark in active.values() for sender in (*mark.macs, mark.iif)}
    kept = [
        replace(mark, macs=tuple(mac for mac in mark.macs if mac not in taken), iif=_unless(mark.iif, taken))
        for mark in have.marks
        if mark.key not in active and (mark.key in retiring or not purge)
    ]
    target = tuple(in_order([*active.values(), *kept]))
    engines = (have.engine or want.engine, want.engine or have.engine)
    moved = bool(target) and engines[0] != engines[1]
    if target == tuple(in_order(have.marks)) and have.sound and not moved:
        return []
    verb = "remove" if not target else "replace" if have.marks or not have.sound else "add"
    return [Change("marks", verb, have.marks, target, engines)]


def _services(want: State, have: State) -> list[Change]:
    # Without a purge, the desired state has what no document lists: drain.keep_unlisted.
    present = {(service.endpoint, server) for service in have.services for server in _places(service)}
    active = [service for service in want.services if not service.retiring]
    kept = [
        service
        for service in want.services
        if service.retiring and any((service.endpoint, each) in present for each in _places(service))
    ]
    target = tuple(in_order([*active, *kept]))
    if _services_differ(target, have.services) or not have.services_sound:
        verb = "remove" if not target else "restore" if have.services or not have.services_sound else "add"
        return [Change("services", verb, tuple(in_order(have.services)), target)]
    return []


def _places(service: KernelService) -> list[tuple[str, int]]:
    return [(server.address, server.port) for server in service.servers]


def _services_differ(*lists: Iterable[KernelService]) -> bool:
    """Whether two lists of services have different tables; when a service retires does not matter for that."""
    first, second = ({(service.retiring, service) for service in each} for each in lists)
    return first != second


def _unless(name: str | None, taken: set[str | None]) -> str | None:
    return None if name in taken else name


def _sysctls(want: Iterable[Sysctl], have: Iterable[Setting], purge: bool) -> tuple[list[Change], list[Change]]:
    current = {setting.name: setting for setting in have}
    # A retiring sysctl may belong to an interface that is gone.
    desired = {sysctl.name: sysctl for sysctl in want if sysctl.name in current or not sysctl.retiring}
    changes = [
        Change("sysctl", "replace", current[name], sysctl)
        for name, sysctl in sorted(desired.items())
        if current[name].value != sysctl.value or not current[name].held
    ]
    released = [setting for setting in have if purge and setting.held and setting.name not in desired]
    return changes, [Change("sysctl", "remove", each) for each in sorted(released, key=lambda each: each.name)]


def in_order(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: value.order)


def predict(have: State, changes: Iterable[Change]) -> State:
    """The state after the changes."""
    # Dictionaries as ordered sets: a host may have thousands of rules.
    objects: dict[str, tuple[Any, ...]] = {"rule": have.rules, "route": have.routes, "address": have.addresses}
    objects["announced"] = have.announce
    present: dict[str, dict[Any, None]] = {kind: dict.fromkeys(values) for kind, values in objects.items()}
    marks, sound, engine = have.marks, have.sound, have.engine
    services, services_sound = have.services, have.services_sound
    settings = {setting.name: setting for setting in have.sysctls}
    for change in changes:
        if change.kind in present:
            if change.before is not None:
                del present[change.kind][change.before]
            if change.after is not None:
                present[change.kind][change.after] = None
        elif change.kind == "marks":
            marks, sound, engine = change.after, True, change.engines[1]
        elif change.kind == "services":
            services, services_sound = change.after, True
        else:
            settings[change.before.name] = _after_sysctl(change.before, change.after)
    rules, routes, addresses, announce = map(tuple, present.values())
    parts = (rules, routes, marks, tuple(settings.values()), sound, addresses, engine, services, services_sound)
    return State(*parts, announce=announce)


def _after_sysctl(before: Setting, after: Sysctl | None) -> Setting:
    if after is None:
        value = before.value if before.restore is None else before.restore
        return replace(before, value=value, held=False, restore=None)
    return replace(before, value=after.value, held=True, restore=before.restore if before.held else before.value)
