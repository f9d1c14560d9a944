# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor: holds the listeners, keeps a worker alive, and switches generations without losing a connection.

It never touches traffic. Signal handlers only enqueue; everything happens in one selector loop:

- SIGHUP: a reload (upgrade.py). Whatever fails on the way, the old worker goes on, and the runtime file and the log
  say why.
- SIGTERM, SIGINT: close the listeners, drain the workers, exit; the second one means now.
- SIGCHLD: a worker that died is replaced, with growing delay; connections wait in the backlog meanwhile.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections import deque
from functools import partial

from .._version import VERSION
from . import children, handover, listeners, notify, runtime
from . import generation as generations
from .children import DRAINING, SERVING, STARTING, Child
from .log import RETRY, Log
from .upgrade import Upgrade, command_line
from .wheel import Wheel

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
START_TIMEOUT = 10.0  # seconds for a new worker to be ready
DRAIN_GRACE = 5.0  # seconds after drain_timeout until a worker that is still there is killed
STOP_GRACE = 2.0  # seconds for a worker to end at once
BACKOFF = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before a dead worker is replaced, by deaths in a row
STEADY = 10.0  # seconds a worker must have lived for its death to be the first in a row
MOST_DRAINING = 4  # old workers; the oldest is stopped when there are more


def run(config_path):
    """Run the forwarder in the foreground until a signal ends it; returns the exit code."""
    left = handover.take(os.environ)
    return Supervisor(config_path).run(left)


