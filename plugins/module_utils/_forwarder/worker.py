# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker: one process, one selector, all the traffic of one slot.

It is made after the fork (an inherited epoll would be shared with the supervisor). key.data of every registration is
the callback. It says READY over a pipe before it accepts, drains on SIGTERM, stops at once on the second, and drains
as well when its supervisor is gone, which it notices by the end of a pipe.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import selectors
import signal
import time
from collections import Counter

from . import addresses, listeners
from .balancer import Backends
from .log import RETRY
from .tcp import Relay, Side
from .wheel import Wheel

READY = b"ready\n"
ACCEPTS_IN_A_ROW = 32  # a batch: then the sessions that are already there get their turn
ACCEPT_PAUSE = 0.2  # seconds without accepting after the kernel ran out of something
RESERVED_DESCRIPTORS = 32  # listeners come on top; the rest is two a session
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """One listening socket of a service, and the backends its clients go to."""

    def __init__(self, worker, sock, service, listener, backends):
        self.worker = worker
        self.sock = sock
        self.service = service
        self.listener = listener
        self.backends = backends

    def ready(self, _mask):
        """The selector's callback: accept a batch."""
        self.accept(ACCEPTS_IN_A_ROW)

    def accept(self, limit):
        """Accept up to ``limit`` connections that are waiting."""
        worker = self.worker
        for _turn in range(limit):
            if worker.full:
                worker.pause_accepting("as many sessions as RLIMIT_NOFILE has descriptors for")
                return
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF:
                    worker.pause_accepting(os.strerror(error.errno), ACCEPT_PAUSE)
                    return
                continue  # this one connection went away before it was accepted (accept(2), "Error handling")
            sock.setblocking(False)
            relay = Relay(worker, self.service, self.listener, self.backends, sock, address)
            worker.sessions.add(relay)
            try:
                relay.start()
            except Exception as error:  # noqa: BLE001
                worker.contain(relay, error)


