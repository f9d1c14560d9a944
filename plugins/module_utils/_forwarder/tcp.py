# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The TCP relay: one accepted connection, one upstream socket, and bytes both ways.

session.py decides, this module does. What keeps it fast (forwarder.md has the measurements): one buffer for the whole
worker; what was received is sent on at once and is kept only when the other side does not take it; a short read means
drained, so nobody asks again only to hear EAGAIN; a socket's interest changes only when a direction blocks or ends;
and a side that wants nothing is unregistered, because epoll reports errors and hangups whether one asks or not.

Backpressure: at most one chunk (BUFFER_SIZE) waits for a side, and while it waits its source is not read, so the
kernel's windows close all the way to the sender.
"""

from __future__ import annotations

import errno
import selectors

from . import sockets, spoof
from .session import Action, Event, Session, State

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

BUFFER_SIZE = 65536  # bytes
READS_IN_A_ROW = 4  # full buffers one side may bring before the others get their turn

_buffer = bytearray(BUFFER_SIZE)  # safe to share: between recv_into and send nothing else runs in this process
_view = memoryview(_buffer)

# Errors that are about the backend or the way to it. All others are about this host, and no backend is to blame.
_BACKENDS_FAULT = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ECONNABORTED,
}

# Errors another backend would not help against.
_HOPELESS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Side:
    """One socket of a relay. ``pending`` is what it has not taken yet, ``sent`` the bytes it took."""

    __slots__ = ("eof", "interest", "peer", "pending", "relay", "reset", "sent", "sock")

    def __init__(self, sock, relay, eof, reset):
        self.sock = sock
        self.relay = relay
        self.eof = eof  # the events this side's end is reported as
        self.reset = reset
        self.peer = None
        self.pending = None
        self.interest = 0
        self.sent = 0

    def want(self, interest):
        """Have the selector report ``interest`` and nothing else."""
        if interest == self.interest:
            return
        selector = self.relay.worker.selector
        if not self.interest:
            selector.register(self.sock, interest, self.ready)
        elif not interest:
            selector.unregister(self.sock)
        else:
            selector.modify(self.sock, interest, self.ready)
        self.interest = interest

    def ready(self, mask):
        """The selector's callback."""
        if mask & WRITE and self.pending is not None:
            self._flush()
        if mask & READ and self.interest & READ:
            self.pump()

    def pump(self):
        """Move what this side has sent to the other; returns whether there was anything (an end counts)."""
        peer = self.peer
        for _turn in range(READS_IN_A_ROW):
            try:
                count = self.sock.recv_into(_buffer)
            except BlockingIOError:
                return False
            except OSError:
                self.relay.handle(self.reset)
                return True
            if not count:
                self.relay.handle(self.eof)
                return True
            try:
                taken = peer.sock.send(_view[:count])
            except BlockingIOError:
                taken = 0
            except OSError:
                peer.salvage()
                self.relay.handle(peer.reset)
                return True
            peer.sent += taken
            if taken < count:
                peer.pending = memoryview(bytes(_view[taken:count]))
                peer.want(peer.interest | WRITE)
                self.want(self.interest & ~READ)
                return True
            if count < BUFFER_SIZE:
                return True
        return True

    def _flush(self):
        try:
            taken = self.sock.send(self.pending)
        except BlockingIOError:
            return
        except OSError:
            self.salvage()
            self.relay.handle(self.reset)
            return
        self.sent += taken
        if taken < len(self.pending):
            self.pending = self.pending[taken:]
            return
        self.pending = None
        self.want(self.interest & ~WRITE)
        self.peer.want(self.peer.interest | READ)  # it was paused for this chunk, so it has not ended

    def salvage(self):
        """Pass on what this side sent before it reset us: a server that answers early and closes resets the upload.

        The kernel still has it, and a client without a proxy in between would have received it.
        """
        peer = self.peer
        if peer.pending is not None:
            return  # the peer is behind: nothing more can reach it in order
        try:
            while True:
                count = self.sock.recv_into(_buffer)
                if not count:
                    return
                taken = peer.sock.send(_view[:count])
                peer.sent += taken
                if taken < count:
                    return
        except OSError:
            return

    def detach(self):
        """Forget the socket and everything that refers back, so that no garbage is left to collect; return it."""
        sock, self.sock = self.sock, None
        if self.interest:
            self.relay.worker.selector.unregister(sock)
            self.interest = 0
        self.peer = self.pending = self.relay = None
        return sock


