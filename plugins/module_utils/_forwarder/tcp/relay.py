# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The TCP relay: one accepted connection, one upstream socket, from accept to the line in the log.

session.py decides, this module does; stream.py moves the bytes.
"""

from __future__ import annotations

import errno

from ..admission.refusal import Refusal
from ..admission.source_address import OWN
from ..backends.balancer import SKIPPED, SKIPPED_ALONE
from ..loop import sockets
from ..loop.poller import ENDED, URGENT, WRITE, events_now
from . import proxy_protocol
from .proxy_header import HeaderReader
from .session import TABLE, Action, Event, Session, State, compiled
from .stream import Stream

# What every connection needs. Before Python 3.12 finding a member takes a descriptor written in Python, 0.1 to 0.4 µs.
_CLIENT_EOF, _CLIENT_RESET = Event.CLIENT_EOF, Event.CLIENT_RESET
_BACKEND_EOF, _BACKEND_RESET = Event.BACKEND_EOF, Event.BACKEND_RESET
_CONNECTED = Event.CONNECTED
_CHOOSING = State.CHOOSING
_ATTEMPTED = TABLE[_CHOOSING, Event.ATTEMPT][0]  # there is nothing else to do: looked up once

# Errors of connect(2) itself that are about the backend or the way to it. All others are about this host, and no
# backend is to blame. What the network answers later is never about this host: ICMP has more to say than these.
_BACKENDS_FAULT = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ECONNABORTED,
}

# What a socket says whose peer has reset it, and one whose peer keepalive or the user timeout found to be gone.
_RESETS = {0, errno.ECONNRESET, errno.EPIPE}
_VANISHED = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}

DEADLINE = Refusal("other", "connect deadline")

# Errors another backend would not help against.
_HOPELESS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Relay(Session):
    """One connection of a client, which ``acceptor``, an acceptor.Acceptor, took.

    ``worker`` has .selector .connecting .timers .pipes .log .now() .own_addresses .finished(relay).
    """

    __slots__ = (
        "_deadline",
        "_hidden",
        "_itself",
        "_own",
        "acceptor",
        "admitted",
        "attempted",
        "attempts",
        "backend",
        "backends",
        "client",
        "client_address",
        "index",
        "introduction",
        "refusal",
        "seen_at",
        "seen_moved",
        "seen_state",
        "serving",
        "started",
        "step",
        "tried",
        "upstream",
        "via",
        "worker",
    )

    def __init__(self, worker, acceptor, sock, client_address):
        self.state = _CHOOSING
        self.worker = worker
        self.acceptor = acceptor
        self.serving = serving = acceptor.serving
        self.client_address = client_address  # (host, port, ...), as accept() or a PROXY header gives it
        self.client = Stream(sock, self, _CLIENT_EOF, _CLIENT_RESET)
        self.started = self.attempted = now = worker.now()  # attempted: when the current attempt began
        self._deadline = now + serving.service.connect_deadline
        self.attempts = self.seen_moved = self.seen_at = 0  # connects begun; and timeouts.py keeps its notes here
        self.admitted = False  # counted by the gate
        # Nothing is known yet of: why it ended; the socket to the backend; the proxy that made this connection for its
        # client, and its Header; the balancer.Backends this client is for, the place among them of the current attempt,
        # and the config.Backend of the current or last one; how the source was had (a step of source_address.py);
        self.ended = self.upstream = self.via = self.introduction = self.backends = self.index = self.backend = None
        # its Refusal, that of the last attempt that failed, or why there was none; this host's address where it stands
        # in for the client's; the Refusal of a client that cannot be spoofed; the indexes of backends the client is
        # itself, and beside those the ones this connection has had.
        self.step = self.seen_state = self.refusal = self._own = self._hidden = self._itself = self.tried = None

    @property
    def service(self):
        """The config.Service."""
        return self.serving.service

    def start(self, introduced=False):
        """Make the first attempt; before it, hear a proxy that we trust, and refuse who may not come."""
        serving = self.serving
        if serving.guarded and not self._passes(introduced):
            return
        address, own_addresses = self.client_address[0], self.worker.own_addresses
        self.backends, self._hidden, self._itself = serving.group_of(address, own_addresses, introduced)
        self.tried = self._itself
        if self._hidden and not serving.source.may_be_own:
            serving.counters.count("refused")
            self.refuse(self._hidden)
            return
        self._choose()

    def _passes(self, introduced):
        """Whether the client may be given a backend now; it is refused, or has to send a PROXY header, where not."""
        serving, address = self.serving, self.client_address[0]
        if not introduced and serving.trusted is not None and address in serving.trusted:
            HeaderReader(self, self.service.proxy_timeout)
            return False
        refusal = serving.refusal(address, self.started)
        if refusal:
            self.refuse(refusal)
            return False
        self.admitted = serving.gate is not None
        return True

    def introduced(self, header):
        """Another proxy has said who its client is."""
        self.via = self.client_address[0]
        if header.source is not None:
            self.introduction = header
            self.client_address = (header.source, header.source_port)
        self.attempted = now = self.worker.now()
        self._deadline = now + self.service.connect_deadline
        self.start(introduced=True)

    @property
    def cause(self):
        """Why it never had a backend, one of shared.REFUSED."""
        if self.refusal is not None:
            return self.refusal.cause
        return "connect_failed" if self.attempts else "other"  # something ended it on the way

    def refuse(self, refusal):
        """Reset the client; there is no upstream socket."""
        self.refusal = refusal
        self.handle(Event.GIVEN_UP, refusal.text)

    def abort(self, reason):
        """Reset both sides, whatever they are doing."""
        self.worker.connecting.pop(self, None)
        self.handle(Event.ABORT, reason)

    def lost(self, side, number):
        """The socket of ``side`` failed with errno ``number``: its peer has reset it, or is not there any more.

        The kernel gives up a peer that acknowledges nothing with the last it has heard of it: ETIMEDOUT, or what ICMP
        or the neighbour table said.
        """
        reason = None
        if number not in _RESETS:
            whose, what = "client" if side is self.client else "backend", errno.errorcode.get(number, number)
            reason = f"{whose} {'timed out' if number in _VANISHED else 'failed'} ({what})"
        self.handle(side.reset, reason)

    # -- connecting ------------------------------------------------------------------------------------------------

    def _choose(self):
        """Begin an attempt with the next backend, or give up."""
        worker, service, source = self.worker, self.serving.service, self.serving.source
        now = worker.now() if self.attempts else self.attempted
        while self.attempts <= service.retries and now < self._deadline and self._next_backend(now):
            self.attempts += 1
            target = self.acceptor.targets[self.backends.family][self.index]
            try:
                if self._hidden is None:
                    sock, self.step = source.connect(self.client_address, target)
                else:
                    sock, self.step = source.connect_as_own(target), OWN
            except OSError as error:
                self._attempt_failed(error.errno, sockets.describe(error), error.errno in _BACKENDS_FAULT)
                if error.errno in _HOPELESS or isinstance(error, sockets.CapabilityError):
                    break
                now = worker.now()
                continue
            self.state, self.attempted = _ATTEMPTED, now
            upstream = self.upstream = Stream(sock, self, _BACKEND_EOF, _BACKEND_RESET, nagling=True)
            worker.selector.watch(upstream.number, self._connect_done, writable=True)
            upstream.writable_watched = True
            worker.connecting[self] = min(now + service.connect_timeout, self._deadline)
            return
        self.refuse(self.refusal or DEADLINE)

    def _next_backend(self, now):
        """Choose a backend; returns whether there was one. A client that is one itself is given any other."""
        backends = self.backends
        if self.index is not None:
            backends.release(self.index)  # the last attempt is over: its connection counts no more
        index = self.index = backends.next(self.client_address[0], self.tried, now)
        if index is None and not self._is_last_resort(now):
            return False
        self.tried += (self.index,)
        self.backend = backends.backends[self.index]
        return True

    def _is_last_resort(self, now):
        itself, self._itself = self._itself, ()
        self.index, refusal = self.serving.last_resort(self.backends, itself, self.client_address[0], self.tried, now)
        if self.index is None:
            self.refusal = self.refusal or refusal
            return False
        self._hidden = refusal
        return True

    def takes_long(self, now):
        """The attempt is slow, and may yet succeed."""
        self.backends.slow(self.index, now)

    def too_slow(self):
        """The attempt has had its time."""
        mask = events_now(self.upstream.number)
        if mask:  # it is this worker that was slow: what came of the connect has not been looked at yet
            self._connect_done(mask)
            return
        self._attempt_failed(errno.ETIMEDOUT, f"no answer within {self.service.connect_timeout:g} s", True)
        self.handle(Event.ATTEMPT_FAILED)

    def _connect_done(self, mask):
        """The callback while connecting. Only WRITE: connected. More: an error, or the server spoke first."""
        if mask != WRITE:
            upstream = self.upstream
            upstream.readable = True
            upstream.thorough = bool(mask & (ENDED | URGENT))
            upstream.careful = bool(mask & URGENT)
            number = sockets.connect_error(upstream.sock)
            if number:
                self._attempt_failed(number, sockets.describe_errno(number), True)
                self.handle(Event.ATTEMPT_FAILED)
                return
        del self.worker.connecting[self]
        now = self.worker.now()
        if self.backends.connected(self.client_address[0], self.index, now - self.attempted, now):
            self._log_health("backend answers again")
        self.serving.counters.count(self.step)
        if self.step == OWN:
            self._own = self.upstream.sock.getsockname()[0]
        self.handle(_CONNECTED)

    def _attempt_failed(self, number, why, to_blame):
        """Remember why, for the log; and for what comes next, when the backend or the way to it is ``to_blame``."""
        self.refusal, client = Refusal("connect_failed", why), self.client_address[0]
        event = self.backends.failed(client, self.index, number, self.worker.now(), to_blame)
        if event == SKIPPED_ALONE and self.service.log != "none":
            self._log_health(event, level="warning", client=client, reason=why)
        elif event == SKIPPED:
            self._log_health(event, level="warning", reason=why)

    def _log_health(self, event, **fields):
        self.worker.log.event(
            event, service=self.service.name, backend=self.backend.name, family=self.backends.family, **fields
        )

    # -- actions ---------------------------------------------------------------------------------------------------

    def _relay(self):
        """Both ends are there: pass on what the client has sent meanwhile, then listen to both."""
        client, upstream = self.client, self.upstream
        selector = self.worker.selector
        client.peer, upstream.peer = upstream, client
        selector.replace(upstream.number, upstream.ready)
        if self.backend.send_proxy:
            client.pending, client.readable = memoryview(self._header()), True
            client.push()
        elif not client.pump():
            sockets.acknowledge_now(upstream.sock)
        if client.sock is None:
            return  # that was all
        selector.watch(client.number, client.ready)
        if upstream.readable:
            upstream.readable = False
            upstream.pump()

    def _header(self):
        """Return the PROXY header for the backend (bytes): the client, and the address it connected to."""
        source, source_port = self.client_address[:2]
        if self.introduction is not None:
            destination, destination_port = self.introduction.destination, self.introduction.destination_port
        else:
            destination, destination_port = self.client.sock.getsockname()[:2]
        return proxy_protocol.build(self.backend.send_proxy, source, source_port, destination, destination_port)

    def _shut(self, side):
        """The other side has ended: send FIN to ``side``."""
        try:
            side.sock.shutdown(1)
        except OSError:  # ENOTCONN: it was reset in this very moment
            self.handle(side.reset)

    def _shut_client(self):
        self._shut(self.client)

    def _shut_backend(self):
        self._shut(self.upstream)

    def _drop_attempt(self):
        del self.worker.connecting[self]
        self.upstream.detach().close()
        self.upstream = None

    def _finish(self):
        self.worker.finished(self)

    def _close_client(self):
        self.client.detach().close()

    def _close_backend(self):
        self.upstream.detach().close()

    def _reset_client(self):
        sockets.reset(self.client.detach())

    def _reset_backend(self):
        sockets.reset(self.upstream.detach())

    # -- what is asked from outside --------------------------------------------------------------------------------

    def moved(self):
        """Return the bytes that were passed on, both ways."""
        return self.client.sent + (self.upstream.sent if self.upstream is not None else 0)

    def lasts(self):
        """This session is no short one: have the kernel watch over the connection to the backend, too."""
        if self.service.keepalive and self.upstream is not None:
            sockets.keep_alive(self.upstream.sock, self.service.keepalive)

    def facts(self, now):
        """Return the values of FACTS, for this connection's line in the log."""
        connected = self.upstream is not None and self.ended is not None
        client, client_port = self.client_address[:2]
        return (
            client,
            client_port,
            self.backend.name if self.backend else None,
            self._own or client if connected else None,
            self.step if connected else None,
            self.attempts,
            self.upstream.sent if connected else 0,
            self.client.sent,
            round(now - self.started, 6),
            self.ended,
        )

    def summary(self, now):
        """Return the fields of a line about this connection as a dictionary."""
        fields = {"service": self.service.name, "listener": str(self.acceptor.listener)}
        fields.update(zip(FACTS, self.facts(now)))
        if self.via is not None:
            fields["via"] = self.via
        return fields


#: What the log says of each connection; duration in seconds, sizes in bytes.
FACTS = (
    "client",
    "client_port",
    "backend",
    "source",
    "source_step",
    "attempts",
    "bytes_to_backend",
    "bytes_to_client",
    "duration",
    "ended",
)

Relay.table = compiled(
    {
        Action.RELAY: Relay._relay,
        Action.DROP_ATTEMPT: Relay._drop_attempt,
        Action.CHOOSE: Relay._choose,
        Action.SHUT_CLIENT: Relay._shut_client,
        Action.SHUT_BACKEND: Relay._shut_backend,
        Action.CLOSE_CLIENT: Relay._close_client,
        Action.CLOSE_BACKEND: Relay._close_backend,
        Action.RESET_CLIENT: Relay._reset_client,
        Action.RESET_BACKEND: Relay._reset_backend,
        Action.FINISH: Relay._finish,
    }
)
