# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that the supervisor leaves for a restart of the service: that of a reload (reexec_state.py), in systemd.

The leaving supervisor stores the document and the descriptors that it names beside the listeners (notify.py), and its
workers go on serving. The next supervisor gives the descriptors their numbers in the document again and takes the
workers over. They are not its children: it learns from their channels that they have ended.

The name of a stored socket is "tcp:handover-TIME:NUMBER#0", where TIME is when the supervisor left and NUMBER is the
descriptor's in the document. Version 0.1.0 takes everything in the store for a listener: it closes those that its
config does not need, so the old workers drain, but it cannot start with anything that is not a socket. So document and
shared memory are not stored themselves. They wait as a message in a socket, the BOX.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import time

from ..admin import runtime_file

BOX = DOCUMENT = 0  # the NUMBER of the box in the store, and of the document in the box
MOST_AT_ONCE = 250  # descriptors in a message; the kernel's bound is 253 (SCM_MAX_FD)
FIRST_FREE = 3  # lowest number of a descriptor besides those of standard input, output and error

_NAME = re.compile(r"tcp:handover-([0-9a-f]+):(\d+)#0\Z")


def is_name(name: str) -> bool:
    """Whether a name in systemd's store is that of a descriptor which a supervisor has left."""
    return bool(_NAME.match(name))


def leave(state: dict, regions: list[int]) -> dict[str, int]:
    """Return {name: descriptor} to store: a document with ``state``, of reexec_state.Parts, and what it names.

    ``regions`` are the descriptors of memory in it. The caller closes nothing: all of it ends with this process.
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
    sockets = [number for number in descriptors if stat.S_ISSOCK(os.fstat(number).st_mode)]
    files = {DOCUMENT: memory, **{number: number for number in descriptors if number not in sockets}}
    return {f"{left}:{BOX}#0": _pack(files), **{f"{left}:{number}#0": number for number in sockets}}


def _pack(files):
    """Return a socket, as a descriptor, from which ``files``, {number: descriptor}, can be received.

    A datagram socket does not hang up when its peer is closed; systemd would remove a socket that does.
    """
    box, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    numbers = list(files)
    with sender:
        for first in range(0, len(numbers), MOST_AT_ONCE):
            some = numbers[first : first + MOST_AT_ONCE]
            socket.send_fds(sender, [json.dumps(some).encode()], [files[number] for number in some])
    return box.detach()


def _unpack(box):
    """Return {number: descriptor} of what _pack() has put in, and close the box."""
    files: dict[int, int] = {}
    with socket.socket(fileno=box) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                data, descriptors, _flags, _address = socket.recv_fds(sock, 1 << 16, MOST_AT_ONCE)
                files.update(zip(json.loads(data), descriptors))
    return files


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
    for found in left.values():
        found.update(_unpack(found.pop(BOX)) if BOX in found else {})
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
