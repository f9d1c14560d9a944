# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor: owns the listening sockets, keeps its workers alive, and switches generations without interruption.

It touches no traffic. Signal handlers only queue the signal; everything else happens in one event loop:

- SIGHUP: reload (reload.py). The workers take the new config in place, or new workers replace them. If it fails, the
  old config goes on; the runtime file and the log say why.
- SIGTERM, SIGINT: close the listeners, drain the workers and exit; a second one ends the workers at once.
- SIGUSR1: exit at once, for a restart of the service. The service manager keeps the listening sockets and the channels
  to the workers, which go on serving until the next supervisor takes them over (restart_state.py). Without a service
  manager it is like SIGTERM.
- SIGCHLD: replace a worker that has died (worker_pool.py); another worker covers its slot meanwhile.

The admin and metrics servers (admin/server.py) run in the same loop.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial

from ..admin import http_views, runtime_file
from ..admin.commands import Admin
from ..admin.listening import ADMIN, METRICS
from ..admin.server import Servers
from ..counters import heartbeat
from ..counters.overrides import Overrides
from ..loop.log import Log
from . import (
    children,
    generation,
    in_place,
    listeners,
    lock,
    notify,
    orphans,
    predecessor,
    rebinding,
    reexec_state,
    restart_state,
)
from .control import Control
from .deny_lists import DenyLists
from .log_settings import LogSettings
from .old_generations import OldGenerations
from .reload import Reload, internal_error, own_command
from .reload_results import ReloadResults
from .saver import Saver
from .supervisor_loop import SupervisorLoop
from .worker_pool import DRAIN_GRACE, WorkerPool

STOP_GRACE = 2.0  # seconds from the second SIGTERM until the workers are killed


def run(config_path: str) -> int:
    """Run the forwarder in the foreground until a signal ends it; return the exit status."""
    left = predecessor.find()  # before anything is opened: descriptors get their numbers back
    return Supervisor(config_path).run(left)


