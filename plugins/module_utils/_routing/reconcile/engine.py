# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a host to a document, or take an owner's set away: gather, plan, apply or undo, read back.

    outcome = reconcile(documents.load(data), Host(), directory="/etc/l4proxy/routing.d")
    outcome = remove("return_path", Host(), directory="/etc/l4proxy/routing.d")

Both hold the host's one lock while they change anything, the file of the document included.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any

from ..document import formatting, schema, store
from ..document.documents import SECTIONS, Document
from ..document.model import OWNERS, Sysctl
from ..errors import MissingPackage, Refused, RoutingError
from ..host import files
from . import apply, draining, host_state, placement, plan
from .host_state import Host, View
from .plan import Change, State

__all__ = ["Host", "Outcome", "reconcile", "remove"]


@dataclass(frozen=True)
class Outcome:
    """What was (in check mode: would be) done.

    ``changes`` are sentences; ``diff`` is a list of Ansible's before/after pairs; ``waiting`` says what is applied
    without for now and needs another run (the MAC of a silent proxy); ``after`` is the owned set as it is then.
    ``missing`` says what could not be applied yet, with ``partly``.
    ``retiring`` says what is kept for a while though no longer wanted, and ``next_due`` is in how many seconds another
    run with ``now`` may find some of it over (None: nothing retires).
    """

    changes: tuple[str, ...]
    diff: tuple[dict[str, str], ...]
    waiting: tuple[str, ...]
    warnings: tuple[str, ...]
    after: State
    retiring: tuple[str, ...] = ()
    next_due: float | None = None
    missing: tuple[str, ...] = ()
    # What each change is of, in the same order: rule, route, marks, sysctl, file.
    kinds: tuple[str, ...] = ()
    # Which rules are left out, with ``partly``, because their source is an address of this host.
    let_go: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.changes)

    @property
    def owned(self) -> dict[str, Any]:
        """The owned set as sections of a document."""
        held = [Sysctl(setting.name, setting.value) for setting in self.after.sysctls if setting.held]
        sections = {**{name: getattr(self.after, name) for name in SECTIONS}, "sysctls": held}
        return {
            name: [schema.dump(value) for value in sorted(values, key=lambda value: value.order)]
            for name, values in sections.items()
        }


def reconcile(
    document: Document,
    host: Host,
    *,
    purge: bool = True,
    check: bool = False,
    allow_empty: bool = False,
    directory: str | None = None,
    drain: float = 0,
    now: float | None = None,
    have_lock: bool = False,
    partly: bool = False,
) -> Outcome:
    """Make the owner's set what the document says; with ``directory`` the document is then stored there.

    ``now`` (seconds since the epoch) ends what retires and is over. With it, what the document does not name any more
    is kept for ``drain`` seconds at most, retiring (and stored so), and from half of that time on only while a
    connection needs it; see ``retire``. ``have_lock``: the caller holds the host's lock, because it has read the
    document under it. ``partly``: at boot links and addresses come one by one; what does not need those that are
    missing is applied before them, so that it fails closed meanwhile.
    Raises Refused and NotReady before anything is touched, MissingPackage (with ``check`` only a warning), ApplyError
    after everything was undone.
    """
    if document.is_empty and not allow_empty:
        sentence = f"the document of {document.owner} is empty and would remove all that this owner has on the host"
        raise Refused([f"{sentence}; that is what state absent is for, or say allow_empty"])
    with locked(host, check or have_lock):
        _refuse_shared_protocol(document, directory)
        document, absent = host_state.without_absent_settings(host, document) if partly else (document, [])
        view = _view(host, document, check, partly)
        if view.let_go and not partly:
            raise Refused(view.let_go)
        if now is not None:
            stored = _stored(document.owner, directory) if drain else None
            if drain and purge:
                have = replace(view.have, rules=placement.home(document.rules, view.have.rules))
                document = draining.begin(document, have, stored, now + drain, now + drain / 2)
            document = draining.due(document, now, host.count_connections)
            view.want = draining.wanted(view.want, document)
            # What retires stays as it is, but for this.
            view.want, _sentences = host_state.without_own_sources(view.want, view.others, view.own)
        view.want = host_state.leave_alone(view.want, view.held_back)
        errors = plan.conflicts(view.want, view.foreign) + host_state.unbounded(view, purge)
        if errors:
            raise Refused(errors)
        content = store.content_of(document) if directory else None
        outcome = _finish(document, host, view, purge, check, directory, content)
        if not check:
            host.macs.learn(document.owner, view.answered, (via for mark in document.marks for via in mark.via))
        leaving = tuple(formatting.describe(value) for value in draining.leaving(document))
        due = None if now is None else draining.next_look(document, now)
        found: dict[str, Any] = {"missing": (*absent, *view.missing), "let_go": tuple(view.let_go)}
        return replace(outcome, **found, retiring=leaving, next_due=due)


