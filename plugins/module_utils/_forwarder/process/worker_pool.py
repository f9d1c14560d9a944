# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker pool: spawns, replaces, drains and kills the supervisor's children, the workers and the checker.

A child that dies is replaced, after a delay that grows if it dies again soon. Until the new worker is ready another
worker covers its slot, so connections that arrive there do not wait. Without a checker the last health states stay.
"""

from __future__ import annotations

import selectors
import signal
import socket
from functools import partial
from typing import Protocol

from ..admin.snapshot import Process
from ..counters import heartbeat
from . import children
from .backoff import LONGEST_DELAY, Deaths
from .channel import FAILED, LOST, READY
from .children import CHECKER, DRAINING, SERVING, STARTING, WORKER, Child
from .generation import Generation, Generations
from .log_settings import LogSettings
from .supervisor_loop import SupervisorLoop

START_TIMEOUT = 10.0  # seconds for a new worker to become ready
START_PER_LISTENER = 0.005  # additional seconds; on an idle machine a worker needs 0.1 ms
ABORT_GRACE = 1.0  # seconds from its deadline until a draining worker that goes on is told again to end its sessions
DRAIN_GRACE = 5.0  # seconds from its deadline until a draining worker is killed
ANSWERS = {"answer", "received", "prepared", "using"}  # keys of messages that answer one of ours


class Owner(Protocol):
    """What the pool uses of the supervisor."""

    def inherited_descriptors(self) -> list[int]:
        """Return the file descriptors that a forked child must close."""

    def worker_ready(self, child: Child) -> None:
        """Called when a worker is ready to serve."""

    def worker_answered(self, child: Child, message: dict) -> None:
        """Called with the answer of a worker to a question, or to a message of a change in place."""

    def child_ended(self, pid: int, code: int | None) -> None:
        """Called when a child has ended; ``code`` is None if it was an adopted one."""


class WorkerPool:
    """All children of the supervisor; ``listening`` are its listening sockets by name."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        listening: dict[str, socket.socket],
        log_settings: LogSettings,
        owner: Owner,
    ):
        self._loop = loop
        self._generations = generations
        self._listening = listening
        self._log_settings = log_settings
        self._owner = owner
        self.children: dict[int, Child] = {}  # by pid
        self.restarts = 0  # number of children that ended unexpectedly
        self.stopping = False
        self._deaths, self.heartbeats = Deaths(), heartbeat.Monitor(loop.now())
        self._planned: set[tuple[str, int]] = set()  # (role, slot) of replacements that a timer will spawn
        self.denied: tuple[int, tuple] = 0, ()  # the number and the tables of deny_lists.py

    # -- queries ---------------------------------------------------------------------------------------------------

    def complete(self, generation: Generation) -> bool:
        """Whether every slot of a generation has a worker that is ready."""
        return len(self.serving(generation)) == generation.slots

    def starting(self) -> bool:
        """Whether any worker is not ready yet."""
        return any(child.state == STARTING for child in self.children.values())

    def of(self, number: int) -> list[Child]:
        """Return all children of the generation ``number``."""
        return [child for child in self.children.values() if child.generation == number]

    def is_needed(self, number: int) -> bool:
        """Whether a child counts in the memory of the generation ``number``."""
        return any(number in _counts_in(child) for child in self.children.values())

    def serving(self, generation: Generation) -> dict[int, Child]:
        """Return {slot: worker} of the workers of a generation that are ready."""
        workers = (child for child in self.of(generation.number) if child.role == WORKER and child.state == SERVING)
        return {child.slot: child for child in workers}

    def processes(self, role: str) -> list[Process]:
        """Return the children of one role, WORKER or CHECKER, for the status."""
        return [self._process(child) for child in self.children.values() if child.role == role]

    def descriptors(self) -> list[int]:
        """Return the file descriptors that lead to children."""
        return [number for child in self.children.values() for number in child.descriptors()]

    def _process(self, child):
        return Process(
            pid=child.pid,
            slot=child.slot,
            generation=child.generation,
            state=child.state,
            started=child.started,
            covers=child.covers,
            silent=self._silent_seconds(child),
            sessions=self.sessions(child),
        )

    def sessions(self, child: Child) -> int:
        """Return the number of open sessions of a worker."""
        regions = map(self._generations.region_of, _counts_in(child))
        return sum(region.sessions(child.slot) for region in regions if region)

    def _occupied(self, generation):
        """Return the (role, slot) of all children of a generation that do not drain."""
        return {(child.role, child.slot) for child in self.of(generation.number) if child.state != DRAINING}

    # -- spawning --------------------------------------------------------------------------------------------------

    def records(self) -> dict:
        """Return all children as JSON for the next program. Version 0.1.0 ignores the adopted ones (orphans.py)."""
        children = self.children.values()
        return {
            "children": [child.record() for child in children if child.born is None],
            "adopted": [{**child.record(), "born": child.born} for child in children if child.born is not None],
            "holds": {child.pid: sorted(child.holds) for child in children if child.holds},
            "restarts": self.restarts,
        }

    def adopt(self, records: dict):
        """Take over the records() of the previous program; other keys are ignored."""
        self.restarts = records["restarts"]
        for record in (*records["children"], *records.get("adopted", ())):
            child = Child.adopt(record)
            child.holds.update(records.get("holds", {}).get(str(child.pid), ()))
            self._add(child)
            if child.kill_at is not None:
                self._await_deadline(child)
        counting = {(number, child.slot) for child in self.children.values() for number in _counts_in(child)}
        self._generations.forget_all_but(counting)  # a worker may have died while there was no supervisor

    def spawn_workers(self, generation: Generation):
        """Spawn a worker for every slot of a generation; raise OSError if one cannot be, and then keep none."""
        try:
            for slot in range(generation.slots):
                self._spawn(generation, WORKER, slot)
        except OSError:
            self.dismiss(generation)
            raise

    def dismiss(self, generation: Generation):
        """Kill all workers of a candidate that will not become live."""
        for child in self.of(generation.number):
            child.state = DRAINING  # so that its exit is not treated as a failure
            child.signal(signal.SIGKILL)

    def _spawn(self, generation, role, slot):
        loop = self._loop
        arguments = (self._listening, self._log_settings.of(generation), loop.now())
        inherited, others = self._owner.inherited_descriptors(), self._generations.others(generation)
        if role == WORKER:
            handovers = self._handovers(generation, slot)
            inherited = sorted({*inherited} - {sock.fileno() for sock in handovers})
            child = children.spawn_worker(generation, slot, *arguments, inherited, others, handovers, self.denied[1])
            child.denied = self.denied[0]
            timeout = START_TIMEOUT + START_PER_LISTENER * len(self._listening)
            loop.call_later(timeout, partial(self._start_overdue, child, timeout))
        else:
            child = children.spawn_checker(generation, *arguments, inherited, others, self.denied[1])
        self._add(child)

    def _handovers(self, generation, slot):
        """Return the handover sockets of the workers of older generations whose UDP sessions this slot continues."""
        return [
            child.handover
            for child in self.children.values()
            if child.handover is not None
            and child.generation < generation.number
            and child.slot % generation.slots == slot
        ]

    def _add(self, child):
        self.children[child.pid] = child
        self._loop.selector.register(child.channel, selectors.EVENT_READ, partial(self._receive, child))

    def _receive(self, child):
        messages, closed = child.channel.receive()
        for message in messages:
            self._note(child, message)
            if LOST in message:
                self._loop.log.event("message lost", level="error", worker=child.pid, reason=message[LOST])
            child.holds.discard(message.get("released"))
            if ANSWERS & message.keys():
                self._owner.worker_answered(child, message)
            if READY in message and child.state == STARTING:
                child.state = SERVING
                self._cover_free_slots()
                self._owner.worker_ready(child)
        if closed:
            self._loop.selector.unregister(child.channel)
            child.signal(signal.SIGKILL)  # it is exiting
            if child.born is not None:  # no SIGCHLD will come
                self._owner.child_ended(child.pid, None)

    def _note(self, child, message):
        child.failure = message.get(FAILED, child.failure)
        if "down" in message:  # backends, see down_backends.py
            self.send({"down": message["down"]})

    def _start_overdue(self, child, timeout):
        if child.state == STARTING and child.pid in self.children:
            child.failure = f"the worker was not ready within {timeout:g} s"
            child.signal(signal.SIGKILL)

    # -- messages and signals --------------------------------------------------------------------------------------

    def send(self, message: dict, generation: int | None = None) -> list[Child]:
        """Send a message to every child, or those of one generation; return those that received it."""
        wanted = self.children.values() if generation is None else self.of(generation)
        return [child for child in wanted if child.channel.send(message)]

    def signal_all(self, number: int):
        """Send a signal to every child; one that may not be signalled is told to end its sessions."""
        for child in self.children.values():
            if not child.signal(number):
                child.channel.send({"drain_deadline": 0})

    # -- draining --------------------------------------------------------------------------------------------------

    def stop(self, timeout: float):
        """Drain all children within ``timeout`` seconds, and replace none from here on."""
        self.stopping = True
        self._drain(list(self.children.values()), timeout)

    def drain_all_but(self, generation: Generation, timeout: float | None):
        """Drain the children of all other generations. Their workers hand UDP sessions over to new workers.

        ``timeout`` in seconds holds for those that drain already, too; None: until their connections have ended.
        """
        others = [child for child in self.children.values() if child.generation != generation.number]
        for child in others:
            if child.role == WORKER and child.state != DRAINING:
                child.channel.send({"hand_over": True})
        self._drain(others, timeout)

    def drain_and_replace(self, child: Child, timeout: float | None):
        """Drain a worker that has not taken the config of the live generation; spawn one that does."""
        child.channel.send({"hand_over": True})
        self._drain([child], timeout)
        self.restarts += 1
        self.fill()
        self._cover_free_slots()

    def _drain(self, drained, timeout):
        for child in drained:
            child.channel.send({"drain_deadline": timeout})
            if child.state != DRAINING:
                child.state = DRAINING
                if not child.signal(signal.SIGTERM):
                    child.channel.send({"drain": True})
            kill_at = float("inf") if timeout is None else self._loop.now() + timeout + DRAIN_GRACE
            if kill_at < (child.kill_at or float("inf")):
                child.kill_at = kill_at
                self._await_deadline(child)

    def _await_deadline(self, child):
        """Kill a draining child a little after its deadline. A worker of another version may not know a deadline."""
        timers = self._loop.timers
        timers.add(child.kill_at - DRAIN_GRACE + ABORT_GRACE, partial(self._end_sessions, child))
        timers.add(child.kill_at, partial(self._kill_overdue, child))

    def _end_sessions(self, child: Child):
        if self.children.get(child.pid) is child:
            child.signal(signal.SIGTERM)  # the second SIGTERM ends a worker at once

    def _kill_overdue(self, child: Child):
        if self.children.get(child.pid) is child:
            reason = "it had not ended after its drain timeout"
            self._loop.log.event("worker killed", level="warning", worker=child.pid, reason=reason)
            child.signal(signal.SIGKILL)

    # -- heartbeats ------------------------------------------------------------------------------------------------

    def kill_hanging(self):
        """Kill the children that hang; they are replaced like any child that dies."""
        now = self._loop.now()
        silent = {child.pid: self._silent_seconds(child) for child in self.children.values() if not child.hangs}
        beats = {pid: now - seconds for pid, seconds in silent.items() if seconds is not None}
        for pid, reason in self.heartbeats.check(now, beats).items():
            child = self.children[pid]
            child.hangs, child.failure = True, reason
            self._loop.log.event(f"{child.role} hangs", level="error", worker=pid, slot=child.slot, reason=reason)
            child.signal(signal.SIGKILL)

    def _silent_seconds(self, child):
        """Return the seconds since a child's last heartbeat, or its start; None if it starts, or never writes one."""
        region = self._generations.region_of(child.generation)
        place = child.slot if child.role == WORKER or not region else region.slots
        if not region or region.beat_cell(place) is None or child.state == STARTING:
            return None
        return self._loop.now() - max(region.beat(place) or 0, child.started, self.heartbeats.since(self._loop.now()))

    # -- replacing -------------------------------------------------------------------------------------------------

    def reaped(self, pid: int, code: int | None) -> Child | None:
        """Forget a process that has ended; return its Child, None if it was not in the pool."""
        child = self.children.pop(pid, None)
        if child is None:
            return None
        selector = self._loop.selector
        if child.channel in selector.get_map():
            messages, _closed = child.channel.receive()  # may contain the reason of its end, or its last answer
            for message in messages:
                self._note(child, message)
                if "answer" in message:
                    self._owner.worker_answered(child, message)
            selector.unregister(child.channel)
        child.close()
        if child.role == WORKER:
            self._generations.forget_sessions(_counts_in(child), child.slot)
        self._loop.log.event(
            f"{child.role} ended",
            worker=pid,
            slot=child.slot,
            of_generation=child.generation,
            state=child.state,
            code=code,
            reason=child.failure,
        )
        return child

    def replace(self, child: Child):
        """Plan the replacement of a dead child of the live generation; another worker covers its slot meanwhile."""
        key = (child.role, child.slot)
        deaths, delay = self._deaths.count(key, self._loop.now() - child.started)
        self.restarts += 1
        self._loop.log.event(
            f"{child.role} to be replaced", level="warning", slot=child.slot, delay=delay, deaths_in_a_row=deaths
        )
        self._plan(key, delay)
        self._cover_free_slots()

    def forget_deaths(self):
        """Start counting deaths anew, for a generation that has become live."""
        self._deaths = Deaths()

    def fill(self):
        """Plan a child for every slot of the live generation, and for its checker, that has none."""
        live = self._generations.live
        required = {(WORKER, slot) for slot in range(live.slots)} | {(CHECKER, 0)}
        for key in sorted(required - self._occupied(live) - self._planned):
            self._plan(key, 0.0)

    def _plan(self, key, delay):
        self._planned.add(key)
        self._loop.call_later(delay, partial(self._spawn_planned, key))

    def _spawn_planned(self, key):
        self._planned.discard(key)
        role, slot = key
        live = self._generations.live
        if self.stopping or key in self._occupied(live) or slot >= live.slots:
            return
        if live.config is None:
            reason = "this version cannot read the config that another version has loaded; reload with a valid config"
            self._loop.log.event(f"{role} not replaced", level="error", reason=reason)
            return
        try:
            self._spawn(live, role, slot)
        except OSError as error:
            self._loop.log.event(f"{role} not started", level="error", reason=str(error))
            self._plan(key, LONGEST_DELAY)

    def _cover_free_slots(self):
        """Distribute the slots of the live generation that have no ready worker among the workers that are ready."""
        live = self._generations.live
        if live is None:
            return
        workers = self.serving(live)
        free = [slot for slot in range(live.slots) if slot not in workers]
        covers: dict[int, list[int]] = {slot: [] for slot in workers}
        for number, slot in enumerate(free if workers else ()):
            covers[sorted(workers)[number % len(workers)]].append(slot)
        for slot, child in workers.items():
            if child.covers != covers[slot]:
                child.covers = covers[slot]
                child.channel.send({"cover": child.covers})


def _counts_in(child):
    """Return the numbers of the generations in whose memory a worker counts."""
    return {child.generation, *child.holds}
