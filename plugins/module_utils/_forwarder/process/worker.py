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

from ..admission.source_address import SourcePorts
from ..backends.service_runtime import ServiceRuntime
from ..counters.heartbeat import BEAT
from ..counters.shared_memory import WORKER_FIELDS
from ..loop import own_addresses
from ..loop.event_loop import EventLoop
from ..loop.log import RETRY
from ..loop.poller import READ
from ..tcp import splice
from ..tcp.server import TcpServer
from ..udp.server import UdpServer
from ..udp.takeover import Takeover
from . import listeners
from .channel import READY, TooLarge

UDP_DESCRIPTOR_FRACTION = 4  # with UDP services, 1/4 of the descriptors is reserved for their upstream sockets
RESERVED_DESCRIPTORS = 32  # listeners come on top; the rest is two a session
CHORES = 0.05  # seconds that a busy worker may go without looking at the clock


class Worker:
    """Serves slot ``slot`` of ``settings``, a config.Config, on ``held`` ({name: socket}).

    ``line`` is the channel to the supervisor; ``region`` is the generation's shared memory, of which this process
    writes the row of its slot. ``estate`` is where it leaves its UDP sessions to its successor, ``predecessors`` is
    where it finds those of others (handover.py).
    """

    def __init__(self, settings, held, log, line, region, slot, estate=None, predecessors=()):
        self.region = region
        self.slot = slot
        region.reset_gauges(slot)
        self._cells = region.cells
        self._counted = {name: region.cell(slot, "worker", name) for name in WORKER_FIELDS}
        self.loop = loop = EventLoop(log, self.count, own_addresses.own_addresses())
        self._next_address_check = loop.now() + own_addresses.REFRESH
        self._config = settings
        self._line = line
        self._estate = estate
        self._predecessors = predecessors
        self._has_heir = False  # whether somebody takes over the UDP sessions
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        pipes = splice.PipePool(splice.most_pipes(region.slots, soft_limit))
        descriptors = soft_limit - RESERVED_DESCRIPTORS - len(held) - 2 * pipes.bound
        has_udp = any(service.protocol == "udp" for service in settings.services)
        upstreams = descriptors // UDP_DESCRIPTOR_FRACTION if has_udp else 0
        ports = SourcePorts(settings.source_ports)
        self.tcp = TcpServer(loop, pipes, max(1, (descriptors - upstreams) // 2), slot, settings.services)
        self.udp = UdpServer(loop, ports, upstreams, slot, region.slots)
        self._add_listeners(held, ports)
        self._beat = region.beat_cell(slot)
        self._next_chores, self._patience = 0.0, 0.0  # when, and how long the next turn may wait for events
        self.draining = False
        self._terminations = 0  # SIGTERMs so far: the first drains, the second is now

    def _add_listeners(self, held, ports):
        """Give each listening socket to TCP or UDP, with the runtime of its service."""
        runtimes, region = {}, self.region
        for name, (service, listener) in listeners.required(self._config, region.slots, held).items():
            if service.name not in runtimes:
                runtimes[service.name] = ServiceRuntime.from_config(service, region, self.slot, ports, self.loop.log)
            slot = listeners.slot_of(name) % region.slots
            if service.protocol == "udp":
                self.udp.listen(held[name], name, slot, runtimes[service.name], listener)
            else:
                self.tcp.listen(held[name], slot, runtimes[service.name], listener)

    def count(self, name):
        """Add one to a counter of this worker, one of shared_memory.WORKER_FIELDS."""
        self._cells[self._counted[name]] += 1

    def cover(self, slots):
        """Serve these slots besides the own one, until told otherwise."""
        for server in (self.tcp, self.udp):
            server.serve_slots({self.slot, *slots})

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self):
        """Serve until drained; tells the supervisor when it is READY. Returns the exit code."""
        wakeup = self._take_signals()
        self.loop.poller.register(wakeup, READ, lambda _mask: os.read(wakeup, 64))
        self.loop.poller.register(self._line, READ, self._hear)
        self.tcp.set_accepting(True)
        Takeover(self.udp, self._predecessors)
        gc.collect()
        gc.freeze()
        self._do_chores(self.loop.now())
        self._line.send({READY: True})
        while not (self.draining and not self.tcp.sessions):
            self._turn()
            if self._terminations and not self.draining:
                self._hear(READ)  # what was said before the signal was sent
                self.drain("SIGTERM")
            if self._terminations > 1:
                self.tcp.abort_all("stopped")
        self.loop.log.event("worker ends", counters=self._own_counters())
        self.loop.log.flush()
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
                self.loop.log.set_level(message["log_level"])
            if "sessions" in message:
                self._answer(message["sessions"], self._some_sessions(message))
        if gone:
            self.loop.poller.unregister(self._line)
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
            for one in (*self.tcp.sessions, *self.udp.table.flows)
            if service in (None, one.service.name)
            and (backend is None or (one.backend is not None and one.backend.name == backend))
        ]
        oldest = heapq.nsmallest(message["limit"], wanted, key=lambda one: one.started)
        now = self.loop.now()
        return {"count": len(wanted), "sessions": [one.summary(now) for one in oldest]}

    def _turn(self):
        loop = self.loop
        busy = loop.poller.turn(self._patience, loop.contain)
        now = loop.now()
        if now >= self._next_chores or not busy:
            self._do_chores(now)
        if loop.log.waiting:
            loop.log.flush()
        # After a turn with events the next is near, and to know the very moment of what else is due would cost more.
        self._patience = CHORES if busy else self._timeout()

    def _do_chores(self, now):
        """Everything that goes by the clock; while there is traffic, every CHORES seconds."""
        self._next_chores = now + CHORES
        if self._beat is not None:
            self._cells[self._beat] = int(now * 1000)
        if now >= self._next_address_check:
            self._check_own_addresses(now)
        for callback in self.loop.timers.due(now):
            self.loop.call(callback)
        self.tcp.check(now)
        self.udp.check(now)
        self._cells[self._counted["log_dropped"]] = self.loop.log.dropped

    def _timeout(self):
        """Return the seconds until something is due by the clock, if only the time to be written (heartbeat.py)."""
        now = self.loop.now()
        due = self.loop.timers.timeout(now)
        timeout = min(BEAT if due is None else min(BEAT, due), self.tcp.seconds_to_check(now))
        timeout = min(timeout, self.udp.seconds_to_check(now))
        return min(RETRY, timeout) if self.loop.log.waiting else timeout  # the reader of the log is slow

    def _check_own_addresses(self, now):
        self._next_address_check = now + own_addresses.REFRESH
        try:
            addresses = own_addresses.own_addresses()
        except OSError as error:  # short of descriptors: the old list does until the next check
            self.loop.log.event("own addresses unknown", level="warning", reason=str(error))
            return
        if addresses != self.loop.own_addresses:  # services remember what follows from this very object
            self.loop.own_addresses = addresses

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
        self.tcp.drain()
        self._leave_sessions()
        timeout = self._config.drain_timeout
        self.loop.log.event("draining", reason=why, sessions=len(self.tcp.sessions), timeout=timeout)
        self.loop.timers.add(self.loop.now() + timeout, lambda: self.tcp.abort_all("drain timeout"))

    def _leave_sessions(self):
        """UDP has nothing to drain: somebody goes on with the sessions, or they end here and now."""
        if self._has_heir:
            try:
                self.udp.hand_over(self._estate)
            except OSError as error:
                self.loop.log.event("sessions not handed over", level="error", reason=str(error))
        self.udp.end_all("stopped")
        if self._estate is not None:
            self._estate.close()
