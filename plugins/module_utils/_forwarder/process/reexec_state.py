# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that the supervisor hands over at a reload to the program that replaces it by exec.

It is a JSON document in a memfd, which has no size limit (an environment variable has, 128 KiB) and no path. Sockets
and channels are in it by name, with the numbers of their file descriptors, which stay open. An environment variable
has the pid and the descriptor of the memfd; the pid keeps any other process from using it.

The keys are a protocol between versions: a program must accept the state of any version since 0.1.0.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from ..admin.server import Servers
from ..counters.overrides import Overrides
from . import listeners
from .deny_lists import DenyLists
from .generation import Generations
from .lock import Lock
from .log_settings import LogSettings
from .notify import Notifier
from .old_generations import OldGenerations
from .reload_results import ReloadResults
from .worker_pool import WorkerPool

VARIABLE = "L4PROXY_HANDOVER"
SCHEMA = 1


@dataclass(frozen=True)
class Parts:
    """The parts of the supervisor whose state is handed over; ``listening`` are the listening sockets by name."""

    listening: dict[str, socket.socket]
    servers: Servers
    generations: Generations
    overrides: Overrides
    log_settings: LogSettings
    results: ReloadResults
    pool: WorkerPool
    old: OldGenerations
    notifier: Notifier
    lock: Lock
    deny_lists: DenyLists

    def collect(self) -> tuple[dict, list[int]]:
        """Return the state, and the file descriptors that must stay open for the next program."""
        listening = {name: sock.fileno() for name, sock in self.listening.items()}
        servers = self.servers.listening()
        state = {
            "listeners": listening,
            "endpoints": servers,
            **self.pool.records(),
            **self.generations.records(),
            **self.old.records(),
            "orders": self.overrides.records(),
            "withdrawn": self.overrides.withdrawn,
            "log_level": self.log_settings.override,
            **self.results.records(),
            "stored": sorted(self.notifier.names),
            "lock": self.lock.fd,
            "denied": self.deny_lists.state(),
        }
        descriptors = [*listening.values(), *servers.values(), *self.pool.descriptors()]
        return state, [*descriptors, *self.memory(), *self.lock.descriptors()]

    def memory(self) -> list[int]:
        """Return the file descriptors of memory that the state names."""
        return [*self.generations.descriptors(), *self.deny_lists.kept()]

    def adopt(self, state: dict):
        """Take over the state of the previous program."""
        self.listening.update(listeners.adopt(state["listeners"]))
        self.generations.adopt(state)
        self.overrides.adopt(state["orders"])
        self.overrides.withdrawn = state.get("withdrawn")  # version 0.1.0 has none
        self.deny_lists.take_over(state.get("denied", {}))  # earlier versions have none
        self.log_settings.override = state["log_level"]
        self.results.adopt(state)
        self.notifier.names = set(state["stored"])
        self.lock.fd = state.get("lock")  # version 0.1.0 has none
        self.pool.adopt(state)
        self.old.adopt(state)
        self.servers.adopt(state["endpoints"])


def leave(state, descriptors):
    """Return {name: value} of the environment variable by which the next program finds ``state``; raise OSError.

    ``descriptors``, and that of the document, will stay open over an exec.
    """
    memory = os.memfd_create("l4proxy-handover", 0)
    variable = {VARIABLE: f"{os.getpid()}:{memory}"}
    try:
        with open(memory, "w", encoding="utf-8", closefd=False) as stream:
            json.dump({"schema": SCHEMA, **state}, stream)
        for number in descriptors:
            os.set_inheritable(number, True)
    except BaseException:
        recall(variable, descriptors)
        raise
    return variable


def recall(variable, descriptors):
    """Undo leave(), because the exec has failed."""
    os.close(int(variable[VARIABLE].partition(":")[2]))
    for number in descriptors:
        os.set_inheritable(number, False)


def take(environ):
    """Return the state left for this process, or None; remove the variable from ``environ``."""
    pid, _colon, number = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()):
        return None
    with open(int(number), encoding="utf-8") as stream:
        stream.seek(0)
        return json.load(stream)
