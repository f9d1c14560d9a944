# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what is wanted and what is there to the changes between, in an order that never breaks what lives. Pure.

Adding comes before removing. Within the adding: settings, then addresses (a route may name one as its source), then the
guard rules (so that it fails closed from the first moment), then routes, then the rules that look them up, then the
marks that make packets match those rules, and the settings of conntrack, which marks load. Removing is the same in
reverse. A route with another next hop is replaced in
one step; marks are one set of the engine that holds them and change at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..document import formatting
from ..document.model import OF_CONNTRACK, Address, KernelObject, Mark, Route, Rule, Setting, Sysctl


@dataclass(frozen=True)
class State:
    """An owned set: as wanted, or as read from the host.

    ``sysctls`` is a tuple of Sysctl in a wanted state, of Setting in one that was read. ``sound`` is False when the
    live marks are not exactly what ``marks`` renders to (someone changed them, or they are an empty leftover).
    ``engine`` is what holds the marks, or is to hold them; None where there is no saying.
    """

    rules: tuple[Rule, ...] = ()
    routes: tuple[Route, ...] = ()
    marks: tuple[Mark, ...] = ()
    sysctls: tuple[Any, ...] = ()
    sound: bool = True
    addresses: tuple[Address, ...] = ()
    engine: str | None = None


@dataclass(frozen=True)
class Change:
    """One step. ``verb`` is add, remove or replace; ``before`` and ``after`` are the object, None where there is none.

    For kind ``marks`` they are tuples of all marks, and ``engines`` is what holds them before and after; for kind
    ``sysctl`` before is a Setting and after a Sysctl.
    """

    kind: str
    verb: str
    before: Any = None
    after: Any = None
    engines: tuple[str | None, str | None] = (None, None)

    @property
    def sentence(self) -> str:
        if self.kind == "sysctl":
            return _sysctl_sentence(self.before, self.after)
        if self.kind == "marks":
            names = ", ".join(f"{mark.name} ({mark.id:#x})" for mark in self.after or self.before) or "none"
            return f"{self.verb} {formatting.mark_set(self.engines[1])}: {names}"
        return f"{self.verb} {formatting.describe(self.after or self.before)}"


def _sysctl_sentence(before: Setting, after: Sysctl | None) -> str:
    if after is None:
        if before.restore in (None, before.value):
            return f"give up sysctl {before.name} (stays {before.value})"
        return f"restore sysctl {before.name}: {before.value} -> {before.restore}"
    if before.value == after.value:
        return f"hold sysctl {after.name} at {after.value}"
    return f"set sysctl {after.name}: {before.value or 'absent'} -> {after.value}"


def plan(want: State, have: State, purge: bool = True) -> tuple[Change, ...]:
    """The changes that turn ``have`` into ``want``, in order. Without ``purge`` only what is replaced is removed.

    Retiring objects stay as they are where they are, and are never added.
    """
    add_addresses, remove_addresses = _objects("address", want.addresses, have.addresses, purge)
    add_rules, remove_rules = _objects("rule", want.rules, have.rules, purge)
    set_routes, remove_routes = _routes(want.routes, have.routes, purge)
    settings, releases = _sysctls(want.sysctls, have.sysctls, purge)
    guards = [change for change in add_rules if change.after.is_guard]
    lookups = [change for change in add_rules if not change.after.is_guard]
    late = [change for change in remove_rules if change.before.is_guard]
    early = [change for change in remove_rules if not change.before.is_guard]
    late_settings = [change for change in settings if change.after.name.startswith(OF_CONNTRACK)]
    settings = [change for change in settings if change not in late_settings]
    additions = (settings, add_addresses, guards, set_routes, lookups, _marks(want, have, purge), late_settings)
    removals = (early, remove_routes, late, remove_addresses, releases)
    return tuple(change for step in (*additions, *removals) for change in step)


def _split(want: Iterable[Any]) -> tuple[dict[Any, Any], set[Any]]:
    """Wanted objects by key, and the keys of retiring ones."""
    objects = list(want)
    active = {value.key: value for value in objects if not value.retiring}
    return active, {value.key for value in objects if value.retiring}


def _objects(kind: str, want: Iterable[Any], have: Sequence[Any], purge: bool) -> tuple[list[Change], list[Change]]:
    """For rules and addresses, of which an old and a new one can stand side by side."""
    active, retiring = _split(want)
    present = set(have)
    new = [value for value in active.values() if value not in present]
    gone = [value for value in have if value != active.get(value.key) and value.key not in retiring]
    old = [value for value in gone if purge or value.key in active]
    return (
        [Change(kind, "add", after=value) for value in _ordered(new)],
        [Change(kind, "remove", before=value) for value in reversed(_ordered(old))],
    )


def _routes(want: Iterable[Route], have: Sequence[Route], purge: bool) -> tuple[list[Change], list[Change]]:
    active, retiring = _split(want)
    present = {route.key: route for route in have}
    changes = [
        Change("route", "replace" if route.key in present else "add", present.get(route.key), route)
        for route in _ordered(active.values())
        if present.get(route.key) != route
    ]
    gone = [route for route in have if purge and route.key not in active and route.key not in retiring]
    return changes, [Change("route", "remove", before=route) for route in reversed(_ordered(gone))]


