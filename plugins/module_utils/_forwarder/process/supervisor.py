# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor: holds the listeners, keeps its workers alive, and switches generations without losing a connection.

It never touches traffic. Signal handlers only enqueue; everything happens in one selector loop:

- SIGHUP: a reload (reload.py). Whatever fails on the way, the old workers go on, and the runtime file and the log
  say why.
- SIGTERM, SIGINT: close the listeners, drain the workers, exit; the second one means now.
- SIGUSR1: exit at once, for a restart of the service. The service manager keeps the listeners, so nobody is refused;
  the workers go on with what they have (orphans.py). Without a service manager it is SIGTERM.
- SIGCHLD: a child that died is replaced (worker_pool.py); a sibling serves its slot meanwhile.

The admin socket and the metrics (endpoint.py) are served in the same loop.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections import deque
from functools import partial

from ..._version import VERSION
from ..admin import commands, endpoint, http_views, runtime_file
from ..counters import heartbeat, totals
from ..counters.overrides import Overrides
from ..loop import own_addresses
from ..loop.log import RETRY, Log, places
from ..loop.timers import Timers
from . import children, listeners, lock, notify, orphans, reexec_state
from . import generation as generations
from .reload import Upgrade, command_line, internal
from .worker_pool import DRAIN_GRACE, WorkerPool, reap

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)
STOP_GRACE = 2.0  # seconds for a worker to end at once
NOT_KEPT = (
    "the service manager keeps no more sockets over a restart; a restart or the end of the supervisor resets the"
    " connections that wait in the others: name fewer ports or use fewer workers"
)
ABSENT = "this host does not have the address; the service is served there as soon as it has"
REST = 0.05  # seconds after a defect: what the selector has reported and nobody has taken comes again at once
ACCOUNT = heartbeat.INTERVAL  # seconds between two looks at what generations that still drain have open


def run(config_path):
    """Run the forwarder in the foreground until a signal ends it; returns the exit code."""
    left = reexec_state.take(os.environ)
    return Supervisor(config_path).run(left)