class Supervisor:
    """One forwarder: the listening sockets, the generations of its config and their processes."""

    def __init__(self, config_path: str):
        self._config_path = os.path.abspath(config_path)
        self._loop = SupervisorLoop(Log(pid=os.getpid(), role="supervisor"))
        self._log = self._loop.log
        self._archive = runtime_file.running_archive()
        self._lock = lock.Lock(runtime_file.directory())
        self._listening: dict[str, socket.socket] = {}  # listening sockets by name (listeners.py)
        self._notifier = notify.Notifier(self._loop.selector)
        self._orphans = orphans.Orphans(self._loop)
        self._generations = generation.Generations()
        self._overrides = Overrides()
        self._log_settings = LogSettings(self._log)
        self._results = ReloadResults(self._log, self._notifier)
        self._pool = WorkerPool(self._loop, self._generations, self._listening, self._log_settings, self)
        self._change = in_place.ChangeInPlace(self._loop, self._generations, self._pool, self._log_settings, self)
        self._reload = Reload(self._loop, self, self._results, self._config_path, own_command())
        self._deny_lists = DenyLists(self._loop, self._generations, self._pool, self)
        self._old = OldGenerations(self._loop, self._pool, self._generations, self._orphans)
        seen = (self._loop, self._generations, self._pool, self._old, self._overrides, self._results)
        self._saver = Saver(*seen, self._listening, self, self._deny_lists)
        self._control = Control(*seen, self._log_settings, self._saver, self._deny_lists)
        self._admin = Admin(self._control)
        answers = {ADMIN: self._admin.answer, METRICS: partial(http_views.answer, self._control)}
        self._servers = Servers(self._loop, answers)
        self._rebinding = rebinding.Rebinding(
            self._loop, self._generations, self._listening, self._servers, self._results, self
        )
        parts = (self._listening, self._servers, self._generations, self._overrides, self._log_settings, self._results)
        self._parts = reexec_state.Parts(*parts, self._pool, self._old, self._notifier, self._lock, self._deny_lists)
        self._stops = 0  # number of requests to stop; the second one means at once
        self._leaving = False  # whether the service manager is about to start a successor
        self._starting = False  # whether what cannot be bound is left out
        self._exit_code = 0

    def run(self, left: predecessor.Left) -> int:
        """Serve until stopped; return the exit status. ``left`` is what the previous program or process has left."""
        children.name_process("supervisor")
        self._starting = left.state is None or bool(left.names)
        predecessor.adopt(left, self._parts, self._orphans, self._log)
        self._loop.handle_signals(
            {
                signal.SIGHUP: self._handle_hup,
                signal.SIGTERM: partial(self._handle_stop, "SIGTERM"),
                signal.SIGINT: partial(self._handle_stop, "SIGINT"),
                signal.SIGUSR1: self._handle_usr1,
                signal.SIGCHLD: self._handle_chld,
            }
        )
        self._load()
        self._loop.contain(self._handle_chld)  # a child may have ended before the handler was installed
        self._monitor()
        self._loop.call_later(rebinding.INTERVAL, self._rebinding.attempt)
        self._saver.save_regularly()
        self._deny_lists.check()
        while not self._done():
            self._loop.turn()
            if not (self._stops or self._leaving):
                self._reload.step()
            self._log.flush()
        self._servers.close()
        if self._leaving:
            self._control.promise()
        if self._generations.live:
            self._results.remove_file()
            if not self._leaving:
                self._saver.finish()
        self._notifier.finish()
        self._log.event("stopped")
        self._log.flush()
        return self._exit_code

    def _done(self):
        if self._leaving:
            return True
        # A forwarder that could not start does not wait for orphans: the service manager tries again.
        waiting = self._pool.children or (self._orphans and not self._exit_code)
        return bool(self._stops) and not waiting

    def _monitor(self):
        """Once a second: sum up the counters of draining generations, and kill the children that hang."""
        self._loop.call_later(heartbeat.INTERVAL, self._monitor)
        self._account()
        if not self._leaving:
            self._pool.kill_hanging()
        if self._generations.live:
            self._old.check()

    def _account(self):
        self._generations.account(is_needed=self._pool.is_needed)

    # -- signals ---------------------------------------------------------------------------------------------------

    def _handle_hup(self):
        self._reload.requested = True

    def _handle_chld(self):
        for pid, code in children.reap_children():
            self._loop.contain(self.child_ended, pid, code)

    def _handle_usr1(self):
        if not (self._listening and self._notifier.names):  # without a service manager that keeps the sockets
            self._handle_stop("SIGUSR1")
            return
        self._leaving = True
        self._cancel_reload()
        self._loop.contain(self._leave_state)
        self._notifier.finish()
        self._log.event("leaving", processes=len(self._pool.children))

    def _leave_state(self):
        """Make the service manager store the state for the next supervisor, before listeners if not all of it fits."""
        self._abandon_candidate()
        if self._generations.live:
            left = restart_state.leave(self._parts.collect()[0], self._parts.memory())
            self._notifier.store({**left, **self._listening})

    def _handle_stop(self, reason):
        """The first time, accept no more and drain; the second time, end at once."""
        if self._leaving:
            return
        self._stops += 1
        self._log.event("stopping", reason=reason, now=self._stops > 1, processes=len(self._pool.children))
        if self._stops > 1:
            self._pool.signal_all(signal.SIGTERM)  # the second one for the workers, too
            self._loop.call_later(STOP_GRACE, partial(self._pool.signal_all, signal.SIGKILL))
            self._orphans.end_after(0.0, STOP_GRACE)
            return
        self._notifier.stopping()
        self._notifier.store({})
        self._cancel_reload()
        self._lock.release()
        listeners.close_all(self._listening)  # before the workers drain, so that no connection is queued after them
        timeout = self._generations.stop_timeout
        self._pool.stop(timeout)
        self._orphans.end_after(timeout, timeout + DRAIN_GRACE)

    def _cancel_reload(self):
        self._reload.cancel()
        if self._change.cancel():
            self._abandon_candidate()

    # -- handover between programs ---------------------------------------------------------------------------------

    def handover(self) -> tuple[dict, list[int]]:
        """Return the state for the next program, and the file descriptors that must stay open for it."""
        self._control.promise()
        self._servers.close_connections()
        return self._parts.collect()

    def inherited_descriptors(self) -> list[int]:
        """Return the descriptors that a forked child must close: all but the listening sockets."""
        candidate = self._generations.candidate
        servers = candidate.new_servers.values() if candidate else ()
        served = (self._loop, self._reload, self._servers, self._orphans, self._notifier, self._lock, self._pool)
        parts = (*served, self._saver, self._deny_lists, self._control)
        return [*(sock.fileno() for sock in servers), *(number for part in parts for number in part.descriptors())]

    # -- loading a config ------------------------------------------------------------------------------------------

    def _load(self, same=False):
        """Load the config, or the ``same`` as before, and spawn its workers; the live generation goes on meanwhile."""
        try:
            self._pool.spawn_workers(self._load_candidate(same))
        except generation.LoadError as error:
            self._load_failed(error.errors)
        except lock.Held as error:
            self._load_failed([str(error)])
        except OSError as error:
            self._load_failed([f"no worker can be started: {error}"])
        except Exception as error:  # noqa: BLE001
            self._load_failed([internal_error(error)])

    def _load_candidate(self, same=False, workers=None):
        """Return the generation of the config, the new candidate; raise as generation.make(), or OSError."""
        generations, live = self._generations, self._generations.live
        starting, self._starting = self._starting, False
        self._lock.take_for(serving=bool(live), log=self._log)
        read = generation.read_any if starting and not live else generation.read
        config, config_file = (live.config, live.config_file) if same else read(self._config_path)
        candidate = generations.candidate = generation.make(
            config,
            config_file,
            generations.next_number,
            self._archive,
            self._listening,
            self._servers,
            alone=not (live or self._orphans or orphans.find()),
            tolerated=generation.EVERYTHING if starting else live.failed,
            workers=workers,
        )
        if live:
            candidate.region.inherit(live.region, candidate.config.services)
            self._account()
        else:
            self._loop.contain(self._saver.restore, candidate)
            self._loop.contain(self._deny_lists.start, config.deny_files or ())
        self._overrides.publish(candidate.region)
        children.publish_states(candidate, self._log, self._loop.now())  # before its kernel services lose listeners
        return candidate

    def _load_failed(self, errors):
        self._abandon_candidate()
        if self._generations.live:
            self.reload_failed("; ".join(errors))
            self._pool.fill()  # timers of planned replacements do not outlive an exec
            self._notifier.store_listeners(self._listening, self._log)  # the previous program may not have finished
            return
        self._log.event("cannot start", level="error", errors=errors)
        sys.stderr.write("".join(f"l4proxy forward: {line}\n" for line in errors))
        self._exit_code = 1
        self._stops = self._stops or 1

    def _abandon_candidate(self):
        candidate, self._generations.candidate = self._generations.candidate, None
        if candidate:
            self._pool.dismiss(candidate)
            candidate.abandon(self._listening)

    def _switch(self):
        """Make the candidate live; everything else drains from here on."""
        if self._generations.live:
            self._old.note(self._generations.live)
        self._generations.switch()
        self._settle(in_place=False)

    def _settle(self, in_place):
        """Make everything follow the generation that has become live; drain what is not of it."""
        live = self._generations.live
        timeout = live.config.drain_timeout
        self._pool.drain_all_but(live, timeout)
        if timeout is not None:
            self._orphans.end_after(timeout, timeout + DRAIN_GRACE)
        self._pool.forget_deaths()
        self._pool.fill()  # spawns the checker
        contain = self._loop.contain
        contain(self._old.follow)
        contain(listeners.settle, live.served, live.slots, self._listening)
        contain(self._notifier.store_listeners, self._listening, self._log)
        contain(self._servers.settle, live.config, live.new_servers)
        contain(self._overrides.settle, live.config)
        contain(self._saver.save)
        live.loaded_at = runtime_file.timestamp()
        self._log_settings.apply(live)
        self._account()
        self._results.succeeded(live, self._listening, in_place)

    # -- reload ----------------------------------------------------------------------------------------------------

    def may_reload(self) -> bool:
        """Whether a config is live, no worker is starting, and neither a change in place nor a stop has begun."""
        generations = self._generations
        busy = self._stops or self._leaving or generations.candidate or self._change or self._pool.starting()
        return bool(generations.live and not busy)

    def change_in_place(self):
        """Load the config and make the workers take it; without that, go on with new processes."""
        live, installed = self._generations.live, runtime_file.running_archive()
        reason = in_place.obstacle(live, self._pool, self._archive, installed)
        if reason is None:
            self._archive = installed  # its path may have changed
            try:
                self._change.begin(self._load_candidate(workers=live.slots), self._listening)
                return
            except generation.LoadError as error:
                self._load_failed(error.errors)
                return
            except Exception as error:  # noqa: BLE001
                is_known = isinstance(error, (OSError, generation.OtherWorkers))
                reason = str(error) if is_known else internal_error(error)
        self.not_changed_in_place(reason)

    def serve_again(self):
        """Serve the live config with listeners that can be bound now, in place or by new processes."""
        if in_place.obstacle(self._generations.live, self._pool, self._archive, self._archive):
            self._load(same=True)
        else:
            self._change.begin(self._load_candidate(same=True), self._listening)

    def not_changed_in_place(self, reason: str):
        """Go on with new processes, which need the new listeners: the workers cannot take the config."""
        if candidate := self._generations.candidate:
            candidate.new_listeners.clear()  # to close them would reset what is queued
        self._abandon_candidate()
        self._reload.new_processes(reason)

    def changed_in_place(self):
        """Follow the config that the workers have taken."""
        self._servers.close_streams()
        self._settle(in_place=True)

    def reload_failed(self, error: str):
        """Record why the live generation goes on, without the listeners that only the new one needs."""
        live = self._generations.live
        if live.config:
            self._loop.contain(listeners.close_others, live.served, live.slots, self._listening)
            self._loop.contain(self._servers.open, live.config)  # after a restart there are none
        self._results.failed(error, live)

    # -- children --------------------------------------------------------------------------------------------------

    def worker_ready(self, child: children.Child):
        """Make the candidate live when its last worker is ready."""
        candidate = self._generations.candidate
        if candidate and child.generation == candidate.number and self._pool.complete(candidate) and not self._stops:
            self._generations.when_closable(self._loop, lambda: self._stops or self._switch())

    def worker_answered(self, child: children.Child, message: dict):
        """Pass the answer of a worker on to the admin client that has asked, or to the change in place."""
        if "answer" in message:
            self._admin.worker_answered(child.pid, message)
        else:
            self._change.answered(child, message)

    def child_ended(self, pid: int, code: int | None):
        """Replace a child that has ended, unless it drains."""
        child = self._pool.reaped(pid, code)
        if child is None:
            self._reload.child_ended(pid, code)
            return
        self._admin.worker_ended(pid)
        self._change.child_ended(child)
        if self._stops or child.state == children.DRAINING:
            return
        candidate, live = self._generations.candidate, self._generations.live
        if candidate and child.generation == candidate.number:
            self._load_failed([f"the new worker failed: {child.why_not_ready()}"])
        elif live and child.generation == live.number:
            self._pool.replace(child)