class Relay:
    """One connection of a client, from accept to the line in the log.

    ``worker`` has .selector .wheel .log .now() .own_addresses .backend_addresses .finished(relay); ``service`` is a
    config.Service, ``backends`` the balancer.Backends of the client's family, ``listener`` a config.Listener.
    """

    __slots__ = (
        "_deadline",
        "_failure",
        "_timer",
        "attempts",
        "backend",
        "backends",
        "client",
        "client_address",
        "index",
        "listener",
        "service",
        "session",
        "started",
        "tried",
        "upstream",
        "worker",
    )

    def __init__(self, worker, service, listener, backends, sock, client_address):
        self.worker = worker
        self.service = service
        self.listener = listener
        self.backends = backends
        self.client_address = client_address  # as accept() gives it: (host, port, ...)
        self.session = Session()
        self.client = Side(sock, self, Event.CLIENT_EOF, Event.CLIENT_RESET)
        self.upstream = None
        self.backend = None  # the config.Backend of the current, and at the end of the last, attempt
        self.index = None
        self.tried = ()  # indexes this connection has had
        self.attempts = 0  # connects begun
        self.started = worker.now()
        self._deadline = self.started + service.connect_deadline
        self._failure = None
        self._timer = None

    def start(self):
        """Begin: refuse a client that cannot be spoofed, or make the first attempt."""
        refusal = spoof.refusal(self.client_address[0], self.worker.own_addresses, self.worker.backend_addresses)
        if refusal:
            self.handle(Event.GIVEN_UP, refusal)
        else:
            self._choose()

    def abort(self, reason):
        """Reset both sides, whatever they are doing."""
        self.handle(Event.ABORT, reason)

    def handle(self, event, reason=None):
        """Report an event to the session and carry out what it says."""
        actions = self.session.handle(event, reason)
        finishing = actions and self.session.state is State.FINISHED  # asked now: an action may report the next event
        for action in actions:
            _DO[action](self)
        if finishing:
            self._stop_timer()
            self.worker.finished(self)

    # -- connecting ------------------------------------------------------------------------------------------------

    def _choose(self):
        """Begin an attempt with the next backend, or give up."""
        family = self.listener.family
        while self.attempts <= self.service.retries:
            now = self.worker.now()
            if now >= self._deadline:
                break
            client = self.client_address[0]
            index = self.backends.next(client, self.tried, now)
            if index is None:
                break
            self.tried += (index,)
            self.index, self.backend = index, self.backends.backends[index]
            address = self.backend.address(family)
            self.attempts += 1
            try:
                sock = sockets.connect_upstream(client, address, self.backend.port)
            except OSError as error:
                self._attempt_failed(error.errno, sockets.describe(error))
                if error.errno in _HOPELESS or isinstance(error, sockets.CapabilityError):
                    break
                continue
            self._begin_attempt(sock, now)
            return
        self.handle(Event.GIVEN_UP, self._failure or "connect deadline")

    def _begin_attempt(self, sock, now):
        self.handle(Event.ATTEMPT)
        upstream = self.upstream = Side(sock, self, Event.BACKEND_EOF, Event.BACKEND_RESET)
        self.worker.selector.register(sock, READ | WRITE, self._connect_done)
        upstream.interest = READ | WRITE
        deadline = min(now + self.service.connect_timeout, self._deadline)
        self._timer = self.worker.wheel.add(deadline, self._too_slow)

    def _too_slow(self):
        self._timer = None
        self._attempt_failed(errno.ETIMEDOUT, f"no answer within {self.service.connect_timeout:g} s")
        self.handle(Event.ATTEMPT_FAILED)

    def _connect_done(self, mask):
        """The callback while connecting. Only WRITE: connected. READ as well: an error, or the server spoke first."""
        if self.session.state is not State.CONNECTING:
            return
        if mask & READ:
            number = sockets.connect_error(self.upstream.sock)
            if number:
                self._attempt_failed(number, sockets.describe_errno(number))
                self.handle(Event.ATTEMPT_FAILED)
                return
        self._stop_timer()
        if self.backends.health.succeeded(self.index):
            self._log_health("backend answers again")
        self.handle(Event.CONNECTED)

    def _attempt_failed(self, number, why):
        """Remember why, for the log, and for the next clients when the backend is to blame."""
        self._failure = why
        if number in _BACKENDS_FAULT and self.backends.health.failed(self.index, self.worker.now()):
            self._log_health("backend skipped", reason=why)

    def _log_health(self, event, **fields):
        self.worker.log.event(
            event, service=self.service.name, backend=self.backend.name, family=self.listener.family, **fields
        )

    def _stop_timer(self):
        if self._timer is not None:
            self.worker.wheel.discard(self._timer, self._too_slow)
            self._timer = None

    # -- actions ---------------------------------------------------------------------------------------------------

    def _relay(self):
        """Both ends are there: pass on what the client has sent meanwhile, then listen to both."""
        client, upstream = self.client, self.upstream
        client.peer, upstream.peer = upstream, client
        upstream.want(READ)
        client.want(READ)
        if not client.pump() and client.sock is not None:
            sockets.acknowledge_now(upstream.sock)

    def _shut(self, side, source):
        """``source`` has ended: send FIN to ``side``, read ``source`` no more."""
        source.want(source.interest & ~READ)
        try:
            side.sock.shutdown(1)
        except OSError:  # ENOTCONN: it was reset in this very moment
            self.handle(side.reset)

    def _shut_client(self):
        self._shut(self.client, self.upstream)

    def _shut_backend(self):
        self._shut(self.upstream, self.client)

    def _drop_attempt(self):
        self._stop_timer()
        self.upstream.detach().close()
        self.upstream = None

    def _close_client(self):
        self.client.detach().close()

    def _close_backend(self):
        self.upstream.detach().close()

    def _reset_client(self):
        sockets.reset(self.client.detach())

    def _reset_backend(self):
        sockets.reset(self.upstream.detach())

    # -- the log ---------------------------------------------------------------------------------------------------

    def summary(self):
        """Return the fields of this connection's line in the log; durations in seconds, sizes in bytes."""
        connected = self.upstream is not None and self.session.ended is not None
        backend = self.backend
        return {
            "service": self.service.name,
            "client": self.client_address[0],
            "client_port": self.client_address[1],
            "listener": str(self.listener),
            "backend": backend.name if backend else None,
            "source": self.client_address[0] if connected else None,
            "attempts": self.attempts,
            "bytes_to_backend": self.upstream.sent if connected else 0,
            "bytes_to_client": self.client.sent,
            "duration": round(self.worker.now() - self.started, 6),
            "ended": self.session.ended,
        }


_DO = {
    Action.RELAY: Relay._relay,
    Action.DROP_ATTEMPT: Relay._drop_attempt,
    Action.CHOOSE: Relay._choose,
    Action.SHUT_CLIENT: Relay._shut_client,
    Action.SHUT_BACKEND: Relay._shut_backend,
    Action.CLOSE_CLIENT: Relay._close_client,
    Action.CLOSE_BACKEND: Relay._close_backend,
    Action.RESET_CLIENT: Relay._reset_client,
    Action.RESET_BACKEND: Relay._reset_backend,
}