def _marks(want: State, have: State, purge: bool) -> list[Change]:
    active, retiring = _split(want.marks)
    # One sender means one id: a proxy that has another id now sends its new connections under that one.
    taken = {sender for mark in active.values() for sender in (*mark.macs, mark.iif)}
    kept = [
        replace(mark, macs=tuple(mac for mac in mark.macs if mac not in taken), iif=_unless(mark.iif, taken))
        for mark in have.marks
        if mark.key not in active and (mark.key in retiring or not purge)
    ]
    target = tuple(_ordered([*active.values(), *kept]))
    engines = (have.engine or want.engine, want.engine or have.engine)
    moved = bool(target) and engines[0] != engines[1]
    if target == tuple(_ordered(have.marks)) and have.sound and not moved:
        return []
    verb = "remove" if not target else "replace" if have.marks or not have.sound else "add"
    return [Change("marks", verb, have.marks, target, engines)]


def _unless(name: str | None, taken: set[str | None]) -> str | None:
    return None if name in taken else name


def _sysctls(want: Iterable[Sysctl], have: Iterable[Setting], purge: bool) -> tuple[list[Change], list[Change]]:
    current = {setting.name: setting for setting in have}
    # What retires may be a setting of an interface that is gone by now.
    wanted = {sysctl.name: sysctl for sysctl in want if sysctl.name in current or not sysctl.retiring}
    changes = [
        Change("sysctl", "replace", current[name], sysctl)
        for name, sysctl in sorted(wanted.items())
        if current[name].value != sysctl.value or not current[name].held
    ]
    given_up = [setting for setting in have if purge and setting.held and setting.name not in wanted]
    return changes, [Change("sysctl", "remove", setting) for setting in sorted(given_up, key=lambda found: found.name)]


def _ordered(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=lambda value: value.order)


def predict(have: State, changes: Iterable[Change]) -> State:
    """The state after the changes: what check mode shows, and what the read-back must confirm."""
    # Sets that keep their order: a host may have thousands of rules.
    objects: dict[str, tuple[Any, ...]] = {"rule": have.rules, "route": have.routes, "address": have.addresses}
    present = {kind: dict.fromkeys(values) for kind, values in objects.items()}
    marks, sound, engine = have.marks, have.sound, have.engine
    settings = {setting.name: setting for setting in have.sysctls}
    for change in changes:
        if change.kind in present:
            if change.before is not None:
                del present[change.kind][change.before]
            if change.after is not None:
                present[change.kind][change.after] = None
        elif change.kind == "marks":
            marks, sound, engine = change.after, True, change.engines[1]
        else:
            settings[change.before.name] = _after_sysctl(change.before, change.after)
    rules, routes, addresses = map(tuple, present.values())
    return State(rules, routes, marks, tuple(settings.values()), sound, addresses, engine)


def _after_sysctl(before: Setting, after: Sysctl | None) -> Setting:
    if after is None:
        value = before.value if before.restore is None else before.restore
        return replace(before, value=value, held=False, restore=None)
    return replace(before, value=after.value, held=True, restore=before.restore if before.held else before.value)


def lines(state: State) -> str:
    """The set as text, one line an object, for a difference a person reads."""
    objects = [value for values in (state.addresses, state.rules, state.routes) for value in _ordered(values)]
    marks = [formatting.mark(mark, state.engine) for mark in _ordered(state.marks)]
    settings = [Sysctl(setting.name, setting.value) for setting in sorted(state.sysctls, key=lambda found: found.name)]
    listing = [*map(formatting.describe, objects), *marks, *map(formatting.describe, settings)]
    if not state.sound:
        listing.append(f"{formatting.mark_set(state.engine)} is not as it was written")
    return "".join(f"{line}\n" for line in listing)


def diff(before: State, after: State) -> dict[str, str]:
    """``{"before": ..., "after": ...}`` for Ansible's --diff."""
    return {"before": lines(before), "after": lines(after)}


@dataclass(frozen=True)
class Foreign:
    """What others own on the host, as far as it can be in our way: (rule, protocol), routes and addresses."""

    rules: tuple[tuple[Rule, int], ...] = ()
    # (family, table, protocol, the route as text)
    routes: tuple[tuple[str, int, int, str], ...] = field(default=())
    # (address, protocol of another owner of ours, or 0)
    addresses: tuple[tuple[Address, int], ...] = ()
    # All rules but the owner's, also those that the model cannot say.
    listed: tuple[KernelObject, ...] = ()


def conflicts(want: State, foreign: Foreign) -> list[str]:
    """Why the wanted set cannot live beside what others own; empty when it can. Sentences."""
    rules = {rule.key for rule in want.rules if not rule.retiring}
    addresses = {address.address for address in want.addresses if not address.retiring}
    errors = [
        f"rule priority {rule.priority} already has these selectors for another owner "
        f"({formatting.owner_name(protocol)}): {formatting.rule(rule)}; remove that rule or choose another priority"
        for rule, protocol in foreign.rules
        if rule.key in rules
    ]
    errors += [
        f"address {address.address} is on this host already, and is not ours "
        f"(dev {address.dev}, {formatting.owner_name(protocol) if protocol else 'set by another tool'}); "
        f"remove it or choose another address"
        for address, protocol in foreign.addresses
        if address.address in addresses
    ]
    return errors + _shared_tables(want.routes, foreign)


def _shared_tables(routes: Iterable[Route], foreign: Foreign) -> list[str]:
    tables = {(route.family, route.table) for route in routes if not route.retiring}
    first: dict[tuple[str, int], tuple[int, str]] = {}
    for family, table, protocol, line in foreign.routes:
        if (family, table) in tables:
            first.setdefault((family, table), (protocol, line))
    return [
        f"table {table} already holds routes of another owner ({formatting.owner_name(protocol)}): {line}; "
        f"remove them or choose another table"
        for (_family, table), (protocol, line) in first.items()
    ]
