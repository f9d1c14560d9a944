# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that the supervisor leaves for a restart of the service: that of a reload (reexec_state.py), in systemd.

The leaving supervisor stores the document and the descriptors that it names beside the listeners (notify.py), and its
workers go on serving. The next supervisor gives the descriptors their numbers in the document again and takes the
workers over. They are not its children: it learns from their channels that they have ended.

The name of a stored descriptor is "tcp:handover-TIME:NUMBER#0", where TIME is when the supervisor left and NUMBER is
the descriptor's in the document, 0 for the document itself. Version 0.1.0 takes such a socket for a listener that its
config does not need, so it closes the channels once its own workers serve, and the old workers drain.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time

from ..admin import runtime_file

DOCUMENT = 0  # the NUMBER of the document
FIRST_FREE = 3  # lowest number of a descriptor besides those of standard input, output and error

_NAME = re.compile(r"tcp:handover-([0-9a-f]+):(\d+)#0\Z")


def is_name(name: str) -> bool:
    """Whether a name in systemd's store is that of a descriptor which a supervisor has left."""
    return bool(_NAME.match(name))


def leave(state: dict, regions: list[int]) -> dict[str, int]:
    """Return {name: descriptor} to store: a document with ``state``, of reexec_state.Parts, and what it names.

    ``regions`` are the descriptors of shared memory in it. The caller closes nothing: all of it ends with this process.
    """
    numbers = {state["serving"]["description"]["generation"], *map(int, state["draining"])}
    born = {child["pid"]: runtime_file.start_time(child["pid"]) for child in state["children"]}
    adopted = [*state["adopted"], *({**child, "born": born[child["pid"]]} for child in state["children"])]
    adopted = [child for child in adopted if child["generation"] in numbers and child["born"] is not None]
    descriptors = [*regions, *_descriptors(adopted)]
    document = {**state, "children": [], "adopted": adopted, "endpoints": {}, "lock": None, "descriptors": descriptors}
    memory = os.memfd_create("l4proxy-handover", os.MFD_CLOEXEC)
    with open(memory, "w", encoding="utf-8", closefd=False) as stream:
        json.dump(document, stream)
    left = f"tcp:handover-{time.monotonic_ns():x}"
    return {f"{left}:{number}#0": number or memory for number in (DOCUMENT, *descriptors)}


def _descriptors(children):
    """Return the numbers in the records of children."""
    numbers = (child[key] for child in children for key in ("channel", "estate"))
    return [number for number in numbers if number is not None]


def take(stored: dict[str, int]) -> dict | None:
    """Return the newest state in ``stored``, {name: descriptor}, or None if there is none that is complete.

    Its descriptors have their numbers in the state. Only listeners remain in ``stored``, maybe with other numbers.
    """
    left: dict[int, dict[int, int]] = {}  # {time: {number: descriptor}}
    for name in [name for name in stored if is_name(name)]:
        moment, number = _NAME.match(name).groups()  # type: ignore[union-attr]
        left.setdefault(int(moment, 16), {})[int(number)] = stored.pop(name)
    documents = {moment: _read(found.pop(DOCUMENT)) for moment, found in left.items() if DOCUMENT in found}
    states = {moment: _complete(document, left[moment]) for moment, document in documents.items()}
    newest = max((moment for moment, state in states.items() if state), default=None)
    for moment in set(left) - {newest}:
        _close(left[moment])
    if newest is None:
        return None
    if not _place(left[newest], stored):
        _close(left[newest])
        return None
    return {**states[newest], "listeners": stored, "attempt": 0}  # attempt 0 is a start


def _close(found):
    for number in found.values():
        os.close(number)


def _read(memory):
    """Return the document in a memfd, and close that."""
    with open(memory, encoding="utf-8") as stream:
        stream.seek(0)
        return json.load(stream)


def _complete(state, found):
    """Return ``state`` without the children that have ended; None if another descriptor than theirs is missing.

    systemd closes a stored channel when the process at its other end has ended.
    """
    children = state["adopted"]
    if not set(state["descriptors"]) - set(_descriptors(children)) <= set(found):
        return None
    living = [child for child in children if child["channel"] in found]
    adopted = [{**child, "estate": child["estate"] if child["estate"] in found else None} for child in living]
    return {**state, "adopted": adopted}


def _place(found, stored):
    """Give the descriptors in ``found``, {number: descriptor}, these numbers, and listeners others where they conflict.

    Return whether the numbers were free; otherwise nothing has changed but the numbers of listeners.
    """
    occupied = {*found.values(), *stored.values()}
    above = max(FIRST_FREE, *found, *occupied) + 1
    if any(_is_open(number) for number in found if number not in occupied):
        return False
    try:
        for table in (stored, found):
            for key, number in table.items():
                table[key] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above)
                os.close(number)
        for number, moved in found.items():
            found[number] = os.dup2(moved, number, inheritable=False)
            os.close(moved)
    except OSError:  # the limit of open files is lower than before
        return False
    for name, number in stored.items():
        stored[name] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE)
        os.close(number)
    return True


def _is_open(number):
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False
