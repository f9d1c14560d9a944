# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One mark, present or absent, beside the other marks of its owner: what packet_mark does.

A mark is found by its name. The owner's marks change as one set, in one go.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from ..document import model, schema
from ..document.model import OWNERS, Mark
from ..errors import DocumentError, MissingPackage, Refused
from ..marks import selection
from . import apply, engine, plan
from .engine import Outcome
from .host_state import Host
from .plan import State


def _macs(value: Any) -> tuple[str, ...]:
    return tuple(model.mac(str(item)) for item in value)


FIELDS = {name: field for name, field in schema.MARK.items() if not name.startswith("retir")} | {"mac": (_macs, False)}


def read(options: dict[str, Any]) -> Mark:
    """``{"name": "wan2", "id": "0x100", "mask": "0xff00", "iif": "eth1"}`` → Mark; DocumentError with all errors"""
    values, wrong = schema.convert({name: options.get(name) for name in FIELDS}, FIELDS)
    wrong = wrong or schema.check_mark(values)
    if not wrong and not any(values.get(name) for name in ("mac", "iif", "transparent")):
        wrong = [("mac", "required, or iif, or transparent: which packets are marked?")]
    if wrong:
        raise DocumentError(f"{name}: {problem}" for name, problem in wrong)
    return Mark(macs=values.pop("mac", ()), **values)


def owner_of(options: dict[str, Any]) -> str:
    """The owner's name. DocumentError for what is none, and for those whose marks a document has."""
    try:
        owner = schema.owner(options["owner"])
    except ValueError as error:
        raise DocumentError([f"owner: {error}"]) from error
    if owner in OWNERS:
        raise DocumentError(
            [f"owner: the marks of {owner} are those of its document (module routing_state); choose another owner"]
        )
    return owner


def ensure(
    name: str, mark: Mark | None, host: Host, *, owner: str, wanted: str = selection.AUTO, check: bool = False
) -> Outcome:
    """Make the owner have this ``mark`` and no other of that ``name`` (None: no mark of that name).

    ``after`` of the outcome has all marks of the owner and their engine. Raises Refused before anything is touched,
    MissingPackage (with ``check`` only a warning), ApplyError after everything was undone.
    """
    with engine.locked(host, check):
        warnings = []
        try:
            have = _have(host, owner, wanted, mark is not None)
        except MissingPackage as missing:
            if not check:
                raise
            have = State()
            warnings.append(f"{missing}; compared with an owner without marks")
        others = [other for other in have.marks if other.name != name]
        if mark:
            _refuse(mark, others, owner)
        want = State(marks=(*others, *([mark] if mark else [])), engine=None if wanted == selection.AUTO else wanted)
        changes = plan.plan(want, have)
        after = plan.predict(have, changes)
        if changes and not check:
            _perform(host, owner, want, changes)
    warnings += selection.limits([mark] if mark else [], after.engine)
    diff = engine.difference(have, after)
    sentences = tuple(change.sentence for change in changes)
    return Outcome(sentences, (diff,) if diff else (), (), tuple(warnings), after)


def dump(mark: Mark) -> dict[str, Any]:
    """The mark in the words of the options."""
    return {**schema.dump(mark), **({"mac": list(mark.macs)} if mark.macs else {})}


def _have(host: Host, owner: str, wanted: str, needed: bool) -> State:
    live = selection.read(host.runner, owner, wanted, needed)
    return State(marks=live.marks, sound=live.sound, engine=live.engine)


def _refuse(mark: Mark, others: Iterable[Mark], owner: str) -> None:
    """What the owner's marks cannot share, and an interface that is not there."""
    errors = []
    for other in others:
        if other.mask != mark.mask:
            theirs = f"{other.mask:#x} of mark {other.name}"
            errors.append(f"mask: {mark.mask:#x} differs from {theirs}; the marks of owner {owner} share one mask")
        same = {"id": mark.id == other.id, "mac": set(mark.macs) & set(other.macs)}
        same |= {"iif": mark.iif and mark.iif == other.iif, "transparent": mark.transparent and other.transparent}
        errors += [f"{field}: is already that of mark {other.name} of owner {owner}" for field in same if same[field]]
    if mark.iif:
        try:
            socket.if_nametoindex(mark.iif)
        except OSError:
            errors.append(f"iif: this host has no interface {mark.iif}; make it first, or correct the name")
    if errors:
        raise Refused(errors)


def _perform(host: Host, owner: str, want: State, changes: tuple[plan.Change, ...]) -> None:
    def verify() -> str | None:
        return engine.still_needed(plan.plan(want, _have(host, owner, want.engine or selection.AUTO, bool(want.marks))))

    apply.perform([apply.marks_step(change, host, owner) for change in changes], verify)