class Supervisor:
    """One forwarder. ``serving`` is the generation that serves, ``candidate`` one whose workers are not ready yet."""

    def __init__(self, config_path):
        self.path = os.path.abspath(config_path)
        self.now = time.monotonic
        self.log = Log(pid=os.getpid(), role="supervisor")
        self.selector = selectors.EpollSelector()
        self.timers = Timers()
        self.archive = runtime_file.running_archive()
        self.runtime_file = runtime_file.path()
        self.lock = lock.Lock(runtime_file.directory())
        self.held = {}  # listeners by name
        self.notifier = notify.Notifier(self.selector)
        self.pool = WorkerPool(self)
        self.orphans = orphans.Orphans(self.selector)
        self.serving = None
        self.candidate = None
        self.draining = {}  # regions of generations that end, by number
        self.generation_totals = totals.GenerationTotals()
        self.overrides = Overrides()
        self.log_level = None  # what an operator has said, instead of the config
        self.stopping = 0  # how many times we were told to stop
        self.leaving = False  # to a successor, which the service manager starts
        self.upgrade = Upgrade(self, command_line())
        self.last_reload = {"attempt": 0, "ok": True, "error": None, "at": runtime_file.timestamp()}
        self.reloads = {"ok": 0, "failed": 0}
        self.admin = commands.Admin(self)
        answers = {endpoint.ADMIN: self.admin.answer, endpoint.METRICS: partial(http_views.answer, self)}
        self.endpoints = endpoint.Endpoints(self, answers)
        self._exit_code = 0
        self._signals = deque()
        self._wakeup = ()

    def run(self, left=None):
        """Serve until told to stop; ``left`` is what the program before this one handed over. Returns the exit code."""
        children.name_process("supervisor")
        kept = notify.stored(os.environ)
        if left is not None:
            self._adopt(left)
        elif kept:
            self.held = listeners.adopt(kept)
            self.notifier.names = set(kept)
            self.log.event("listeners found", listeners=sorted(kept))
        if left is not None or kept:
            self.orphans = orphans.Orphans(self.selector, orphans.find())
            if self.orphans:
                self.log.event("workers of before still drain", processes=len(self.orphans))
        self._take_signals()
        self._begin()
        self._account()
        while not self._done():
            self._turn()
        self.endpoints.close()
        if self.serving and (runtime_file.read(self.runtime_file) or {}).get("pid") == os.getpid():
            runtime_file.remove(self.runtime_file)
        self.notifier.finish()
        self.log.event("stopped")
        self.log.flush()
        return self._exit_code

    def _turn(self):
        timeout = self.timers.timeout(self.now())
        if self.log.waiting:
            timeout = RETRY if timeout is None else min(RETRY, timeout)
        for key, _mask in self.selector.select(timeout):
            self._contained(key.data)
        while self._signals:
            self._contained(self._dispatch, self._signals.popleft())
        for item in self.timers.due(self.now()):
            self._contained(item)
        if not (self.stopping or self.leaving):
            self.upgrade.step()
        self.log.flush()

    def _contained(self, step, *arguments):
        """Do one thing; a defect in it is logged, and everything else goes on."""
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001
            self.log.event("defect", level="error", error=repr(error), trace=places(error))
            time.sleep(REST)

    def _done(self):
        if self.leaving:
            return True
        # One that cannot start waits for nobody: the service manager tries again.
        waiting = self.pool.children or (self.orphans and not self._exit_code)
        return bool(self.stopping) and not waiting

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
            for pid, code in reap():
                self._contained(self._child_ended, pid, code)
        elif number == signal.SIGHUP:
            self.upgrade.wanted = True
        elif number == signal.SIGUSR1 and self.held and self.notifier.names:
            self.leaving = True
            self.notifier.finish()
            self.upgrade.cancel()
            self.log.event("leaving", processes=len(self.pool.children))
        elif not self.leaving:
            self._stop(signal.Signals(number).name)

    def _stop(self, why):
        """The first time: no new connections, and drain. The second time: now."""
        self.stopping += 1
        self.log.event("stopping", reason=why, now=self.stopping > 1, processes=len(self.pool.children))
        if self.stopping == 1:
            self.notifier.stopping()
            self.notifier.keep({})
            self.upgrade.cancel()
            self.lock.release()
            listeners.close_all(self.held)  # before the workers: what they find queued afterwards is all there will be
            self.pool.drain_all_but(None, self._drain_timeout())
            self._bound_orphans(self._drain_timeout() + DRAIN_GRACE)
            return
        self.pool.signal_all(signal.SIGTERM)  # their second one, too
        self.timers.add(self.now() + STOP_GRACE, partial(self.pool.signal_all, signal.SIGKILL))
        self._bound_orphans(STOP_GRACE)

    def _bound_orphans(self, seconds):
        self.timers.add(self.now() + seconds, partial(self.orphans.signal, signal.SIGKILL))

    def _drain_timeout(self):
        timeouts = [generation.drain_timeout for generation in (self.serving, self.candidate) if generation]
        return max(timeouts, default=0)

    # -- generations -----------------------------------------------------------------------------------------------

    def handed_over(self):
        """Return the state the next program begins with, and the descriptors that must stay open for it."""
        held = {name: sock.fileno() for name, sock in self.held.items()}
        workers = [child.record() for child in self.pool.children.values()]
        endpoints = self.endpoints.listening()
        state = {
            "listeners": held,
            "endpoints": endpoints,
            "children": workers,
            "serving": self.serving.record(),
            "draining": {
                number: {"fd": region.fd, "record": region.record} for number, region in self.draining.items()
            },
            "ledger": self.generation_totals.records(),
            "orders": self.overrides.records(),
            "log_level": self.log_level,
            "last_reload": self.last_reload,
            "reloads": self.reloads,
            "restarts": self.pool.restarts,
            "attempt": self.upgrade.attempt,
            "stored": sorted(self.notifier.names),
            "lock": self.lock.fd,
        }
        regions = [self.serving.region.fd, *(region.fd for region in self.draining.values())]
        lines = [child[key] for child in workers for key in ("channel", "estate") if child[key] is not None]
        return state, [*held.values(), *endpoints.values(), *lines, *regions, *self.lock.descriptors()]

    def _adopt(self, left):
        """Take over what the program before this one held; its workers go on serving."""
        self.held = listeners.adopt(left["listeners"])
        self.serving = generations.Generation.recorded(left["serving"])
        self.draining = generations.recorded_regions(left["draining"])
        self.generation_totals = totals.GenerationTotals(left["ledger"])
        self.overrides = Overrides(left["orders"])
        self.log_level = left["log_level"]
        self.last_reload, self.reloads = left["last_reload"], left["reloads"]
        self.upgrade.attempt = left["attempt"]
        self.notifier.names = set(left["stored"])
        self.lock.fd = left.get("lock")  # an earlier version has none
        self.pool.restarts = left["restarts"]
        self.pool.adopt(left["children"])
        self.endpoints.adopt(left["endpoints"])

    def _begin(self):
        """Load the config and start workers of it; what serves meanwhile is not touched."""
        number = self.serving.number + 1 if self.serving else 1
        try:
            self._take_lock()
            alone = not (self.serving or self.orphans or orphans.find())
            self.candidate = generations.load(self.path, number, self.archive, self.held, self.endpoints, alone)
            if self.serving:
                checked = {service.name for service in self.candidate.config.services if service.checked}
                self.candidate.region.inherit(self.serving.region, checked)
            self.overrides.publish(self.candidate.region)
            self.pool.start(self.candidate)
        except generations.LoadError as error:
            self._candidate_failed(error.errors)
        except OSError as error:
            self._candidate_failed([f"no worker can be started: {error}"])
        except Exception as error:  # noqa: BLE001
            self._candidate_failed([internal(error)])

    def _take_lock(self):
        """Refuse to start beside another forwarder; one that serves goes on serving whatever there is."""
        try:
            self.lock.take()
        except lock.Held as error:
            if not self.serving:
                raise generations.LoadError([str(error)]) from None
            self.log.event("lock not taken", level="error", reason=str(error))
        except OSError as error:  # a directory that is full, read-only or not ours
            self.log.event("lock not taken", level="warning", reason=str(error))

    def _candidate_failed(self, errors):
        if self.candidate:
            self.pool.dismiss(self.candidate)
            generations.abandon(self.candidate, self.held)
            self.candidate = None
        if self.serving:
            self.reload_failed("; ".join(errors))
            self.pool.fill()  # replacements were planned, but an exec forgets the timers
            self._keep_listeners()  # what the program before this one had no time for
            return
        self.log.event("cannot start", level="error", errors=errors)
        sys.stderr.write("".join(f"l4proxy forward: {line}\n" for line in errors))
        self._exit_code = 1
        self.stopping = self.stopping or 1

    def worker_ready(self, child):
        """A worker has said that it is ready; with the last one of the candidate it serves."""
        candidate = self.candidate
        if candidate and child.generation == candidate.number and self.pool.complete(candidate) and not self.stopping:
            self._switch()

    def _switch(self):
        """All workers of the candidate are ready: it serves from here on, and all others drain."""
        generation, self.candidate = self.candidate, None
        timeout = max(generation.drain_timeout, self._drain_timeout())
        if self.serving:
            self.draining[self.serving.number] = self.serving.region
        self.serving = generation
        self.pool.drain_all_but(generation, timeout)
        self._bound_orphans(timeout + DRAIN_GRACE)
        self.pool.settled()
        self.pool.fill()  # the checker
        self._contained(listeners.settle, generation.config, generation.slots, self.held)
        self._contained(self._keep_listeners)
        self._contained(self.endpoints.settle, generation.config, generation.endpoints)
        self._contained(self.overrides.settle, generation.config)
        generation.loaded_at = runtime_file.timestamp()
        self._apply_log_settings()
        self._account_now()
        self._record_reload(None)
        self.log.event(
            "serving",
            generation=generation.number,
            version=VERSION,
            config=generation.config_file,
            archive=self.archive,
            workers=generation.slots,
            listeners=sorted(self.held),
        )
        for name, where in own_addresses.absent(generation.config.services).items():
            self.log.event("listen address absent", level="warning", service=name, listen=where, reason=ABSENT)
        for error in generation.warnings:
            self.log.event("endpoint not opened", level="error", reason=error)
        self.notifier.ready(f"generation {generation.number} serves {len(generation.config.services)} service(s)")

    def _keep_listeners(self):
        """Have the service manager keep what we hold, and say it where it cannot keep everything."""
        beyond = self.notifier.keep(self.held)
        if beyond:
            self.log.event("listeners not kept", level="warning", count=beyond, of=len(self.held), reason=NOT_KEPT)

    def reload_failed(self, error):
        """What served goes on serving; say why nothing changed."""
        self._record_reload(error)
        self.log.event("reload failed", level="error", reason=error, serving=self.serving.number)
        self.notifier.ready(f"generation {self.serving.number} serves; the last reload failed: {error}")

    def _record_reload(self, error):
        at = runtime_file.timestamp()
        self.last_reload = {"attempt": self.upgrade.attempt, "ok": error is None, "error": error, "at": at}
        if self.upgrade.attempt:
            self.reloads["ok" if error is None else "failed"] += 1
        pid = os.getpid()
        document = {"schema": runtime_file.SCHEMA, "pid": pid, "started": runtime_file.start_time(pid)}
        document.update(self.serving.description(), last_reload=self.last_reload)
        try:
            runtime_file.write(document, self.runtime_file)
        except OSError as failure:
            self.log.event("runtime file not written", level="error", path=self.runtime_file, reason=str(failure))

    # -- the log ---------------------------------------------------------------------------------------------------

    def logging(self, generation):
        """Return the settings of the log of a generation's processes."""
        return {"format": generation.config.log.format, "level": self.log_level or generation.config.log.level}

    def _apply_log_settings(self):
        settings = self.logging(self.serving)
        self.log.set_format(settings["format"])
        self.log.set_level(settings["level"])

    def set_log_level(self, level):
        """Write events of ``level`` and above, in all processes; None: what the config says."""
        self.log_level = level
        settings = self.logging(self.serving)
        self.log.set_level(settings["level"])
        self.pool.tell({"log_level": settings["level"]})

    # -- numbers ---------------------------------------------------------------------------------------------------

    def totals(self):
        """Return the Totals of all generations."""
        return self.generation_totals.totals([self.serving.region, *self.draining.values()])

    def region_of(self, number):
        """Return the region of a generation, None when it is gone."""
        for generation in (self.serving, self.candidate):
            if generation and generation.number == number:
                return generation.region
        return self.draining.get(number)

    def _account(self):
        """Once in a while: what draining generations still have open counts for the one that serves; who hangs?"""
        self.timers.add(self.now() + ACCOUNT, self._account)
        self._account_now()
        if not self.leaving:
            self.pool.watch()

    def _account_now(self):
        if not self.serving:
            return
        for number in [number for number in self.draining if not self.pool.of(number)]:
            region = self.draining.pop(number)
            self.generation_totals.fold(region)
            region.close()
        for generation in (self.serving, self.candidate):
            if generation:
                others = [region for region in self.draining.values() if region is not generation.region]
                if generation is self.candidate:
                    others.append(self.serving.region)
                totals.elsewhere(generation.region, others)

    # -- children --------------------------------------------------------------------------------------------------

    def inherited(self):
        """Return the descriptors a forked child must close: all channels, servers and the selector, but no listener."""
        numbers = [self.selector.fileno(), *self._wakeup, *self.upgrade.descriptors(), *self.endpoints.descriptors()]
        numbers += [*self.orphans.descriptors(), *self.notifier.descriptors(), *self.lock.descriptors()]
        if self.candidate:
            numbers += [sock.fileno() for sock in self.candidate.endpoints.values()]
        children_ = self.pool.children.values()
        estates = [child.estate.fileno() for child in children_ if child.estate is not None]
        return [*numbers, *estates, *(child.channel.fileno() for child in children_)]

    def answered(self, child, message):
        """A worker has answered what an admin client asked."""
        self.admin.answered(child, message)

    def _child_ended(self, pid, code):
        child = self.pool.ended(pid, code)
        if child is None:
            self.upgrade.child_ended(pid, code)
            return
        self.admin.gone(child)
        if self.stopping or child.state == children.DRAINING:
            return
        if self.candidate and child.generation == self.candidate.number:
            self._candidate_failed([f"the new worker failed: {child.why()}"])
        elif self.serving and child.generation == self.serving.number:
            self.pool.replace(child)
