# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One mark, present or absent, next to the other marks of its owner: the work of packet_mark.

A mark is identified by its name. All marks of an owner change together.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..document import model, readers, schema
from ..document.documents import Document
from ..document.model import OWNERS, Mark
from ..errors import DocumentError, MissingPackage, Refused
from ..marks import selection
from . import apply, plan
from .host import Host, locked
from .outcome import Outcome, outcome_of
from .run import Options, Run
from .state import State


def _macs(value: Any) -> tuple[str, ...]:
    return tuple(model.mac(str(item)) for item in value)


FIELDS = {name: field for name, field in schema.MARK.items() if not name.startswith("retir")} | {"mac": (_macs, False)}


def read(options: dict[str, Any]) -> Mark:
    """``{"name": "wan2", "id": "0x100", "mask": "0xff00", "iif": "eth1"}`` -> Mark; DocumentError with all errors"""
    values, errors = readers.convert({name: options.get(name) for name in FIELDS}, FIELDS)
    errors = errors or schema.check_mark(values)
    if not errors and not any(values.get(name) for name in ("mac", "iif", "transparent")):
        errors = [("mac", "required, or iif, or transparent: which packets are marked?")]
    if errors:
        raise DocumentError(f"{name}: {problem}" for name, problem in errors)
    return Mark(macs=values.pop("mac", ()), **values)


def owner_of(options: dict[str, Any]) -> str:
    """The owner's name. DocumentError for an invalid one, and for owners whose marks come from a document."""
    try:
        owner = schema.owner(options["owner"])
    except ValueError as error:
        raise DocumentError([f"owner: {error}"]) from error
    if owner in OWNERS:
        raise DocumentError(
            [f"owner: the marks of {owner} come from its document (module routing_state); choose another owner"]
        )
    return owner


def ensure(
    name: str, mark: Mark | None, host: Host, *, owner: str, requested: str = selection.AUTO, check: bool = False
) -> Outcome:
    """Make the owner have this ``mark`` and no other of that ``name`` (None: no mark of that name).

    ``after`` of the outcome has all marks of the owner and their engine. Raises Refused before anything is changed,
    MissingPackage (in check mode only a warning), ApplyError after everything was undone.
    """
    run = Run(Document(owner, 0, mark_engine=requested), host, Options(check=check), lenient=check)
    with locked(host, unless=check):
        run = _read(run, needed=mark is not None)
        others = [other for other in run.have.marks if other.name != name]
        if mark:
            _refuse(mark, others, owner)
        marks = (*others, *([mark] if mark else []))
        run = replace(run, want=State(marks=marks, engine=None if requested == selection.AUTO else requested))
        run = plan.plan(run)
        apply.apply(run, lambda run: _marks(run, bool(run.want.marks)))
    limits = selection.limits([mark] if mark else [], run.after.engine)
    return outcome_of(replace(run, warnings=(*run.warnings, *limits)))


def dump(mark: Mark) -> dict[str, Any]:
    """The mark in the words of the options."""
    return {**schema.dump(mark), **({"mac": list(mark.macs)} if mark.macs else {})}


def _read(run: Run, needed: bool) -> Run:
    """The run with the owner's marks as they are now; with a warning instead where ``lenient`` and no engine works."""
    try:
        return replace(run, have=_marks(run, needed))
    except MissingPackage as missing:
        if not run.lenient:
            raise
        return replace(run, warnings=(f"{missing}; the owner is assumed to have no marks",))


def _marks(run: Run, needed: bool) -> State:
    live = selection.read(run.host.runner, run.document.owner, run.document.mark_engine, needed)
    return State(marks=live.marks, sound=live.sound, engine=live.engine)


def _refuse(mark: Mark, others: Iterable[Mark], owner: str) -> None:
    """Refused for what two marks of an owner cannot share, and for an interface that does not exist."""
    errors = []
    for other in others:
        if other.mask != mark.mask:
            theirs = f"{other.mask:#x} of mark {other.name}"
            errors.append(f"mask: {mark.mask:#x} differs from {theirs}; the marks of owner {owner} share one mask")
        same = {"id": mark.id == other.id, "mac": set(mark.macs) & set(other.macs)}
        same |= {"iif": mark.iif and mark.iif == other.iif, "transparent": mark.transparent and other.transparent}
        errors += [f"{field}: already used by mark {other.name} of owner {owner}" for field in same if same[field]]
    if mark.iif:
        try:
            socket.if_nametoindex(mark.iif)
        except OSError:
            errors.append(f"iif: this host has no interface {mark.iif}; create it first, or correct the name")
    if errors:
        raise Refused(errors)
