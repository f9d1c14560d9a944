# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Old generations: workers that a reload has replaced and that keep their last connections.

They have no deadline unless the config sets one, so their memory is bounded instead: when all of them together use more
than ``drain_memory``, the oldest one is ended. An operator can end one as well (``l4proxy kill --generation N``). Their
sessions of what leaves the config end at the deadline of the removal.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ..admin.snapshot import OldGeneration
from . import children, removals
from .generation import Generation, Generations
from .orphans import Orphans
from .supervisor_loop import SupervisorLoop
from .worker_pool import DRAIN_GRACE, WorkerPool

MEASURE_INTERVAL = 10.0  # seconds between two measurements of memory while workers drain
SETTLED = 1.0  # seconds after which workers without a connection have ended
MIB = 1 << 20


class OldGenerations:
    """The generations of which workers still drain. ``sessions_ended`` counts what the bound of memory has ended."""

    def __init__(self, loop: SupervisorLoop, pool: WorkerPool, generations: Generations, orphans: Orphans):
        self._orphans = orphans  # are the oldest, but nothing is known of them
        self._loop = loop
        self._pool = pool
        self._generations = generations
        self._known: dict[int, dict[str, Any]] = {}  # number -> {"version", "archive", "loaded_at", "since"}
        self._memory: dict[int, int] = {}  # number -> bytes at the last measurement
        self._measured_at = 0.0
        self._config: Any = None  # the config.Config that was live at the last follow()
        self.sessions_ended = 0

    def records(self) -> dict:
        """Return what is known as JSON for the next program."""
        return {"old_generations": self._known, "drain_memory_ended": self.sessions_ended}

    def adopt(self, state: dict):
        """Take over the records() of the previous program; version 0.1.0 has none."""
        self._known = {int(number): known for number, known in state.get("old_generations", {}).items()}
        self.sessions_ended = state.get("drain_memory_ended", 0)
        self._config = self._generations.live.config

    def note(self, generation: Generation):
        """Note a generation that begins to drain now."""
        description = generation.description()
        kept = {key: description[key] for key in ("version", "archive", "loaded_at")}
        self._known[generation.number] = {**kept, "since": self._loop.now()}
        self._measured_at = self._loop.now() - MEASURE_INTERVAL + SETTLED

    def follow(self):
        """Tell the old generations what the config that has become live does not have any more."""
        before, self._config = self._config, self._generations.live.config
        workers = [child for children_ in self._workers().values() for child in children_]
        if before is None or not workers:
            return
        for removal in removals.between(before, self._config):
            for child in workers:
                child.channel.send({"removed": removal})

    def entries(self) -> list[OldGeneration]:
        """Return what the status shows of them, the oldest first."""
        return [self._entry(number, workers) for number, workers in self._workers().items()]

    def _entry(self, number, workers):
        now = self._loop.now()
        known = self._known.get(number, {})
        deadlines = [child.kill_at - DRAIN_GRACE for child in workers if child.kill_at is not None]
        return OldGeneration(
            number=number,
            version=known.get("version"),
            archive=known.get("archive"),
            loaded_at=known.get("loaded_at"),
            since=known.get("since", max(child.started for child in workers)),
            workers=len(workers),
            sessions=sum(map(self._pool.sessions, workers)),
            memory=self._memory.get(number, 0),
            seconds_left=max(0.0, min(deadlines) - now) if deadlines else None,
        )

    def _workers(self):
        """Return {number: [its workers]} of the generations that drain, the oldest first."""
        live = self._generations.live
        found: dict[int, list[children.Child]] = {}
        for child in self._pool.children.values():
            if child.role == children.WORKER and child.state == children.DRAINING and child.generation != live.number:
                found.setdefault(child.generation, []).append(child)
        return dict(sorted(found.items()))

    # -- ending them -----------------------------------------------------------------------------------------------

    def end(self, number: int, reason: str) -> int | None:
        """End all connections of an old generation; return how many they were, None if it is none.

        The workers of every version do that at the second SIGTERM.
        """
        workers = self._workers().get(number)
        if workers is None:
            return None
        sessions = sum(map(self._pool.sessions, workers))
        self._loop.log.event(
            "generation ended", level="warning", of_generation=number, reason=reason, sessions=sessions
        )
        for child in workers:
            if not child.signal(signal.SIGTERM):  # it belongs to another user, because forwarder_user has changed
                child.channel.send({"kill": {"number": 0}})
        return sessions

    def check(self):
        """From time to time, while workers drain: measure their memory and keep it within the bound."""
        if self._loop.now() - self._measured_at >= MEASURE_INTERVAL:
            self.enforce_bound()

    def enforce_bound(self):
        """Measure the memory of all that drain; end the oldest generations until it is within the bound."""
        self._measured_at = self._loop.now()
        workers = self._workers()
        self._known = {number: known for number, known in self._known.items() if number in workers}
        self._memory = {number: sum(memory_of(child.pid) for child in those) for number, those in workers.items()}
        config = self._generations.live.config
        if config is None:
            return
        orphaned = sum(map(memory_of, self._orphans))
        total, most = sum(self._memory.values()) + orphaned, config.most_drain_memory
        if orphaned and total > most * MIB:
            self._loop.log.event("orphans ended", level="warning", reason=_too_much(total, most))
            self._orphans.signal(signal.SIGTERM)
            total -= orphaned
        for number in workers:
            if total <= most * MIB:
                return
            self.sessions_ended += self.end(number, _too_much(total, most)) or 0
            total -= self._memory[number]


def _too_much(total, most):
    return f"the draining workers use {total / MIB:.0f} MiB, more than drain_memory ({most} MiB)"


def memory_of(pid: int, proc: str = "/proc") -> int:
    """Return the bytes of memory of a process: its own pages and its share of those that several processes have.

    Where the kernel has no such number (CONFIG_PROC_PAGE_MONITOR), all its own pages. 0 if it has ended.
    """
    try:
        with open(f"{proc}/{pid}/smaps_rollup", encoding="ascii") as stream:
            return next(int(line.split()[1]) << 10 for line in stream if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        with open(f"{proc}/{pid}/statm", encoding="ascii") as stream:
            _size, resident, shared, *_others = map(int, stream.read().split())
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
