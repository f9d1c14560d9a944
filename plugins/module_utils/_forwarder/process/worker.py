# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker: one process, one selector, all the traffic of one slot.

It is made after the fork (an inherited epoll would be shared with the supervisor). It tells the supervisor over its
channel that it is READY before it accepts, serves the listeners of its slot and of those it is told to cover, drains on
SIGTERM, stops at once on the second, and drains as well when its supervisor is gone, which it notices by the end of the
channel.
"""

from __future__ import annotations

import gc
import heapq
import os
import resource
import signal
import time

from ..._shared.families import FAMILIES
from ..admission.source_address import Ports
from ..backends.balancer import Backends
from ..counters.heartbeat import BEAT
from ..counters.service_counters import ServiceCounters
from ..counters.shared_memory import WORKER_FIELDS
from ..loop import own_addresses
from ..loop.log import RETRY, places
from ..loop.poller import READ, Poller
from ..loop.timers import TICK, Timers
from ..tcp import splice, timeouts
from ..tcp.acceptor import PAUSE, Acceptor, Serving
from ..tcp.proxy_header import HeaderReader
from ..tcp.relay import Relay
from ..tcp.session import BOTH_CLOSED
from ..tcp.stream import Stream
from ..udp.flow_table import Door, Lane
from ..udp.handover import Succession
from ..udp.listener import Udp
from . import listeners
from .channel import READY, TooLarge

LANES_SHARE = 4  # where there is UDP its upstream sockets may be one in so many of all descriptors
RESERVED_DESCRIPTORS = 32  # listeners come on top; the rest is two a session
CHORES = 0.05  # seconds a busy worker may go on without a look at the clock
PAUSE_LOGGED = 10.0  # seconds between two lines about pauses for one reason; each pause is counted


class Worker:
    """Serves slot ``slot`` of ``settings``, a config.Config, on ``held`` ({name: socket}).

    ``line`` is the channel to the supervisor; ``region`` is the generation's shared memory, of which this process
    writes the row of its slot. ``estate`` is where it leaves its UDP sessions to its successor, ``predecessors`` is
    where it finds those of others (handover.py).
    """

    def __init__(self, settings, held, log, line, region, slot, estate=None, predecessors=()):
        self.now = time.monotonic
        self.log = log
        self.selector = Poller()
        self.timers = Timers()
        self.sessions = set()
        self.connecting = {}  # relay -> when its attempt is over
        self.region = region
        self.slot = slot
        region.reset_gauges(slot)
        self._cells = region.cells
        self._counted = {name: region.cell(slot, "worker", name) for name in WORKER_FIELDS}
        self.own_addresses = own_addresses.own_addresses()
        self._next_look = self.now() + own_addresses.REFRESH
        self._config = settings
        self._line = line
        self.accepting = False
        self.slots = {slot}  # those it serves
        self._estate = estate
        self._predecessors = predecessors
        self._has_heir = False  # whether somebody takes over the UDP sessions
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.pipes = splice.Pool(splice.bound(region.slots, soft_limit))
        descriptors = soft_limit - RESERVED_DESCRIPTORS - len(held) - 2 * self.pipes.bound
        lanes = descriptors // LANES_SHARE if any(one.protocol == "udp" for one in settings.services) else 0
        self._most_sessions = max(1, (descriptors - lanes) // 2)
        ports = Ports(settings.source_ports)
        self.udp = Udp(self, ports, lanes, region.slots)
        self._acceptors = self._open_doors(held, ports)
        self._paused = False
        self._pauses_logged = {}  # reason -> when
        self._look_interval = timeouts.interval(settings.services)
        self._next_timeouts = self.now() + self._look_interval
        self._beat = region.beat_cell(slot)
        self._next_chores, self._patience = 0.0, 0  # when, and how long the next turn may wait for events
        self.draining = False
        self._terminations = 0  # SIGTERMs so far: the first drains, the second is now

    def _open_doors(self, held, ports):
        """Return the acceptors of TCP listeners; those of UDP are given to .udp."""
        serving, acceptors = {}, []
        for name, (service, listener) in listeners.wanted(self._config, self.region.slots, held).items():
            if service.name not in serving:
                groups = {
                    family: Backends(service, family, self.region, self.slot)
                    for family in FAMILIES
                    if service.backends_of(family)
                }
                serving[service.name] = Serving(
                    service, groups, ports, ServiceCounters(self.region, self.slot, service.name)
                )
            slot = listeners.slot_of(name) % self.region.slots
            if service.protocol == "udp":
                self.udp.listen(held[name], name, slot, serving[service.name], listener)
            else:
                acceptors.append(Acceptor(self, held[name], slot, serving[service.name], listener))
        return acceptors

    # -- what relays use -------------------------------------------------------------------------------------------

    def finished(self, relay):
        """Called by a relay when its session is over: the numbers, and one line in the log."""
        self.sessions.discard(relay)
        serving, backends, index = relay.serving, relay.backends, relay.index
        serving.counters.finished()
        if index is not None:
            backends.release(index)
        if relay.upstream is None:
            serving.counters.refused(relay.cause)
        elif index is not None:
            backends.carried(index, relay.upstream.sent, relay.client.sent)
        log = serving.service.log
        if log == "all" or (log == "errors" and relay.ended != BOTH_CLOSED):
            if relay.via is None:
                relay.acceptor.log(relay.facts(self.now()))
            else:
                self.log.event("connection", **relay.summary(self.now()))
        if serving.gate is not None:
            if relay.admitted:
                serving.gate.leave(relay.client_address[0])
            if serving.paused:
                self._resume_service(serving)
        if self._paused and not self.draining and self.room:
            self._resume_accepting()

    def count(self, name, change=1):
        """Count something of this worker, one of shared.WORKER_FIELDS."""
        self._cells[self._counted[name]] += change

    @property
    def room(self):
        """How many more sessions are sure to find file descriptors."""
        return max(0, self._most_sessions - len(self.sessions))

    # -- accepting -------------------------------------------------------------------------------------------------

    def set_accepting(self, on):
        """Start or stop taking connections; what arrives meanwhile waits in the backlog."""
        self.accepting = on
        for acceptor in self._acceptors:
            acceptor.update()

    def cover(self, slots):
        """Serve these slots beside the own one, until told otherwise."""
        self.slots = {self.slot, *slots}
        if not self.draining:
            self.set_accepting(self.accepting)
            self.udp.update()

    def pause_accepting(self, why, longest=None):
        """Stop accepting until a session ends, or for ``longest`` seconds."""
        self.set_accepting(False)
        if self._paused:  # another listener was ready in the same turn
            return
        self._paused = True
        self._log_pause(why, sessions=len(self.sessions))
        if longest is not None:
            self.timers.add(self.now() + longest, self._resume_accepting)

    def pause_service(self, serving):
        """Stop accepting for a service that has all the connections it may have."""
        if not serving.paused:
            serving.pause(True)
            self._log_pause("connection limit of the service", service=serving.service.name)
            self._look_at_limit_again(serving)

    def _look_at_limit_again(self, serving):
        """Sessions of another worker may make room, and nobody tells."""
        self.timers.add(self.now() + PAUSE, lambda: serving.paused and self._resume_service(serving, again=True))

    def _resume_service(self, serving, again=False):
        if self.draining:
            return
        if not serving.gate.full:
            serving.pause(False)
        elif again:
            self._look_at_limit_again(serving)

    def _log_pause(self, why, **fields):
        """Count a pause, and say so unless the same was said a moment ago."""
        self.count("accept_paused")
        key, now = (why, fields.get("service")), self.now()
        if now - self._pauses_logged.get(key, -PAUSE_LOGGED) >= PAUSE_LOGGED:
            self._pauses_logged[key] = now
            self.log.event("accept paused", level="warning", reason=why, **fields)

    def _resume_accepting(self):
        if self._paused and not self.draining:
            self._paused = False
            self.set_accepting(True)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self):
        """Serve until drained; tells the supervisor when it is READY. Returns the exit code."""
        wakeup = self._take_signals()
        self.selector.register(wakeup, READ, lambda _mask: os.read(wakeup, 64))
        self.selector.register(self._line, READ, self._hear)
        self.set_accepting(True)
        Succession(self, self._predecessors)
        gc.collect()
        gc.freeze()
        self._do_chores(self.now())
        self._line.send({READY: True})
        while not (self.draining and not self.sessions):
            self._turn()
            if self._terminations and not self.draining:
                self._hear(READ)  # what was said before the signal was sent
                self.drain("SIGTERM")
            if self._terminations > 1:
                self._abort_all("stopped")
        self.log.event("worker ends", counters=self._own_counters())
        self.log.flush()
        return 0

    def _own_counters(self):
        return {name: self._cells[cell] for name, cell in self._counted.items()}

    def _hear(self, _mask):
        """The supervisor said something, or is gone."""
        messages, gone = self._line.receive()
        for message in messages:
            if "cover" in message:
                self.cover(message["cover"])
            self._has_heir = self._has_heir or "hand_over" in message
            if "log_level" in message:
                self.log.set_level(message["log_level"])
            if "sessions" in message:
                self._answer(message["sessions"], self._some_sessions(message))
        if gone:
            self.selector.unregister(self._line)
            self.drain("the supervisor is gone")

    def _answer(self, number, found):
        """Send the answer to a question; of sessions as many as the line carries, the oldest first."""
        while True:
            try:
                self._line.send({"answer": number, **found})
                return
            except TooLarge:
                if not found["sessions"]:
                    raise
                found["sessions"] = found["sessions"][: len(found["sessions"]) // 2]

    def _some_sessions(self, message):
        """Return the count and the oldest of the sessions asked for (``service`` or ``backend``, ``limit``)."""
        service, backend = message.get("service"), message.get("backend")
        wanted = [
            one
            for one in (*self.sessions, *self.udp.table.flows)
            if service in (None, one.service.name)
            and (backend is None or (one.backend is not None and one.backend.name == backend))
        ]
        oldest = heapq.nsmallest(message["limit"], wanted, key=lambda one: one.started)
        now = self.now()
        return {"count": len(wanted), "sessions": [one.summary(now) for one in oldest]}

    def _turn(self):
        busy = self.selector.turn(self._patience, self.contain)
        now = self.now()
        if now >= self._next_chores or not busy:
            self._do_chores(now)
        if self.log.waiting:
            self.log.flush()
        # After a turn with events the next is near, and to know the very moment of what else is due would cost more.
        self._patience = CHORES if busy else self._timeout()

    def _do_chores(self, now):
        """Everything that goes by the clock; while there is traffic, every CHORES seconds."""
        self._next_chores = now + CHORES
        if self._beat is not None:
            self._cells[self._beat] = int(now * 1000)
        if now >= self._next_look:
            self._look_at_addresses(now)
        for item in self.timers.due(now):
            self._contained(item)
        for relay in timeouts.overdue(self.connecting, now):
            self._contained(relay.too_slow)
        for relay in timeouts.slow(self.connecting, now):
            relay.takes_long(now)
        if now >= self._next_timeouts:
            self._look_for_timeouts(now)
        if now >= self.udp.next_look:
            self.udp.look(now)
        self._cells[self._counted["log_dropped"]] = self.log.dropped

    def _contained(self, item):
        try:
            item()
        except Exception as error:  # noqa: BLE001
            self.contain(getattr(item, "__self__", None), error)

    def _look_for_timeouts(self, now):
        self._next_timeouts = now + self._look_interval
        for relay, reason in timeouts.look(self.sessions, now):
            relay.abort(reason)

    def _timeout(self):
        """Return the seconds until something is due by the clock, if only the time to be written (heartbeat.py)."""
        now = self.now()
        due = self.timers.timeout(now)
        timeout = BEAT if due is None else min(BEAT, due)
        if self.connecting:
            timeout = min(timeout, TICK)
        if self.sessions:
            timeout = min(timeout, max(0.0, self._next_timeouts - now))
        if self.udp.table.flows:
            timeout = min(timeout, max(0.0, self.udp.next_look - now))
        return min(RETRY, timeout) if self.log.waiting else timeout  # the reader of the log is slow

    def _look_at_addresses(self, now):
        self._next_look = now + own_addresses.REFRESH
        try:
            found = own_addresses.own_addresses()
        except OSError as error:  # short of descriptors: the old list does until the next look
            self.log.event("own addresses unknown", level="warning", reason=str(error))
            return
        if found != self.own_addresses:  # services remember what follows from this very object
            self.own_addresses = found

    def contain(self, owner, error):
        """A defect in one session ends that session and not the process; the log says where it is.

        ``owner`` is what the failing callback belongs to: a relay or a part of one.
        """
        if not isinstance(owner, (Relay, Stream, HeaderReader, Door, Lane)):
            raise error
        self.count("defects")
        self.log.event("defect", level="error", error=repr(error), trace=places(error))
        if isinstance(owner, (Door, Lane)):
            return  # all it cost is a datagram
        relay = owner if isinstance(owner, Relay) else owner.relay
        if relay is not None:  # else its session is over already
            relay.abort(f"internal error: {error!r}")

    # -- ending ----------------------------------------------------------------------------------------------------

    def _take_signals(self):
        """Install the handlers: they only count; the wakeup pipe, which is returned, ends the select."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_termination)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # may be sent to everyone; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        return read

    def _on_termination(self, _number, _frame):
        self._terminations += 1

    def drain(self, why):
        """Take what is already queued, accept no more, and end when the sessions have, or at drain_timeout."""
        if self.draining:
            return
        self.draining = True
        self.set_accepting(False)
        for acceptor in self._acceptors:
            if acceptor.slot in self.slots:
                acceptor.accept(acceptor.serving.service.backlog)
            acceptor.sock.close()
        self._leave_sessions()
        timeout = self._config.drain_timeout
        self.log.event("draining", reason=why, sessions=len(self.sessions), timeout=timeout)
        self.timers.add(self.now() + timeout, self._drained_too_long)

    def _leave_sessions(self):
        """UDP has nothing to drain: somebody goes on with the sessions, or they end here and now."""
        if self._has_heir:
            try:
                self.udp.hand_over(self._estate)
            except OSError as error:
                self.log.event("sessions not handed over", level="error", reason=str(error))
        self.udp.end_all("stopped")
        if self._estate is not None:
            self._estate.close()

    def _drained_too_long(self):
        self._abort_all("drain timeout")

    def _abort_all(self, reason):
        for relay in list(self.sessions):
            relay.abort(reason)