def remove(
    owner: str,
    host: Host,
    *,
    protocol: int | None = None,
    check: bool = False,
    directory: str | None = None,
) -> Outcome:
    """Take away all that an owner has: rules, routes, marks, settings (restored) and, with ``directory``, its file.

    The protocol number is the given one, else that of the stored document, else that of a known owner.
    """
    with locked(host, check):
        document = Document(owner, protocol or _protocol_of(owner, directory))
        # A host on which the owner never had anything may never have had the packages either.
        view = _view(host, document, check or not _has_left_traces(owner, host, directory))
        return _finish(document, host, view, True, check, directory, None)


def locked(host: Host, without: bool) -> contextlib.AbstractContextManager[None]:
    """Hold the host's lock, unless the host is only looked at, or the lock is held already."""
    return contextlib.nullcontext() if without else files.locked(host.lock)


def _refuse_shared_protocol(document: Document, directory: str | None) -> None:
    for stored in store.load_all(directory) if directory else []:
        other = stored.document
        if other and other.owner != document.owner and other.protocol == document.protocol:
            raise Refused([f"protocol: {document.protocol} is already that of owner {other.owner} ({stored.path})"])


def _protocol_of(owner: str, directory: str | None) -> int:
    if owner in OWNERS:
        return OWNERS[owner]
    stored = _stored(owner, directory)
    if stored:
        return stored.protocol
    raise Refused([f"owner {owner}: its protocol number is not known on this host; give its document"])


def _stored(owner: str, directory: str | None) -> Document | None:
    """The owner's stored document, if there is one that can be read."""
    with contextlib.suppress(RoutingError, OSError):
        if directory:
            return store.load(store.path_of(directory, owner))
    return None


def _has_left_traces(owner: str, host: Host, directory: str | None) -> bool:
    stored = directory is not None and os.path.exists(store.path_of(directory, owner))
    return stored or bool(host.sysctls.held_by(owner))


def _view(host: Host, document: Document, lenient: bool, partly: bool = False) -> View:
    """What is and what is to be; where a tool is missing, ``lenient`` takes the owned set for empty and warns."""
    try:
        return host_state.view(host, document, partly)
    except MissingPackage as missing:
        if not lenient:
            raise
        return host_state.view_without_tools(host, document, missing)


def _finish(
    document: Document,
    host: Host,
    view: View,
    purge: bool,
    check: bool,
    directory: str | None,
    content: str | None,
) -> Outcome:
    """Plan and, unless it is only to be shown, perform."""
    changes = plan.plan(view.want, view.have, purge)
    after = plan.predict(view.have, changes)
    file_diff = _file_diff(directory, document.owner, content)
    sentences, kinds = [change.sentence for change in changes], [change.kind for change in changes]
    if file_diff:
        kinds.append("file")
        sentences.append(f"{'remove' if content is None else 'write'} {file_diff['after_header']}")
    if sentences and not check:
        _perform(document, host, view.want, changes, purge, (file_diff["after_header"], content) if file_diff else None)
    diff = [difference(view.have, after), file_diff] if file_diff else [difference(view.have, after)]
    return Outcome(
        tuple(sentences),
        tuple(pair for pair in diff if pair),
        tuple(view.waiting),
        tuple(view.warnings),
        after,
        kinds=tuple(kinds),
    )


def _perform(
    document: Document,
    host: Host,
    want: State,
    changes: tuple[Change, ...],
    purge: bool,
    file: tuple[str, str | None] | None,
) -> None:
    def verify() -> str | None:
        have, _foreign = host_state.read(kernel, host, document)
        return still_needed(plan.plan(want, have, purge))

    with host.make_kernel() as kernel:
        todo = apply.steps(changes, kernel, host, document.owner, document.protocol)
        if file:
            todo.append(apply.file_step(*file, store.MODE))
        apply.perform(todo, verify)


def still_needed(left: tuple[Change, ...]) -> str | None:
    """The sentence when what was applied does not read back."""
    return f"after applying, the host still needs: {'; '.join(change.sentence for change in left)}" if left else None


def difference(before: State, after: State) -> dict[str, str] | None:
    """Ansible's before/after pair; None where there is none."""
    if before == after:
        return None  # thousands of lines need not be written to be found equal
    texts = plan.diff(before, after)
    if texts["before"] == texts["after"]:
        return None
    return {**texts, "before_header": "routing", "after_header": "routing"}


def _file_diff(directory: str | None, owner: str, content: str | None) -> dict[str, str] | None:
    if directory is None:
        return None
    path = store.path_of(directory, owner)
    present = files.read(path)
    if present == content:
        return None
    return {"before": present or "", "after": content or "", "before_header": path, "after_header": path}
