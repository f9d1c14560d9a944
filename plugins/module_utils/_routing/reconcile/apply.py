# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes made one after the other, and all undone in reverse when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ApplyError, RoutingError
from ..host import files
from ..marks import selection
from ..netlink.kernel import NetlinkError, reason
from .host_state import Host
from .plan import Change


@dataclass(frozen=True)
class Step:
    sentence: str
    do: Callable[[], None]
    undo: Callable[[], None]


def steps(changes: Iterable[Change], kernel: Any, host: Host, owner: str, protocol: int) -> list[Step]:
    """The plan's changes with the means to make and to undo them."""
    pairs = {
        "rule": (kernel.add_rule, kernel.remove_rule),
        "address": (kernel.add_address, kernel.remove_address),
    }
    found = []
    for change in changes:
        if change.kind in pairs:
            found.append(_object(change, *pairs[change.kind], protocol))
        elif change.kind == "route":
            found.append(_route(change, kernel, protocol))
        elif change.kind == "marks":
            found.append(marks_step(change, host, owner))
        else:
            found.append(_sysctl(change, kernel, host, owner))
    return found


def _object(change: Change, add: Callable[..., None], remove: Callable[..., None], protocol: int) -> Step:
    value = change.after or change.before

    def present() -> None:
        add(value, protocol)

    def absent() -> None:
        remove(value, protocol)

    return Step(change.sentence, present, absent) if change.after else Step(change.sentence, absent, present)


def _route(change: Change, kernel: Any, protocol: int) -> Step:
    def put(new: Any, old: Any) -> Callable[[], None]:
        if new is None:
            return lambda: kernel.remove_route(old, protocol)
        return lambda: kernel.set_route(new, protocol)

    return Step(change.sentence, put(change.after, change.before), put(change.before, change.after))


def marks_step(change: Change, host: Host, owner: str) -> Step:
    """Give all marks of an owner to the engine that is to hold them; the undoing gives back what was where it was."""

    def put(engine: str | None, values: Any, before: Any) -> Callable[[], None]:
        return lambda: selection.write(host.runner, owner, engine, values, before)

    old, new = change.engines
    had = change.before if old == new else ()
    undone = change.after if old == new else ()
    return Step(change.sentence, put(new, change.after, had), put(old, change.before, undone))


def _sysctl(change: Change, kernel: Any, host: Host, owner: str) -> Step:
    memory: list[str | None] = []  # as it is just before this step, not before the whole

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
                # What was learnt before stays in force for 300 s otherwise.
                host.sysctls.flush_redirects(change.after.name)
                kernel.forget_redirects()
            except BaseException:
                undo()  # a step that fails has done nothing
                raise

    return Step(change.sentence, do, undo)


def file_step(path: str, content: str | None, mode: int) -> Step:
    """Write the file, or remove it when ``content`` is None."""

    def put(text: str | None) -> Callable[[], None]:
        if text is None:
            return lambda: files.remove(path)
        return lambda: files.write(path, text, mode)

    return Step(f"{'remove' if content is None else 'write'} {path}", put(content), put(files.read(path)))


def perform(todo: Iterable[Step], verify: Callable[[], str | None]) -> None:
    """Do all steps, then ``verify`` (a sentence when the host is not as it should be).

    ApplyError says which step failed, why, and what was left: nothing, when the undoing succeeded.
    """
    done: list[Step] = []
    current = "begin"
    try:
        for step in todo:
            current = step.sentence
            step.do()
            done.append(step)
        current = "confirm the result"
        wrong = verify()
    except (NetlinkError, OSError, RoutingError) as error:
        raise ApplyError(f"could not {current}: {reason(error)}; {_undo(done)}") from error
    except BaseException:
        _undo(done)  # a signal, or a fault of ours: leave nothing half done, and say what it was
        raise
    if wrong:
        raise ApplyError(f"{wrong}; {_undo(done)}")


def _undo(done: list[Step]) -> str:
    left = []
    for step in reversed(done):
        try:
            step.undo()
        except (NetlinkError, OSError, RoutingError) as error:
            left.append(f"{step.sentence} ({reason(error)})")
    if left:
        return f"undoing failed for: {', '.join(left)}"
    return f"the {len(done)} changes before it were undone, nothing was left" if done else "nothing was changed"
