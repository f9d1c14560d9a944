# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay: one accepted connection and one upstream socket, from accept to the line in the log.

The order of its life: start() admits the client, or waits for its PROXY header; _attempt_next() chooses backends and
connects until one answers; _forward() joins the two sockets, whose streams (stream.py) then move the bytes; _finish()
counts and logs. state_table.py decides what an event leads to, this module carries it out.
"""

from __future__ import annotations

import errno
from typing import Any

from ..admission.refusal import Refusal
from ..admission.source_address import OWN
from ..loop import sockets
from ..loop.poller import ENDED, URGENT, WRITE, events_now
from . import log_record, proxy_protocol
from .connect_errors import BLAMES_BACKEND, HOPELESS, end_reason
from .header_reader import HeaderReader
from .state_table import BOTH_CLOSED, TABLE, Action, Event, Session, State, compiled
from .stream import Stream

# Each connection needs these. Before Python 3.12, access to an enum member costs 0.1 to 0.4 µs.
_CLIENT_EOF, _CLIENT_RESET = Event.CLIENT_EOF, Event.CLIENT_RESET
_BACKEND_EOF, _BACKEND_RESET = Event.BACKEND_EOF, Event.BACKEND_RESET
_CONNECTED = Event.CONNECTED
_CHOOSING = State.CHOOSING
_CONNECTING = TABLE[_CHOOSING, Event.ATTEMPT][0]  # an attempt has no actions, so the state is set without handle()

DEADLINE = Refusal("other", "connect deadline")


class Relay(Session):
    """One connection of a client that ``acceptor`` of ``server`` accepted."""

    __slots__ = (
        "_deadline",  # monotonic; no attempt begins or lasts beyond it
        "_own_backends",  # indexes of backends that have the client's address: they are tried last
        "_unspoofable",  # Refusal that says why the client's address cannot be the source; None: it can
        "acceptor",  # acceptor.Acceptor
        "attempted",  # monotonic; when the current or last attempt began
        "attempts",  # connects begun
        "backend",  # config.Backend of the current or last attempt
        "backends",  # balancer.Backends of the client's family
        "client",  # Stream of the accepted socket
        "client_address",  # (host, port, ...), from accept() or a PROXY header
        "counted_retransmits",  # segments sent to the backend again that samples.py has counted
        "counted_to_backend",  # bytes that count_bytes() has counted,
        "counted_to_client",  # and those in the other direction
        "index",  # in ``backends``: the backend of the current attempt, which counts this connection
        "limiter",  # limits.Limiter that counts it; None: none does
        "loop",  # event_loop.EventLoop
        "own_source",  # address of this host that is the source of the upstream socket; None: the client's is
        "proxy_header",  # proxy_protocol.Header that named the client
        "refusal",  # Refusal of the client, or of the last attempt that failed
        "runtime",  # service_runtime.ServiceRuntime
        "seen_at",  # these three belong to timeouts.py: when it last saw a change,
        "seen_moved",  # the bytes that had been forwarded by then,
        "seen_state",  # and the state; None: there was no check yet
        "server",  # server.TcpServer
        "started",  # monotonic
        "step",  # of admission/source_address.py: how the upstream socket got its source
        "tried",  # indexes of backends that no further attempt gets
        "upstream",  # Stream of the socket to the backend; None: no attempt is under way or has succeeded
        "via",  # address of the proxy that sent a PROXY header
    )

    # None until a step sets them; the states of state_table.py say when they are used.
    backend: Any
    backends: Any
    index: Any
    tried: Any
    upstream: Any
    seen_at: float

    def __init__(self, server, acceptor, sock, client_address):
        self.state = _CHOOSING
        self.server = server
        self.loop = loop = server.loop
        self.acceptor = acceptor
        self.runtime = runtime = acceptor.runtime
        self.client_address = client_address
        self.client = Stream(sock, self, _CLIENT_EOF, _CLIENT_RESET)
        self.started = self.attempted = now = loop.now()
        self._deadline = now + runtime.service.connect_deadline
        self.attempts = self.seen_moved = self.seen_at = 0
        self.counted_to_backend = self.counted_to_client = self.counted_retransmits = 0
        self.ended = self.upstream = self.via = self.proxy_header = self.backends = self.index = self.backend = None
        self.step = self.refusal = self.own_source = self._unspoofable = self._own_backends = self.tried = None
        self.limiter = self.seen_state = None

    @property
    def service(self):
        """The config.Service."""
        return self.runtime.service

    # -- before the first attempt ----------------------------------------------------------------------------------

    def start(self, from_proxy=False):
        """Admit the client and make the first attempt. ``from_proxy``: a PROXY header has named the client."""
        runtime = self.runtime
        if runtime.guarded and not self._admit(from_proxy):
            return
        address, own_addresses = self.client_address[0], self.loop.own_addresses
        self.backends, self._unspoofable, self._own_backends = runtime.backends_for(address, own_addresses, from_proxy)
        self.tried = self._own_backends
        if self._unspoofable and not runtime.source.allows_own:
            runtime.counters.count("refused")
            self.refuse(self._unspoofable)
            return
        self._attempt_next()

    def _admit(self, from_proxy):
        """Return whether the client may have a backend now; if not, refuse it or wait for its PROXY header."""
        if self.backends is not None:
            return True  # it had one before its config was replaced
        runtime, address = self.runtime, self.client_address[0]
        if not from_proxy and runtime.trusted_proxies is not None and address in runtime.trusted_proxies:
            HeaderReader(self, self.service.proxy_timeout)
            return False
        refusal = runtime.admit(address, self.started)
        if refusal:
            self.refuse(refusal)
            return False
        self.limiter = runtime.limiter
        return True

    def header_received(self, header):
        """Go on with the client that a trusted proxy named in its PROXY header."""
        self.via = self.client_address[0]
        if header.source is not None:
            self.proxy_header = header
            self.client_address = (header.source, header.source_port)
        self.attempted = now = self.loop.now()
        self._deadline = now + self.service.connect_deadline
        self.start(from_proxy=True)

    @property
    def cause(self):
        """Why it never had a backend: one of shared_memory.REFUSED."""
        if self.refusal is not None:
            return self.refusal.cause
        return "connect_failed" if self.attempts else "other"  # it was aborted

    def refuse(self, refusal):
        """Reset the client; there is no upstream socket."""
        self.refusal = refusal
        self.handle(Event.GIVEN_UP, refusal.text)

    def abort(self, reason):
        """Reset both sockets, in any state."""
        self.server.connecting.pop(self, None)
        self.server.other_ports.drop(self)
        self.handle(Event.ABORT, reason)

    def stream_failed(self, stream, number):
        """End the session: the socket of ``stream`` failed with errno ``number``."""
        self.handle(stream.reset, end_reason("client" if stream is self.client else "backend", number))

    # -- connecting ------------------------------------------------------------------------------------------------

    def _attempt_next(self):
        """Begin an attempt with the next backend; refuse the client where there is none or the time is up."""
        server, service, source = self.server, self.runtime.service, self.runtime.source
        loop = self.loop
        now = loop.now() if self.attempts else self.attempted
        while self.attempts <= service.retries and now < self._deadline and self._choose_backend(now):
            self.attempts += 1
            target = self.acceptor.targets[self.backends.family][self.index]
            try:
                if self._unspoofable is None:
                    sock, self.step = source.connect(self.client_address, target)
                else:
                    sock, self.step = source.connect_from_own(target), OWN
            except OSError as error:
                self._attempt_failed(error.errno, sockets.describe(error), error.errno in BLAMES_BACKEND)
                if error.errno in HOPELESS or isinstance(error, sockets.CapabilityError):
                    break
                now = loop.now()
                continue
            self.state, self.attempted = _CONNECTING, now
            upstream = self.upstream = Stream(sock, self, _BACKEND_EOF, _BACKEND_RESET, delay_first=True)
            loop.poller.watch(upstream.number, self._connect_done, writable=True)
            upstream.writable_watched = True
            server.connecting[self] = min(now + service.connect_timeout, self._deadline)
            return
        self.refuse(self.refusal or DEADLINE)

    def _choose_backend(self, now):
        """Choose a backend; return whether there is one. One that has the client's own address comes last."""
        backends = self.backends
        if self.index is not None:
            backends.release(self.index)  # of the attempt that failed
        index = self.index = backends.next(self.client_address[0], self.tried, now)
        if index is None and not self._choose_last_resort(now):
            return False
        self.tried += (self.index,)
        self.backend = backends.backends[self.index]
        return True

    def _choose_last_resort(self, now):
        own_backends, self._own_backends = self._own_backends, ()
        self.index, refusal = self.runtime.last_resort(
            self.backends, own_backends, self.client_address[0], self.tried, now
        )
        if self.index is None:
            self.refusal = self.refusal or refusal
            return False
        self._unspoofable = refusal
        return True

    def choose_again(self):
        """End the attempt, whose backend left the config; the next one, as the new config says, is no retry."""
        self._drop_attempt()
        self.state, self.index, self.backend = _CHOOSING, None, None
        self.attempts -= 1
        self.attempted = self.loop.now()
        self.start(from_proxy=self.via is not None)

    def report_slow(self, now):
        """Ask the health checker to probe the backend: the attempt is slow, though it may still succeed."""
        self.backends.report_slow(self.index, now)

    def attempt_timed_out(self):
        """End the attempt after connect_timeout, and try the next backend."""
        for stream in self.server.other_ports.streams(self):
            mask = events_now(stream.number)
            if mask:  # the connect has ended, and this worker was too busy to see it
                self.answered(stream, mask)
                return
        self._attempt_failed(errno.ETIMEDOUT, f"no answer within {self.service.connect_timeout:g} s", True)
        self.handle(Event.ATTEMPT_FAILED)

    def answered(self, stream, mask):
        """Go on with ``stream``, the first socket of this attempt that has an event."""
        self.server.other_ports.decide(self, stream, mask)
        self._connect_done(mask)

    def _connect_done(self, mask):
        """The poller's callback during an attempt. WRITE alone: connected. More: an error, or the server sent first."""
        if mask != WRITE:
            upstream = self.upstream
            upstream.unread = True
            upstream.until_empty = bool(mask & (ENDED | URGENT))
            upstream.check_mark = bool(mask & URGENT)
            number = sockets.pending_error(upstream.sock)
            if number:
                self._attempt_failed(number, sockets.describe_errno(number), True)
                self.handle(Event.ATTEMPT_FAILED)
                return
        del self.server.connecting[self]
        now = self.loop.now()
        runtime, backends, client = self.runtime, self.backends, self.client_address[0]
        if backends.connected(client, self.index, now - self.attempted, now):
            runtime.log_health("backend answers again", backends, self.index)
        runtime.counters.count(self.step)
        if self.step == OWN:
            self.own_source = self.upstream.sock.getsockname()[0]
        self.handle(_CONNECTED)

    def _attempt_failed(self, number, reason, backend_to_blame):
        """Keep the reason for the log, and report the failure to the balancer."""
        self.refusal = Refusal("connect_failed", reason)
        client, now = self.client_address[0], self.loop.now()
        self.runtime.failed(self.backends, self.index, client, number, reason, now, backend_to_blame)

    # -- the actions of state_table.TABLE ------------------------------------------------------------------------------

    def _forward(self):
        """Join the two sockets: forward what the client has sent so far, then watch both."""
        client, upstream = self.client, self.upstream
        poller = self.loop.poller
        client.peer, upstream.peer = upstream, client
        poller.replace(upstream.number, upstream.ready)
        if sockets.at_mark(client.sock):  # urgent data came while nothing watched the client
            client.check_mark = True
        if self.backend.send_proxy:
            client.pending, client.unread = memoryview(self._header_for_backend()), True
            client.flush()
        elif not client.forward():
            sockets.acknowledge_now(upstream.sock)
        if client.sock is None:
            return  # the session has ended already
        poller.watch(client.number, client.ready)
        if upstream.unread:
            upstream.unread = False
            upstream.forward()

    def _header_for_backend(self):
        """Return the PROXY header for the backend (bytes): the client, and the address that it connected to."""
        source, source_port = self.client_address[:2]
        if self.proxy_header is not None:
            destination, destination_port = self.proxy_header.destination, self.proxy_header.destination_port
        else:
            destination, destination_port = self.client.sock.getsockname()[:2]
        return proxy_protocol.build(self.backend.send_proxy, source, source_port, destination, destination_port)

    def _shut(self, stream):
        """Send FIN to the peer of ``stream``: the other stream has ended."""
        try:
            stream.sock.shutdown(1)
        except OSError:  # ENOTCONN: it has just been reset
            self.handle(stream.reset)

    def _shut_client(self):
        self._shut(self.client)

    def _shut_backend(self):
        self._shut(self.upstream)

    def _drop_attempt(self):
        del self.server.connecting[self]
        self.server.other_ports.drop(self)
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

    def _finish(self):
        """End the session, whose sockets are closed: count and log it, and give back what it held."""
        server, runtime, index = self.server, self.runtime, self.index
        server.sessions.discard(self)
        runtime.counters.finished()
        if index is not None:
            self.backends.release(index)
        if self.upstream is None:
            runtime.counters.refused(self.cause)
        elif index is not None:  # as count_bytes(), without the call
            to_backend, to_client = self.upstream.sent, self.client.sent
            self.backends.add_bytes(index, to_backend - self.counted_to_backend, to_client - self.counted_to_client)
        log = runtime.service.log
        if log == "all" or (log == "errors" and self.ended != BOTH_CLOSED):
            if self.via is None:
                self.acceptor.log(log_record.values(self, self.loop.now()))
            else:
                self.loop.log.event("connection", **self.summary(self.loop.now()))
        if self.limiter is not None:
            self.limiter.release(self.client_address[0])
        if runtime.paused or server.paused:
            server.resume_after(runtime)

    # -- for timeouts.py and the `sessions` command ---------------------------------------------------------------

    def count_bytes(self):
        """Count the bytes that were forwarded since the last call."""
        to_backend, to_client = self.upstream.sent, self.client.sent
        self.backends.add_bytes(self.index, to_backend - self.counted_to_backend, to_client - self.counted_to_client)
        self.counted_to_backend, self.counted_to_client = to_backend, to_client

    @property
    def alive(self):
        """Whether it has not ended."""
        return self.ended is None

    def bytes_so_far(self):
        """Return the bytes that were forwarded (to the backend, to the client)."""
        return self.upstream.sent if self.upstream is not None else 0, self.client.sent

    def start_keepalive(self):
        """Switch on keepalive towards the backend: this session lasts long enough to be worth it."""
        if self.service.keepalive:
            sockets.keep_alive(self.upstream.sock, self.service.keepalive)

    def summary(self, now):
        """Return the fields of log_record.fields()."""
        return log_record.fields(self, now)


ACTIONS = {
    Action.FORWARD: Relay._forward,
    Action.DROP_ATTEMPT: Relay._drop_attempt,
    Action.CHOOSE: Relay._attempt_next,
    Action.SHUT_CLIENT: Relay._shut_client,
    Action.SHUT_BACKEND: Relay._shut_backend,
    Action.CLOSE_CLIENT: Relay._close_client,
    Action.CLOSE_BACKEND: Relay._close_backend,
    Action.RESET_CLIENT: Relay._reset_client,
    Action.RESET_BACKEND: Relay._reset_backend,
    Action.FINISH: Relay._finish,
}
Relay.table = compiled(ACTIONS)