class Worker:
    """Serves ``config`` on ``held`` ({name: socket}); ``lifeline`` is a pipe that ends with the supervisor."""

    def __init__(self, config, held, log, lifeline):
        self.now = time.monotonic
        self.log = log
        self.selector = selectors.EpollSelector()
        self.wheel = Wheel()
        self.sessions = set()
        self.counters = Counter()
        self.own_addresses = addresses.own_addresses()
        self.backend_addresses = frozenset(
            address
            for service in config.services
            for backend in service.backends
            for address in (backend.ipv4, backend.ipv6)
            if address
        )
        self._next_look = self.now() + addresses.REFRESH
        self._config = config
        self._lifeline = lifeline
        self._acceptors = self._make_acceptors(held)
        self._accepting = False
        self._paused = False
        self.draining = False
        self._terminations = 0  # SIGTERMs so far: the first drains, the second is now
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_sessions = max(1, (soft_limit - RESERVED_DESCRIPTORS - len(held)) // 2)

    def _make_acceptors(self, held):
        backends, acceptors = {}, []
        for name, (service, listener) in listeners.wanted(self._config).items():
            key = (service.name, listener.family)
            if key not in backends:
                backends[key] = Backends(service.backends_of(listener.family), service.balance)
            acceptors.append(Acceptor(self, held[name], service, listener, backends[key]))
        return acceptors

    # -- what relays use -------------------------------------------------------------------------------------------

    def finished(self, relay):
        """Called by a relay when its session is over: one line in the log."""
        self.sessions.discard(relay)
        summary = relay.summary()
        self.counters["connections"] += 1
        if not relay.upstream:
            self.counters[f"refused: {summary['ended']}"] += 1
        self.log.event("connection", **summary)
        if self._paused and not self.draining and not self.full:
            self._resume_accepting()

    @property
    def full(self):
        """Whether one more session might find no file descriptor."""
        return len(self.sessions) >= self._most_sessions

    # -- accepting -------------------------------------------------------------------------------------------------

    def set_accepting(self, on):
        """Start or stop taking connections; what arrives meanwhile waits in the backlog."""
        if on == self._accepting:
            return
        self._accepting = on
        for acceptor in self._acceptors:
            if on:
                self.selector.register(acceptor.sock, selectors.EVENT_READ, acceptor.ready)
            else:
                self.selector.unregister(acceptor.sock)

    def pause_accepting(self, why, longest=None):
        """Stop accepting until a session ends, or for ``longest`` seconds; the log says why, once a pause."""
        self.set_accepting(False)
        if self._paused:  # another listener was ready in the same turn
            return
        self._paused = True
        self.counters["accept paused"] += 1
        self.log.event("accept paused", reason=why, sessions=len(self.sessions))
        if longest is not None:
            self.wheel.add(self.now() + longest, self._resume_accepting)

    def _resume_accepting(self):
        if self._paused and not self.draining:
            self._paused = False
            self.set_accepting(True)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self, ready):
        """Serve until drained; ``ready`` is the pipe on which the supervisor waits for READY. Returns the exit code."""
        wakeup = self._take_signals()
        self.selector.register(wakeup, selectors.EVENT_READ, lambda _mask: os.read(wakeup, 64))
        self.selector.register(self._lifeline, selectors.EVENT_READ, self._supervisor_gone)
        self.set_accepting(True)
        gc.collect()
        gc.freeze()
        os.write(ready, READY)
        os.close(ready)
        while not (self.draining and not self.sessions):
            self._turn()
            if self._terminations and not self.draining:
                self.drain("SIGTERM")
            if self._terminations > 1:
                self._abort_all("stopped")
        self.log.event("worker ends", counters=dict(self.counters), log_lines_dropped=self.log.dropped)
        self.log.flush()
        return 0

    def _turn(self):
        ready = self.selector.select(self._timeout())
        now = self.now()
        if now >= self._next_look:
            self._look_at_addresses(now)
        for key, mask in ready:
            self._call(key.data, mask)
        for item in self.wheel.due(self.now()):
            self._call(item)
        if self.log.waiting:
            self.log.flush()

    def _call(self, callback, *arguments):
        """Run a callback of the selector or the wheel; what it raises ends the session it belongs to."""
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001
            owner = getattr(callback, "__self__", None)
            self.contain(owner.relay if isinstance(owner, Side) else owner, error)

    def _timeout(self):
        timeout = self.wheel.timeout(self.now())
        if self.log.waiting:  # its reader is slow, and nothing else may ever wake us
            return RETRY if timeout is None else min(RETRY, timeout)
        return timeout

    def _look_at_addresses(self, now):
        self._next_look = now + addresses.REFRESH
        try:
            self.own_addresses = addresses.own_addresses()
        except OSError as error:  # short of descriptors: the old list does until the next look
            self.log.event("own addresses unknown", reason=str(error))

    def contain(self, relay, error):
        """A defect in one session ends that session and not the process; the log says where it is."""
        if not isinstance(relay, Relay):
            raise error
        self.counters["defects"] += 1
        self.log.event("defect", error=repr(error), trace=_places(error))
        relay.abort(f"internal error: {error!r}")

    # -- ending ----------------------------------------------------------------------------------------------------

    def _take_signals(self):
        """Install the handlers: they only count; the wakeup pipe, which is returned, ends the select."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_termination)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to everyone; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        return read

    def _on_termination(self, _number, _frame):
        self._terminations += 1

    def _supervisor_gone(self, _mask):
        self.selector.unregister(self._lifeline)
        self.drain("the supervisor is gone")

    def drain(self, why):
        """Take what is already queued, accept no more, and end when the sessions have, or at drain_timeout."""
        if self.draining:
            return
        self.draining = True
        self.set_accepting(False)
        for acceptor in self._acceptors:
            acceptor.accept(acceptor.service.backlog)
            acceptor.sock.close()
        timeout = self._config.drain_timeout
        self.log.event("draining", reason=why, sessions=len(self.sessions), timeout=timeout)
        self.wheel.add(self.now() + timeout, self._drained_too_long)

    def _drained_too_long(self):
        self._abort_all("drain timeout")

    def _abort_all(self, reason):
        for relay in list(self.sessions):
            relay.abort(reason)


def _places(error):
    """Return where an exception was raised as "file:line", innermost last."""
    trace, places = error.__traceback__, []
    while trace:
        places.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places