class Supervisor:
    """One forwarder. ``serving`` is the generation that serves, ``candidate`` one whose worker is not ready yet."""

    def __init__(self, config_path):
        self.path = os.path.abspath(config_path)
        self.now = time.monotonic
        self.log = Log(pid=os.getpid(), role="supervisor")
        self.selector = selectors.EpollSelector()
        self.wheel = Wheel()
        self.archive = runtime.running_archive()
        self.runtime_file = runtime.path()
        self.held = {}  # listeners by name
        self.workers = {}  # Child by pid
        self.serving = None
        self.candidate = None
        self.stopping = 0  # how many times we were told to stop
        self.upgrade = Upgrade(self, command_line())
        self.last_reload = {"attempt": 0, "ok": True, "error": None, "at": runtime.timestamp()}
        self._deaths = 0  # of serving workers, in a row
        self._replacing = False  # whether the wheel has a replacement of the serving worker
        self._exit_code = 0
        self._signals = deque()
        self._wakeup = ()

    def run(self, left=None):
        """Serve until told to stop; ``left`` is what the program before this one handed over. Returns the exit code."""
        if left is not None:
            self._adopt(left)
        self._take_signals()
        self._begin()
        while not self._done():
            self._turn()
        if self.serving:
            runtime.remove(self.runtime_file)
        self.log.event("stopped")
        self.log.flush()
        return self._exit_code

    def _turn(self):
        timeout = self.wheel.timeout(self.now())
        if self.log.waiting:
            timeout = RETRY if timeout is None else min(RETRY, timeout)
        for key, _mask in self.selector.select(timeout):
            key.data()
        while self._signals:
            self._dispatch(self._signals.popleft())
        self.wheel.expire(self.now())
        if not self.stopping:
            self.upgrade.step()
        self.log.flush()

    def _done(self):
        return bool(self.stopping) and not self.workers

    # -- signals ---------------------------------------------------------------------------------------------------

    def _take_signals(self):
        """Install the handlers, then let in what an exec held back. The wakeup pipe ends the select."""
        read, write = self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(read, selectors.EVENT_READ, partial(os.read, read, 64))
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda caught, _frame: self._signals.append(caught))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._signals.append(signal.SIGCHLD)  # a child may have ended while nobody listened

    def _dispatch(self, number):
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self.upgrade.wanted = True
        else:
            self._stop(signal.Signals(number).name)

    def _stop(self, why):
        """The first time: no new connections, and drain. The second time: now."""
        self.stopping += 1
        self.log.event("stopping", reason=why, now=self.stopping > 1, workers=len(self.workers))
        if self.stopping == 1:
            notify.stopping()
            self.upgrade.cancel()
            listeners.close_all(self.held)  # before the workers: what they find queued afterwards is all there will be
            for child in self.workers.values():
                if child.state != DRAINING:
                    self._drain(child)
            return
        for child in self.workers.values():
            child.signal(signal.SIGTERM)  # their second one, too
        self.wheel.add(self.now() + STOP_GRACE, self._kill_all)

    def _kill_all(self):
        for child in self.workers.values():
            child.signal(signal.SIGKILL)

    # -- generations -----------------------------------------------------------------------------------------------

    def _adopt(self, left):
        """Take over what the program before this one held; its worker goes on serving."""
        self.held = listeners.adopt(left["listeners"])
        self.serving = generations.Generation.recorded(left["serving"])
        self.last_reload = left["last_reload"]
        self.upgrade.attempt = left["attempt"]
        for record in left["workers"]:
            child = self.workers[record["pid"]] = Child.recorded(record)
            if child.kill_at is not None:
                self.wheel.add(child.kill_at, partial(self._kill_overdue, child))
            if child.pid == left["worker"]:
                self.serving.worker = child

    def _begin(self):
        """Load the config and start a worker of it; what serves meanwhile is not touched."""
        number = self.serving.number + 1 if self.serving else 1
        try:
            self.candidate = generations.load(self.path, number, self.archive, self.held)
            self._start_worker(self.candidate)
        except generations.LoadError as error:
            self._candidate_failed(error.errors)
        except OSError as error:
            self._candidate_failed([f"no worker can be started: {error}"])

    def _candidate_failed(self, errors):
        if self.candidate:
            generations.abandon(self.candidate, self.held)
            self.candidate = None
        if self.serving:
            self.reload_failed("; ".join(errors))
            if self.serving.worker is None and not self._replacing:  # it was planned, but an exec forgets the wheel
                self._replace_after(0.0)
            return
        self.log.event("cannot start", errors=errors)
        sys.stderr.write("".join(f"l4proxy forward: {line}\n" for line in errors))
        self._exit_code = 1
        self.stopping = self.stopping or 1

    def _switch(self):
        """The candidate's worker is ready: it serves from here on, and all others drain."""
        generation, self.candidate = self.candidate, None
        for child in self.workers.values():
            if child is not generation.worker and child.state != DRAINING:
                self._drain(child)
        self.serving = generation
        self._deaths = 0
        listeners.settle(generation.config, self.held)
        generation.loaded_at = runtime.timestamp()
        self._record_reload(None)
        self.log.event(
            "serving",
            generation=generation.number,
            version=VERSION,
            config=generation.config_file,
            archive=self.archive,
            listeners=sorted(self.held),
        )
        notify.ready(f"generation {generation.number} serves {len(generation.config.services)} service(s)")
        draining = sorted((c for c in self.workers.values() if c.state == DRAINING), key=lambda c: c.generation)
        for child in draining[: max(0, len(draining) - MOST_DRAINING)]:
            child.signal(signal.SIGTERM)  # the second one: now

    def reload_failed(self, error):
        """What served goes on serving; say why nothing changed."""
        self._record_reload(error)
        self.log.event("reload failed", reason=error, serving=self.serving.number)
        notify.ready(f"generation {self.serving.number} serves; the last reload failed: {error}")

    def _record_reload(self, error):
        at = runtime.timestamp()
        self.last_reload = {"attempt": self.upgrade.attempt, "ok": error is None, "error": error, "at": at}
        pid = os.getpid()
        document = {"schema": runtime.SCHEMA, "pid": pid, "started": runtime.start_time(pid)}
        document.update(self.serving.description(), last_reload=self.last_reload)
        try:
            runtime.write(document, self.runtime_file)
        except OSError as failure:
            self.log.event("runtime file not written", path=self.runtime_file, reason=str(failure))

    # -- workers ---------------------------------------------------------------------------------------------------

    def inherited(self):
        """Return the descriptors a forked child must close: all pipes and the selector, but no listener."""
        numbers = [self.selector.fileno(), *self._wakeup, *self.upgrade.descriptors()]
        for child in self.workers.values():
            numbers.append(child.lifeline)
            if child.ready is not None:
                numbers.append(child.ready)
        return numbers

    def starting(self):
        """Whether any worker is not ready yet."""
        return any(child.state == STARTING for child in self.workers.values())

    def _start_worker(self, generation):
        child = children.start_worker(generation.config, self.held, generation.number, self.now(), self.inherited())
        generation.worker = child
        self.workers[child.pid] = child
        self.selector.register(child.ready, selectors.EVENT_READ, partial(self._hear, child))
        self.wheel.add(self.now() + START_TIMEOUT, partial(self._start_overdue, child))

    def _hear(self, child):
        """A worker that was started said something, or ended."""
        ready = child.hear()
        if ready is None:
            return
        self._close_ready(child)
        if not ready:
            child.signal(signal.SIGKILL)  # it can only be ending; _reap() does the rest
            return
        if child.state == STARTING:
            child.state = SERVING
        if self.candidate and child is self.candidate.worker and not self.stopping:
            self._switch()

    def _close_ready(self, child):
        if child.ready is not None:
            self.selector.unregister(child.ready)
            child.close_ready()

    def _start_overdue(self, child):
        if child.state == STARTING and child.pid in self.workers:
            child.said = f"it was not ready within {START_TIMEOUT:g} s".encode()
            child.signal(signal.SIGKILL)

    def _drain(self, child):
        child.state = DRAINING
        timeouts = [generation.drain_timeout for generation in (self.serving, self.candidate) if generation]
        child.kill_at = self.now() + max(timeouts, default=0) + DRAIN_GRACE
        child.signal(signal.SIGTERM)
        self.wheel.add(child.kill_at, partial(self._kill_overdue, child))

    def _kill_overdue(self, child):
        if child.pid in self.workers:
            self.log.event("worker killed", worker=child.pid, reason="still there after its drain timeout")
            child.signal(signal.SIGKILL)

    def _reap(self):
        """Take note of every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.workers:
                self._worker_ended(self.workers.pop(pid), os.waitstatus_to_exitcode(status))
            else:
                self.upgrade.child_ended(pid, os.waitstatus_to_exitcode(status))

    def _worker_ended(self, child, code):
        if child.ready is not None:
            child.hear()  # its last words
        self._close_ready(child)
        os.close(child.lifeline)
        self.log.event("worker ended", worker=child.pid, of_generation=child.generation, state=child.state, code=code)
        if self.stopping:
            return
        if self.candidate and child is self.candidate.worker:
            self._candidate_failed([f"the new worker failed: {child.why()}"])
        elif self.serving and child is self.serving.worker:
            self._plan_replacement(child)

    def _plan_replacement(self, child):
        self.serving.worker = None
        if self.now() - child.started > STEADY:
            self._deaths = 0
        delay = BACKOFF[min(self._deaths, len(BACKOFF) - 1)]
        self._deaths += 1
        self.log.event("worker to be replaced", delay=delay, deaths_in_a_row=self._deaths)
        self._replace_after(delay)

    def _replace_after(self, delay):
        self._replacing = True
        self.wheel.add(self.now() + delay, self._replace)

    def _replace(self):
        self._replacing = False
        if self.stopping or self.serving.worker is not None:
            return
        if self.serving.config is None:
            self.log.event("worker not replaced", reason="its config is of another version; reload a valid one")
            return
        try:
            self._start_worker(self.serving)
        except OSError as error:
            self.log.event("worker not started", reason=str(error))
            self._replace_after(BACKOFF[-1])
