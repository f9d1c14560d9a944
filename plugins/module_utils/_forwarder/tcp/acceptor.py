# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A listening TCP socket of a worker: it accepts connections in batches and starts a relay for each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..._shared.families import socket_family_of
from ..admission.limits import PER_SERVICE
from ..loop import sockets
from ..loop.batch import Batch
from ..loop.poller import READ
from .log_record import FIELDS
from .relay import Relay
from .start_logged import StartLogged

if TYPE_CHECKING:
    import socket

    from ..backends.service_runtime import ServiceRuntime
    from ..config.service import Listener
    from .server import TcpServer

MOST_ACCEPTED = 32  # connections of one listener in a turn; then existing sessions get their turn
PAUSE = 0.2  # seconds without accepting after the kernel ran out of descriptors or memory


class Acceptor:
    """One listening socket of ``runtime``, the supervisor's ``name`` for it, and the worker slot it belongs to.

    A config that is taken in place makes another one for the same socket; sessions that cannot move keep this one.
    """

    def __init__(
        self, server: TcpServer, sock: socket.socket, name: str, slot: int, runtime: ServiceRuntime, listener: Listener
    ) -> None:
        self.server = server
        self.sock = sock
        self.name = name
        self.slot = slot
        self.runtime = runtime
        self.listener = listener
        self.targets = runtime.targets(listener)
        self._family = socket_family_of(listener.address)
        self._accept_one = sock._accept  # type: ignore[attr-defined]  # private; sockets.accept() says why
        self._listening = False
        self._batch = Batch(MOST_ACCEPTED)
        self._new_relay = StartLogged if runtime.service.log_start else Relay
        runtime.acceptors.append(self)

    def log(self, values: tuple) -> None:
        """Log the values of log_record.FIELDS. The function for it is made for the first line."""
        kind = self.server.loop.log.kind
        line = kind("connection", FIELDS, service=self.runtime.service.name, listener=str(self.listener))
        self.log = line  # type: ignore[method-assign, assignment]
        line(values)

    def follow(self, other: Acceptor) -> None:
        """Take the socket of ``other``, of an earlier config."""
        self._batch = other._batch
        self._listening, other._listening = other._listening, False
        if self._listening:
            self.server.loop.poller.replace(self.sock.fileno(), self.ready)

    def without_listener(self, runtime: ServiceRuntime) -> Acceptor:
        """Return an acceptor that accepts nothing, for sessions that go on with ``runtime``: their listener is gone."""
        acceptor = Acceptor(self.server, self.sock, self.name, self.slot, runtime, self.listener)
        runtime.acceptors.remove(acceptor)
        return acceptor

    def close(self) -> None:
        """Accept what is queued, if this worker serves the socket, and close it."""
        if self.slot in self.server.slots:
            self.accept(self.runtime.service.backlog)
        if self._listening:
            self._listening = False
            self.server.loop.poller.unregister(self.sock)
        self.sock.close()

    def update(self) -> None:
        """Register with the poller, or leave it, as server and service want it now."""
        server = self.server
        wanted = server.accepting and self.slot in server.slots and not self.runtime.paused
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            server.loop.poller.register(self.sock, READ, self.ready)
        else:
            server.loop.poller.unregister(self.sock)

    def ready(self, _mask: int) -> None:
        """The poller's callback: accept a batch."""
        batch = self._batch
        size = batch.size
        accepted = self.accept(size)
        if accepted == size:
            batch.was_full()
        else:
            batch.came_to(accepted)

    def accept(self, limit: int) -> int:
        """Accept up to ``limit`` waiting connections; return how many it took from the backlog."""
        server, runtime, new_relay = self.server, self.runtime, self._new_relay
        limiter = runtime.limiter
        room = server.room
        if not room:
            server.pause("sessions use all descriptors (RLIMIT_NOFILE)")
            return 0
        most = min(limit, room)
        for turn in range(most):
            full = limiter is not None and limiter.full
            if full and limiter is not None and limiter.pauses:
                server.pause_service(runtime)
                return turn
            try:
                sock, address = sockets.accept(self._accept_one, self._family)
            except BlockingIOError:
                return turn
            except OSError as error:
                if error.errno in sockets.OUT_OF_RESOURCES:
                    server.pause(os.strerror(error.errno), PAUSE)
                    return turn
                continue  # the connection ended before it was accepted (accept(2), "Error handling")
            relay = new_relay(server, self, sock, address)
            server.sessions.add(relay)
            runtime.counters.began()
            try:
                if full:
                    relay.refuse(PER_SERVICE)
                else:
                    relay.start()
            except Exception as error:  # noqa: BLE001
                server.loop.contain(relay, error)
        return most
