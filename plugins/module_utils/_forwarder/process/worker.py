# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker: one process with one event loop, which carries all traffic of one slot.

It is created after the fork, because the supervisor would share an inherited epoll. It serves the listeners of its own
slot and of slots that the supervisor makes it cover, and reports READY when it accepts. It drains on SIGTERM, on a
message of a supervisor that may not signal it, and also when its channel is closed, because then the supervisor has
ended without a successor; a second SIGTERM ends it at once. How long it may drain is what the supervisor says
(``drain_deadline``, in seconds from then; null: until the last session has ended); a supervisor that says nothing is of
version 0.1.0, which kills its workers a little after stop_timeout.
"""

from __future__ import annotations

import gc
import os
import resource
import signal

from ..admission.source_address import SourcePorts
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
from . import change_messages, config_change, denied_clients, down_backends, removals, serving
from .channel import READY, TooLarge, close_descriptors
from .session_requests import SessionRequests

REQUESTS = {"oldest", "clients", "kill"}  # of session_requests.py; "sessions" is what version 0.1.0 knows
PERIODIC_INTERVAL = 0.05  # seconds between two runs of periodic work while there is traffic


class Worker:
    """Serves the slot ``slot`` of ``config``, a config.Config, on the sockets ``listening``, {name: socket}.

    ``channel`` leads to the supervisor. ``region`` is the shared memory of the generation; this process writes the row
    of its slot. On the socket ``handover`` it sends its UDP sessions to the next worker; from the sockets
    ``predecessors`` it receives those of earlier workers (udp/handover.py). ``tables`` are of banned clients.

    It takes later configs in place (change_messages.py): then ``generation``, the number of the one that it serves,
    the config and the region change.
    """

    def __init__(
        self, config, listening, log, channel, region, slot, handover=None, predecessors=(), generation=1, tables=()
    ):
        self.region = region
        self.slot = slot
        self.generation = generation
        region.reset_gauges(slot)
        self._cells = region.cells
        self._counted = self._cells_to_count(region)
        self.loop = loop = EventLoop(log, self.count, own_addresses.own_addresses())
        self._next_address_check = loop.now() + own_addresses.REFRESH
        self.config = config
        self._channel = channel
        self._changes = change_messages.Receiver(self, channel)
        self._handover = handover
        self._predecessors = predecessors
        self._has_successor = False  # whether another worker takes over the UDP sessions
        pipes = splice.PipePool(splice.most_pipes(region.slots, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        sessions, upstreams = serving.descriptors(config, len(listening), pipes.bound)
        ports = SourcePorts(config.source_ports, proxy_id=config.proxy_id)
        self.tcp = TcpServer(loop, pipes, sessions, slot, config.services)
        self.udp = UdpServer(loop, ports, upstreams, slot, region.slots)
        self.serving = serving.Serving(config, region, slot, listening, ports, self.tcp, self.udp)
        self.tcp.acceptors = self.serving.acceptors
        self.udp.listen(self.serving.udp_listeners, [])
        self.earlier = config_change.Earlier(self)
        self.denied = denied_clients.DeniedClients(self, tables)
        self._requests = SessionRequests(self.tcp, self.udp)
        self._beat = region.beat_cell(slot)
        self._next_periodic = 0.0  # when periodic work is due
        self._log_dropped = log.dropped  # lines that the counter has
        self._poll_timeout = 0.0  # seconds that the next turn may wait for events
        self.draining = False
        self._drain_timeout = config.stop_timeout  # seconds; None: draining has no deadline
        self._terminations = 0  # number of SIGTERMs; the first one drains, the second one ends the worker at once

    def _cells_to_count(self, region):
        return {
            name: region.cell(self.slot, "worker", name) for name in WORKER_FIELDS if ("worker", name) in region.offsets
        }

    def count(self, name):
        """Add one to a counter of this worker, one of shared_memory.WORKER_FIELDS."""
        if name in self._counted:  # the region may be of an earlier version
            self._cells[self._counted[name]] += 1

    def cover(self, slots):
        """Serve these slots besides the own one, until the next call."""
        for server in (self.tcp, self.udp):
            server.serve_slots({self.slot, *slots})

    def enter(self, generation, config, region):
        """Serve this generation from here on: log, count and write the heartbeat as one of its workers."""
        self.generation, self.config, self.region = generation, config, region
        self._drain_timeout = config.stop_timeout
        self._cells = region.cells
        self._counted = self._cells_to_count(region)
        self._beat = region.beat_cell(self.slot)
        self._write_heartbeat(self.loop.now())
        self.loop.log.set_format(config.log.format)
        self.loop.log.set_base(generation=generation)

    def released(self, generation):
        """Report that this worker counts nothing more in the region of an older generation; return whether it can."""
        return self._channel.send({"released": generation})

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self):
        """Serve until drained, and report READY to the supervisor. Return the exit status."""
        wakeup = self._take_signals()
        self.loop.poller.register(wakeup, READ, lambda _mask: os.read(wakeup, 64))
        self.loop.poller.register(self._channel, READ, self._receive)
        self.tcp.set_accepting(True)
        Takeover(self.udp, self._predecessors)
        gc.collect()
        gc.freeze()
        self._do_periodic_work(self.loop.now())
        self._channel.send({READY: True})
        while not (self.draining and not self.tcp.sessions):
            self._turn()
            if self._terminations and not self.draining:
                self._receive(READ)  # messages that were sent before the signal
                self.drain("SIGTERM")
            if self._terminations > 1:
                self.tcp.abort_all("stopped")
        self.loop.log.event("worker exits", counters=self._own_counters())
        self.loop.log.flush()
        return 0

    def _own_counters(self):
        return {name: self._cells[cell] for name, cell in self._counted.items()}

    def _receive(self, _mask):
        """Act on messages from the supervisor, and drain if it has ended."""
        messages, closed = self._channel.receive()
        for message in messages:
            if "cover" in message:
                self.cover(message["cover"])
            self._has_successor = self._has_successor or "hand_over" in message
            if "drain_deadline" in message:
                self._set_drain_timeout(message["drain_deadline"])
            if "drain" in message:
                self.drain("as the supervisor says")
            if "log_level" in message:
                self.loop.log.set_level(message["log_level"])
            if "sessions" in message:
                self._answer(message["sessions"], self._requests.oldest(message))
            for request in REQUESTS & message.keys():
                question = message[request]
                self._answer(question["number"], getattr(self._requests, request)(question))
            if "removed" in message:
                self._end_removed_later(message["removed"])
            if "down" in message:
                down_backends.end_sessions(self.tcp, self.udp, message["down"])
            if "denied" in message:
                self.denied.receive(message)
            self._changes.receive(message)
            close_descriptors(message)
        if closed:
            self.loop.poller.unregister(self._channel)
            if not self.draining:
                self._drain_timeout = self.config.drain_timeout
            self._terminations = max(1, self._terminations)  # so that the next SIGTERM ends its sessions
            self.drain("the supervisor has ended")

    def _answer(self, number, answer):
        """Answer a question about sessions, with as many of the oldest sessions as fit into a message."""
        while True:
            try:
                self._channel.send({"answer": number, **answer})
                return
            except TooLarge:
                if not answer["sessions"]:
                    raise
                answer["sessions"] = answer["sessions"][: len(answer["sessions"]) // 2]

    def _end_removed_later(self, removal):
        """End the sessions of a service or backend that has left the config, at its deadline."""

        def end():
            count = removals.end_sessions(self.tcp, removal)
            if count:
                fields = {"service": removal["service"], "sessions": count}
                self.loop.log.event("sessions of a removal ended", level="warning", **fields)

        self.loop.timers.add(self.loop.now() + removal["after"], end)

    def _turn(self):
        loop = self.loop
        busy = loop.poller.turn(self._poll_timeout, loop.contain)
        now = loop.now()
        if now >= self._next_periodic or not busy:
            self._do_periodic_work(now)
        if loop.log.waiting:
            loop.log.flush()
        # After a turn with events more will follow soon, and computing the exact timeout would cost more than it saves.
        self._poll_timeout = PERIODIC_INTERVAL if busy else self._timeout()

    def _do_periodic_work(self, now):
        """Write the heartbeat, run timers, and check timeouts and own addresses."""
        self._next_periodic = now + PERIODIC_INTERVAL
        self._write_heartbeat(now)
        if now >= self._next_address_check:
            self._check_own_addresses(now)
        for callback in self.loop.timers.due(now):
            self.loop.call(callback)
        self.tcp.check(now)
        self.udp.check(now)
        dropped = self.loop.log.dropped
        self._cells[self._counted["log_dropped"]] += dropped - self._log_dropped
        self._log_dropped = dropped

    def _write_heartbeat(self, now):
        if self._beat is not None:
            self._cells[self._beat] = int(now * 1000)

    def _timeout(self):
        """Return the seconds until periodic work is due, at the latest the next heartbeat."""
        now = self.loop.now()
        due = self.loop.timers.timeout(now)
        timeout = min(BEAT if due is None else min(BEAT, due), self.tcp.seconds_to_check(now))
        timeout = min(timeout, self.udp.seconds_to_check(now))
        return min(RETRY, timeout) if self.loop.log.waiting else timeout  # the log could not be written completely

    def _check_own_addresses(self, now):
        self._next_address_check = now + own_addresses.REFRESH
        try:
            addresses = own_addresses.own_addresses()
        except OSError as error:  # no descriptor left: keep the old list until the next check
            self.loop.log.event("own addresses unknown", level="warning", reason=str(error))
            return
        if addresses != self.loop.own_addresses:  # equal sets stay one object, because services cache by identity
            self.loop.own_addresses = addresses

    # -- draining --------------------------------------------------------------------------------------------------

    def _take_signals(self):
        """Install the signal handlers, and return the wakeup pipe, whose events end the poll."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_termination)
        for number in (
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR1,
        ):  # only the supervisor acts on these
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        return read

    def _on_termination(self, _number, _frame):
        self._terminations += 1

    def drain(self, reason):
        """Accept what is queued and no more, and exit after the last session, or at the deadline if there is one."""
        if self.draining:
            return
        self.draining = True
        self._changes.discard()
        self.tcp.drain()
        self._hand_over_udp()
        timeout = self._drain_timeout
        self.loop.log.event("draining", reason=reason, sessions=len(self.tcp.sessions), timeout=timeout)
        self._set_drain_timeout(timeout)

    def _set_drain_timeout(self, seconds):
        """Draining, now or from when it begins, ends after ``seconds``, or earlier if that was said before."""
        self._drain_timeout = seconds
        if self.draining and seconds is not None:
            self.loop.timers.add(self.loop.now() + seconds, lambda: self.tcp.abort_all("drain timeout"))

    def _hand_over_udp(self):
        """Hand the UDP sessions over to the next worker, if there is one; end all others (UDP does not drain)."""
        if self._has_successor:
            try:
                self.udp.hand_over(self._handover)
            except OSError as error:
                self.loop.log.event("sessions not handed over", level="error", reason=str(error))
        self.udp.end_all("stopped")
        if self._handover is not None:
            self._handover.close()
