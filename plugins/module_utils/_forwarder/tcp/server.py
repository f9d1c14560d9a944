# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All TCP of one worker: its listening sockets, its sessions, and when it accepts connections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..backends import open_log
from ..loop.log import Repeats
from ..loop.timers import TICK
from . import samples, timeouts
from .acceptor import PAUSE, Acceptor
from .other_ports import OtherPorts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..backends.service_runtime import ServiceRuntime
    from ..config.service import Service
    from ..loop.event_loop import EventLoop
    from .relay import Relay
    from .splice import PipePool


class TcpServer:
    """Its relays register themselves in ``sessions`` and, during an attempt, in ``connecting``.

    ``most_sessions`` is how many sessions are sure to find file descriptors; ``slot`` is the worker's own slot.
    """

    def __init__(
        self, loop: EventLoop, pipes: PipePool, most_sessions: int, slot: int, services: Iterable[Service]
    ) -> None:
        self.loop = loop
        self.pipes = pipes
        self.most_sessions = most_sessions
        self.sessions: set[Relay] = set()
        self.connecting: dict[Relay, float] = {}  # deadline of the attempt; in the order the attempts began in
        self.other_ports = OtherPorts(lambda: self.room)
        self.acceptors: list[Acceptor] = []  # each accepts once set_accepting() says so
        self.slots = {slot}  # worker slots whose listeners it serves
        self.accepting = False
        self.paused = False  # whether it accepts nothing until a session ends or some time has passed
        self._pauses_logged = Repeats()
        self._draining = False
        self._next_check, self._checked = float("inf"), loop.now()
        self.set_timeouts(services)

    @property
    def room(self) -> int:
        """How many more sessions are sure to find file descriptors."""
        return max(0, self.most_sessions - len(self.sessions))

    # -- accepting -------------------------------------------------------------------------------------------------

    def set_timeouts(self, services: Iterable[Service]) -> None:
        """Check the sessions as often as the timeouts of ``services`` need it."""
        services = tuple(services)
        self._interval = timeouts.interval(services)
        self._logs_open = any(service.log_every for service in services)
        self._next_check = min(self._next_check, self.loop.now() + self._interval)

    def set_accepting(self, on: bool) -> None:
        """Start or stop accepting; until it starts, connections wait in the backlog."""
        self.accepting = on
        self.update()

    def serve_slots(self, slots: set[int]) -> None:
        """Accept from the listeners of these worker slots."""
        self.slots = slots
        if not self._draining:
            self.update()

    def update(self) -> None:
        """Let each acceptor follow what has changed."""
        for acceptor in self.acceptors:
            acceptor.update()

    def pause(self, reason: str, seconds: float | None = None) -> None:
        """Stop accepting until a session ends, or for ``seconds``."""
        self.set_accepting(False)
        if self.paused:  # another listener was ready in the same turn
            return
        self.paused = True
        self._log_pause(reason, sessions=len(self.sessions))
        if seconds is not None:
            self.loop.timers.add(self.loop.now() + seconds, self._resume)

    def pause_service(self, runtime: ServiceRuntime) -> None:
        """Stop accepting for a service that is at its connection limit."""
        if not runtime.paused:
            runtime.pause(True)
            self._log_pause("connection limit of the service", service=runtime.service.name)
            self.check_service_later(runtime)

    def check_service_later(self, runtime: ServiceRuntime) -> None:
        """Another worker may free capacity without notifying this one, so check again after PAUSE."""

        def check():
            if runtime.paused and not self._resume_service(runtime):
                self.check_service_later(runtime)

        self.loop.timers.add(self.loop.now() + PAUSE, check)

    def resume_after(self, runtime: ServiceRuntime) -> None:
        """A session of ``runtime`` has ended: accept again what was paused for lack of capacity."""
        if runtime.paused:
            self._resume_service(runtime)
        if self.paused and self.room:
            self._resume()

    def _resume_service(self, runtime):
        """Accept again if the service is below its limit; return whether its state needs no further check."""
        if self._draining:
            return True
        if runtime.limiter.full:
            return False
        runtime.pause(False)
        return True

    def _resume(self):
        if self.paused and not self._draining:
            self.paused = False
            self.set_accepting(True)

    def _log_pause(self, reason, **fields):
        """Count a pause, and log it unless the same line was written a moment ago."""
        self.loop.count("accept_paused")
        if self._pauses_logged.due((reason, fields.get("service")), self.loop.now()):
            self.loop.log.event("accept paused", level="warning", reason=reason, **fields)

    # -- by the clock ----------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the attempts and sessions whose time is up."""
        for relay in timeouts.overdue(self.connecting, now):
            self.loop.call(relay.attempt_timed_out)
        for relay in timeouts.slow(self.connecting, now):
            relay.report_slow(now)
        self.other_ports.check(self.connecting, now)
        if now >= self._next_check:
            self._next_check = now + self._interval
            for relay, reason in timeouts.expired(self.sessions, now):
                relay.abort(reason)
            samples.take(self.sessions, now)
            if self._logs_open:
                open_log.log_open(self.loop, "connection", self.sessions, self._checked, now)
            self._checked = now

    def seconds_to_check(self, now: float) -> float:
        """Return the seconds until check() has something to do."""
        seconds = TICK if self.connecting else float("inf")
        return min(seconds, max(0.0, self._next_check - now)) if self.sessions else seconds

    # -- ending ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take the connections that are already queued, then close the listening sockets."""
        self._draining = True
        self.set_accepting(False)
        for acceptor in self.acceptors:
            acceptor.close()

    def end_removed(self, relays: list[Relay], reason: str) -> int:
        """Reset sessions of what has left the config, whose deadline has come; return how many they are."""
        for relay in relays:
            self.loop.count("removal_ended")
            self.loop.call(partial(relay.abort, reason))
        return len(relays)

    def abort_all(self, reason: str) -> None:
        """End every session with a reset."""
        for relay in list(self.sessions):
            relay.abort(reason)
