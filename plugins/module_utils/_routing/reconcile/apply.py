# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make the planned changes one after the other; undo all of them in reverse when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..document import store as document_store
from ..document.documents import Document
from ..errors import ApplyError, RoutingError
from ..host import files
from ..marks import selection
from ..netlink.kernel import NetlinkError, reason
from . import live_services, plan
from .change import Change
from .host import Host
from .run import FileChange, Run
from .state import State


@dataclass(frozen=True)
class Step:
    sentence: str
    do: Callable[[], None]
    undo: Callable[[], None]


def apply(run: Run, read_again: Callable[[Run], State]) -> None:
    """Make the changes of the run, unless it is a check; then read the state again and confirm it.

    ApplyError says which change failed, why, and what was left: nothing, if everything could be undone.
    """
    if run.options.check:
        return
    if not run.have.services_current and all(change.kind != "services" for change in run.changes):
        live_services.write(run.host, replace(run.document, services=run.have.services))
    if not (run.changes or run.file_change):
        return
    steps = [_step(change, run) for change in run.changes]
    if run.file_change:
        steps.append(_file_step(run.file_change))

    def verify() -> str | None:
        left = plan.find_changes(run.want, read_again(run), run.options.purge)
        sentences = "; ".join(change.sentence for change in left)
        return f"after applying, the host still needs: {sentences}" if left else None

    perform(steps, verify)


def perform(steps: Iterable[Step], verify: Callable[[], str | None]) -> None:
    """Do all steps, then ``verify`` (a sentence when the host is not as it should be)."""
    done: list[Step] = []
    current = "begin"
    try:
        for step in steps:
            current = step.sentence
            step.do()
            done.append(step)
        current = "confirm the result"
        wrong = verify()
    except (NetlinkError, OSError, RoutingError) as error:
        raise ApplyError(f"could not {current}: {reason(error)}; {_undo(done)}") from error
    except BaseException:
        _undo(done)  # a signal or a bug: leave nothing half done, and let it propagate
        raise
    if wrong:
        raise ApplyError(f"{wrong}; {_undo(done)}")


def _undo(done: list[Step]) -> str:
    """Undo the steps in reverse; a sentence about what was left."""
    left = []
    for step in reversed(done):
        try:
            step.undo()
        except (NetlinkError, OSError, RoutingError) as error:
            left.append(f"{step.sentence} ({reason(error)})")
    if left:
        return f"undoing failed for: {', '.join(left)}"
    return f"the {len(done)} changes made so far were undone" if done else "nothing was changed"


def _step(change: Change, run: Run) -> Step:
    kernel, owner, protocol = run.kernel, run.document.owner, run.document.protocol
    if change.kind == "rule":
        return _object_step(change, kernel.add_rule, kernel.remove_rule, protocol)
    if change.kind == "address":
        return _object_step(change, kernel.add_address, kernel.remove_address, protocol)
    if change.kind == "announced":
        return _object_step(change, kernel.add_announced, kernel.remove_announced, protocol)
    if change.kind == "route":
        return _route_step(change, kernel, protocol)
    if change.kind == "marks":
        return _marks_step(change, run.host, owner)
    if change.kind == "services":
        return _services_step(change, run)
    return _sysctl_step(change, kernel, run.host, owner)


def _object_step(change: Change, add: Callable[..., None], remove: Callable[..., None], protocol: int) -> Step:
    value = change.after or change.before

    def present() -> None:
        add(value, protocol)

    def absent() -> None:
        remove(value, protocol)

    return Step(change.sentence, present, absent) if change.after else Step(change.sentence, absent, present)


def _route_step(change: Change, kernel: Any, protocol: int) -> Step:
    def put(new: Any, old: Any) -> Callable[[], None]:
        if new is None:
            return lambda: kernel.remove_route(old, protocol)
        return lambda: kernel.set_route(new, protocol)

    return Step(change.sentence, put(change.after, change.before), put(change.before, change.after))


def _marks_step(change: Change, host: Host, owner: str) -> Step:
    """Write all marks of an owner to the engine that is to hold them; undoing restores each engine's own."""

    def put(engine: str | None, values: Any, before: Any) -> Callable[[], None]:
        return lambda: selection.write(host.runner, owner, engine, values, before)

    old, new = change.engines
    had = change.before if old == new else ()
    undone = change.after if old == new else ()
    return Step(change.sentence, put(new, change.after, had), put(old, change.before, undone))


def _services_step(change: Change, run: Run) -> Step:
    """Write the table of all services; undoing writes the one before, as its document has it."""

    def put(document: Document, services: Any) -> Callable[[], None]:
        return lambda: live_services.write(run.host, replace(document, services=services))

    return Step(change.sentence, put(run.document, change.after), put(run.stored or run.document, change.before))


def _sysctl_step(change: Change, kernel: Any, host: Host, owner: str) -> Step:
    memory: list[str | None] = []  # the content of the file just before this step

    def undo() -> None:
        host.sysctls.rewind(change.before, memory[0] if memory else None)

    def do() -> None:
        memory.append(host.sysctls.memory())
        if change.after is None:
            host.sysctls.release(owner, change.before)
            return
        host.sysctls.hold(owner, change.after)
        if change.after.name.endswith(".accept_redirects") and change.after.value == "0":
            try:
                # What the kernel learnt before would stay in force for up to 300 s.
                host.sysctls.flush_redirects(change.after.name)
                kernel.forget_redirects()
            except BaseException:
                undo()  # a step that fails must have changed nothing
                raise

    return Step(change.sentence, do, undo)


def _file_step(change: FileChange) -> Step:
    def put(content: str | None) -> Callable[[], None]:
        if content is None:
            return lambda: files.remove(change.path)
        return lambda: files.write(change.path, content, document_store.MODE)

    return Step(change.sentence, put(change.after), put(change.before))
