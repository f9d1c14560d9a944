# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who serves the worker slots: starting, replacing, covering and draining the supervisor's children.

A worker that dies is replaced, with a growing delay when it dies again and again; until its successor is ready a
sibling serves its slot beside its own, so the connections that arrive there wait for nobody. The checker is replaced in
the same way; without it the last states stay as they are.
"""

from __future__ import annotations

import os
import selectors
import signal
from functools import partial

from ..counters import heartbeat
from . import children
from .channel import FAILED, LOST, READY
from .children import CHECKER, DRAINING, SERVING, STARTING, WORKER

START_TIMEOUT = 10.0  # seconds for a new worker to be ready
START_PER_LISTENER = 0.005  # seconds on top; on a quiet machine it takes a worker 0.1 ms
DRAIN_GRACE = 5.0  # seconds after drain_timeout until a worker that is still there is killed
BACKOFF = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before a dead child is replaced, by deaths in a row
STEADY = 10.0  # seconds a child must have lived for its death to be the first in a row
# Processes that still drain, about 10 MB each; when there are more the oldest generations are stopped.
MOST_DRAINING = 128


class WorkerPool:
    """All children of a Supervisor by pid; ``logging`` are the settings of their logs."""

    def __init__(self, supervisor):
        self._supervisor = supervisor
        self._log = supervisor.log
        self._wheel = supervisor.timers
        self.children = {}
        self.restarts = 0  # of workers and checkers that ended by themselves
        self._deaths = {}  # in a row, by (role, slot)
        self._beats = heartbeat.Beats(supervisor.now())
        self._planned = set()  # (role, slot) the timers has a replacement of

    # -- who is there ----------------------------------------------------------------------------------------------

    def workers(self, generation, *states):
        """Return {slot: worker} of a generation: those in one of ``states``, or else all that do not drain."""
        return {
            child.slot: child
            for child in self.children.values()
            if child.role == WORKER
            and child.generation == generation.number
            and (child.state in states if states else child.state != DRAINING)
        }

    def complete(self, generation):
        """Whether every slot of a generation has a worker that is ready."""
        return len(self.workers(generation, SERVING)) == generation.slots

    def starting(self):
        """Whether any worker is not ready yet."""
        return any(child.state == STARTING for child in self.children.values())

    def of(self, number):
        """Return all children of the generation ``number``."""
        return [child for child in self.children.values() if child.generation == number]

    def tell(self, message):
        """Send a message to every child; returns those that can have it."""
        return [child for child in self.children.values() if child.channel.send(message)]

    # -- starting --------------------------------------------------------------------------------------------------

    def adopt(self, records):
        """Take over the children of the program before this one."""
        for record in records:
            child = children.Child.recorded(record)
            self.children[child.pid] = child
            self._listen_to(child)
            if child.kill_at is not None:
                self._wheel.add(child.kill_at, partial(self._kill_overdue, child))

    def start(self, generation):
        """Start a worker for every slot of a generation; raise OSError, and then none is left."""
        try:
            for slot in range(generation.slots):
                self._start(generation, WORKER, slot)
        except OSError:
            self.dismiss(generation)
            raise

    def dismiss(self, generation):
        """End everything of a generation that will not serve."""
        for child in self.of(generation.number):
            child.state = DRAINING  # nobody is to be told of its end
            child.signal(signal.SIGKILL)

    def _start(self, generation, role, slot):
        supervisor = self._supervisor
        arguments = (supervisor.held, supervisor.logging(generation), supervisor.now())
        inherited = supervisor.inherited()
        if role == WORKER:
            estates = self._estates(generation, slot)
            numbers = {estate.fileno() for estate in estates}
            inherited = [number for number in inherited if number not in numbers]
            child = children.start_worker(generation, slot, *arguments, inherited, estates)
            patience = START_TIMEOUT + START_PER_LISTENER * len(supervisor.held)
            self._wheel.add(supervisor.now() + patience, partial(self._start_overdue, child, patience))
        else:
            child = children.start_checker(generation, *arguments, inherited)
        self.children[child.pid] = child
        self._listen_to(child)

    def _estates(self, generation, slot):
        """Return what the workers of older generations leave, whose sockets the one of ``slot`` is to serve."""
        return [
            child.estate
            for child in self.children.values()
            if child.estate is not None
            and child.generation < generation.number
            and child.slot % generation.slots == slot
        ]

    def _listen_to(self, child):
        self._supervisor.selector.register(child.channel, selectors.EVENT_READ, partial(self._hear, child))

    def _hear(self, child):
        messages, gone = child.channel.receive()
        for message in messages:
            child.failure = message.get(FAILED, child.failure)
            if LOST in message:
                self._log.event("message lost", level="error", worker=child.pid, reason=message[LOST])
            if "answer" in message:
                self._supervisor.answered(child, message)
            if READY in message and child.state == STARTING:
                child.state = SERVING
                self._cover()
                self._supervisor.worker_ready(child)
        if gone:
            self._supervisor.selector.unregister(child.channel)
            child.signal(signal.SIGKILL)  # it can only be ending; ended() does the rest

    def _start_overdue(self, child, patience):
        if child.state == STARTING and child.pid in self.children:
            child.failure = f"it was not ready within {patience:g} s"
            child.signal(signal.SIGKILL)

    # -- draining --------------------------------------------------------------------------------------------------

    def drain(self, child, timeout):
        """Have a worker take no new connections and end; a checker just ends."""
        child.state = DRAINING
        child.signal(signal.SIGTERM)
        child.kill_at = self._supervisor.now() + timeout + DRAIN_GRACE
        self._wheel.add(child.kill_at, partial(self._kill_overdue, child))

    def drain_all_but(self, generation, timeout):
        """Drain whatever is not of ``generation`` (None: everything), and stop the oldest that still drain."""
        for child in self.children.values():
            if child.state != DRAINING and (generation is None or child.generation != generation.number):
                if generation is not None and child.role == WORKER:
                    child.channel.send({"hand_over": True})
                self.drain(child, timeout)
        for child in beyond(MOST_DRAINING, [one for one in self.children.values() if one.state == DRAINING]):
            child.signal(signal.SIGTERM)  # the second one: now

    def signal_all(self, number):
        """Send every child a signal."""
        for child in self.children.values():
            child.signal(number)

    def silent(self, child):
        """Return for how many seconds a child has not written the time, None where it does not yet, or never."""
        region = self._supervisor.region_of(child.generation)
        beat = region.beat(child.slot if child.role == WORKER else region.slots) if region else None
        if beat is None or child.state == STARTING:
            return None
        return self._supervisor.now() - max(beat, child.started)

    def watch(self):
        """Kill those that hang; they are replaced, and a sibling serves who waits."""
        now = self._supervisor.now()
        silent = {child.pid: self.silent(child) for child in self.children.values() if not child.hangs}
        times = {pid: now - seconds for pid, seconds in silent.items() if seconds is not None}
        for pid, reason in self._beats.look(now, times).items():
            child = self.children[pid]
            child.hangs, child.failure = True, reason
            self._log.event(f"{child.role} hangs", level="error", worker=pid, slot=child.slot, reason=reason)
            child.signal(signal.SIGKILL)

    def _kill_overdue(self, child):
        if child.pid in self.children:
            self._log.event(
                "worker killed", level="warning", worker=child.pid, reason="still there after its drain timeout"
            )
            child.signal(signal.SIGKILL)

    # -- the dead --------------------------------------------------------------------------------------------------

    def ended(self, pid, code):
        """Take note of the end of a process; returns its Child, None when it was none of ours."""
        child = self.children.pop(pid, None)
        if child is None:
            return None
        selector = self._supervisor.selector
        if child.channel in selector.get_map():
            messages, _gone = child.channel.receive()  # its last words
            for message in messages:
                child.failure = message.get(FAILED, child.failure)
            selector.unregister(child.channel)
        child.close()
        self._log.event(
            f"{child.role} ended",
            worker=pid,
            slot=child.slot,
            of_generation=child.generation,
            state=child.state,
            code=code,
            reason=child.failure,
        )
        return child

    def replace(self, child):
        """Plan a successor for a child of the serving generation, and have a sibling cover its slot."""
        key = (child.role, child.slot)
        if self._supervisor.now() - child.started > STEADY:
            self._deaths.pop(key, None)
        deaths = self._deaths.get(key, 0)
        self._deaths[key] = deaths + 1
        self.restarts += 1
        delay = BACKOFF[min(deaths, len(BACKOFF) - 1)]
        self._log.event(
            f"{child.role} to be replaced", level="warning", slot=child.slot, delay=delay, deaths_in_a_row=deaths + 1
        )
        self._plan(key, delay)
        self._cover()

    def settled(self):
        """A new generation serves: what died before it is of no account."""
        self._deaths.clear()

    def fill(self):
        """See that every slot of the serving generation, and its checker, has somebody or is about to."""
        serving = self._supervisor.serving
        there = {(child.role, child.slot) for child in self.of(serving.number) if child.state != DRAINING}
        wanted = {(WORKER, slot) for slot in range(serving.slots)} | {(CHECKER, 0)}
        for key in sorted(wanted - there - self._planned):
            self._plan(key, 0.0)

    def _plan(self, key, delay):
        self._planned.add(key)
        self._wheel.add(self._supervisor.now() + delay, partial(self._replace, key))

    def _replace(self, key):
        self._planned.discard(key)
        supervisor, (role, slot) = self._supervisor, key
        serving = supervisor.serving
        there = {(child.role, child.slot) for child in self.of(serving.number) if child.state != DRAINING}
        if supervisor.stopping or key in there or slot >= serving.slots:
            return
        if serving.config is None:
            reason = "its config is of another version; reload a valid one"
            self._log.event(f"{role} not replaced", level="error", reason=reason)
            return
        try:
            self._start(serving, role, slot)
        except OSError as error:
            self._log.event(f"{role} not started", level="error", reason=str(error))
            self._plan(key, BACKOFF[-1])

    def _cover(self):
        """Share the slots that nobody serves among the workers that are left."""
        serving = self._supervisor.serving
        if serving is None:
            return
        alive = self.workers(serving, SERVING)
        orphans = [slot for slot in range(serving.slots) if slot not in alive]
        covering: dict[int, list[int]] = {slot: [] for slot in alive}
        for number, orphan in enumerate(orphans if alive else ()):
            covering[sorted(alive)[number % len(alive)]].append(orphan)
        for slot, child in alive.items():
            if child.covers != covering[slot]:
                child.covers = covering[slot]
                child.channel.send({"cover": child.covers})


def beyond(most, draining):
    """Return those of the oldest generations among ``draining`` children without whom there are ``most`` or fewer."""
    found: list = []
    for number in sorted({child.generation for child in draining}):
        if len(draining) - len(found) <= most:
            break
        found += [child for child in draining if child.generation == number]
    return found


def reap():
    """Yield (pid, exit code) of every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)
