# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program or process before has left: a state (reexec_state.py, restart_state.py), listeners, orphans."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..loop.log import Log
from . import listeners, notify, orphans, reexec_state, restart_state


class Left(NamedTuple):
    """``names`` are those of all that the service manager stores, empty if a program of this process has left it."""

    state: dict | None
    stored: dict[str, int]  # stored listeners: name and descriptor
    names: set[str]


def find() -> Left:
    """Return what has been left for this process; remove its variables from the environment."""
    state, stored = reexec_state.take(os.environ), notify.stored(os.environ)
    names = set(stored)
    if state is None:
        state = restart_state.take(stored)
    return Left(state, stored, names)


def adopt(left: Left, parts: reexec_state.Parts, waited_for: orphans.Orphans, log: Log):
    """Take over what has been left."""
    state, stored, names = left
    if names:
        parts.notifier.names = set(names)
        parts.notifier.store(stored)  # forgets the state, so that no later supervisor finds it
        log.event("listeners adopted", listeners=sorted(stored))
    if state is None:
        parts.listening.update(listeners.adopt(stored))
    elif not names:
        parts.adopt(state)
    else:
        parts.adopt({**state, "stored": sorted(parts.notifier.names)})
        log.event("workers adopted", processes=len(parts.pool.children))
    if state is not None or stored:
        waited_for.watch([pid for pid in orphans.find() if pid not in parts.pool.children])
        if waited_for:
            log.event("workers of the previous supervisor still drain", processes=len(waited_for))
