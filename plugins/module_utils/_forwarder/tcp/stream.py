# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stream: one socket of a relay. What it receives is forwarded to its peer, the relay's other stream.

Theory of operation. The poller calls ready() when something arrives. forward() reads it into one buffer that the whole
worker shares, and sends it to the peer at once. Usually the peer takes all of it, so nothing is kept and nothing is
copied. Three things differ from this plain case:

*The peer is full.* What it did not take is kept in ``pending`` (or stays in the pipe), and the stream is not read until
the peer has taken it. So at most one buffer or pipe is held, and the kernel's windows stop the sender. flush() goes on.

*Bulk.* A stream that fills the buffer twice in a row goes on through a pipe (bulk.py), until it has less to forward.

*Urgent data* (MSG_OOB of send(2)) is forwarded as urgent data, at the same place of the stream. Both sockets have
SO_OOBINLINE, so the kernel leaves the byte in the stream; a read ends before it (at the *mark*), and SIOCATMARK says
that the next byte is urgent. _forward_to_mark() reads like that.

When to stop reading. Events are edges (poller.py): each arrival is reported once. So a stream notes an event that comes
while it must not be read (``unread``), and otherwise reads until the socket is empty. A short read proves that it is,
and saves the system call that would only return EAGAIN. The exception is an error or urgent data on its way: both come
with the edge, and then the stream is read until a read says EAGAIN (``until_empty``).

The end. If the FIN is already here, a short read has brought all that was before it, and no further read has to find
the end. Those bytes are sent with MSG_MORE: they wait for the shutdown that follows in the same turn and leave in one
segment with its FIN, which saves two packets of a short connection.
"""

from __future__ import annotations

from socket import MSG_DONTWAIT, MSG_MORE, MSG_OOB
from typing import Any

from ..loop import sockets
from ..loop.poller import ENDED, ERROR, FIN, READ, URGENT, WRITE, events_now
from . import bulk
from .bulk import BUFFER_SIZE, FULL_READS, TURNS

_buffer = bytearray(BUFFER_SIZE)  # safe to share: between recv_into and send nothing else runs in this process
_view = memoryview(_buffer)

_UNUSUAL = ENDED | URGENT
_WRITE_OR_ERROR = WRITE | ERROR
_FLAGS_LAST = MSG_DONTWAIT | MSG_MORE  # for the last bytes before a FIN
_FLAGS_URGENT = MSG_DONTWAIT | MSG_OOB


class Stream:
    """One socket of ``relay``; ``eof`` and ``reset`` are the session events that report its end."""

    __slots__ = (
        "check_mark",  # whether the next read may begin at the mark of urgent data
        "delay_first",  # whether TCP_NODELAY is still to be set: a socket to a backend does without it at first
        "ended",  # whether its end was read
        "eof",
        "fast",  # the event mask that means plain bytes and nothing else to consider; 0: none does, see _may_be_fast()
        "flags",  # for send() of what is read here
        "full_reads",  # in a row
        "number",  # file descriptor
        "peer",  # the other Stream; None before the relay has connected, and again when the session has ended
        "pending",  # memoryview: what was read here and the peer did not take; None: nothing
        "pending_flags",  # for send() of ``pending``
        "pipe",  # splice.Pipe during bulk
        "relay",
        "reset",
        "sent",  # bytes that this socket has taken
        "sock",
        "unread",  # whether something has arrived that was not to be read then
        "until_empty",  # whether a short read proves nothing
        "writable_watched",  # whether the poller reports that there is room again
    )

    # None before the relay has connected and after its end; the states of state_table.py say when they are used.
    peer: Any
    pending: Any
    pipe: Any

    def __init__(self, sock, relay, eof, reset, delay_first=False):
        self.sock = sock
        self.number = sock.fileno()
        self.relay = relay
        self.eof = eof
        self.reset = reset
        self.peer = self.pending = self.pipe = None
        self.flags = self.pending_flags = MSG_DONTWAIT
        self.sent = self.full_reads = 0
        self.delay_first = delay_first
        self.check_mark = self.ended = self.unread = self.until_empty = self.writable_watched = False
        self.fast = 0

    # -- events ----------------------------------------------------------------------------------------------------

    def ready(self, mask):
        """The poller's callback. Plain bytes take the short way: a small request and its answer are two such events."""
        if mask != self.fast:
            if self.peer is not None:  # else the session has ended, and resume() was still due
                self._ready(mask)
            return
        try:
            count = self.sock.recv_into(_buffer, BUFFER_SIZE, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.relay.stream_failed(self, error.errno)
            return
        if not count:
            self._end()
        elif count < BUFFER_SIZE:
            peer = self.peer
            try:
                taken = peer.sock.send(_view[:count], MSG_DONTWAIT)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self.peer_failed(error.errno)
                return
            peer.sent += taken
            if taken != count:
                self._keep(_view[taken:count], MSG_DONTWAIT)
        elif self._send(count, MSG_DONTWAIT):
            self._buffer_was_full()
            self._forward_to_mark()

    def answered(self, mask):
        """The poller's callback of an attempt that tries several source ports (other_ports.py)."""
        self.relay.answered(self, mask)

    def resume(self, mask):
        """The poller's callback in the turn after this one; an event of that turn may have been read already."""
        self.fast, self.check_mark = 0, True
        self.ready(mask)

    def _ready(self, mask):
        peer = self.peer
        if mask & _UNUSUAL:
            self.fast = 0
            if mask & ENDED == FIN:  # and no reset, which would discard what waits for the shutdown
                self.flags = _FLAGS_LAST
            if mask & _UNUSUAL != FIN:
                self.until_empty = True
                self.check_mark = self.check_mark or bool(mask & URGENT)
        if self.ended:
            if mask & ERROR:
                self.relay.stream_failed(self, sockets.pending_error(self.sock))
                return
        elif mask != WRITE:
            if self.pending is None and (self.pipe is None or not self.pipe.held):
                self.forward()
            else:
                self.unread = True
        if mask & _WRITE_OR_ERROR and (peer.pending is not None or peer.pipe is not None):
            peer.flush()
        if not mask & _UNUSUAL and self._may_be_fast(peer):
            self.fast, self.check_mark = READ | WRITE if self.writable_watched else READ, False

    def _may_be_fast(self, peer):
        """Whether ready() may take the short way: nothing is held, no end was seen, the peer has TCP_NODELAY."""
        if self.peer is None or self.ended or self.until_empty or self.full_reads or peer.delay_first:
            return False
        held = self.pending or self.pipe or peer.pending or peer.pipe
        return held is None and self.flags == MSG_DONTWAIT

    @property
    def blocked(self):
        """Whether the peer has not yet taken all that was read here."""
        return self.pending is not None or (self.pipe is not None and self.pipe.held > 0)

    # -- forwarding ------------------------------------------------------------------------------------------------

    def forward(self):
        """Forward what has arrived; return whether there was anything (the end counts)."""
        if self.full_reads >= FULL_READS and self.pipe is None:
            bulk.borrow_pipe(self)
        if self.pipe is not None and bulk.forward(self):
            return True
        if self.check_mark:
            return self._forward_to_mark()
        for _turn in TURNS:
            try:
                count = self.sock.recv_into(_buffer, BUFFER_SIZE, MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                self.relay.stream_failed(self, error.errno)
                return True
            if not count:
                self._end()
                return True
            if not self._send(count, self.flags):
                return True
            if count < BUFFER_SIZE:
                self.full_reads = 0
                if not self.until_empty:
                    if self.flags == _FLAGS_LAST:
                        self._end()
                    return True
            else:
                self._buffer_was_full()
                if self.full_reads >= FULL_READS:
                    break
                return self._forward_to_mark()
        self.relay.loop.poller.again(self.resume)
        return True

    def _buffer_was_full(self):
        self.fast, self.check_mark = 0, True
        self.full_reads += 1

    def _send(self, count, flags):
        """Send the first ``count`` bytes of the buffer to the peer; return whether it took all of them."""
        peer = self.peer
        if peer.delay_first and peer.sent:
            peer.set_nodelay()
        try:
            taken = peer.sock.send(_view[:count], flags)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self.peer_failed(error.errno)
            return False
        peer.sent += taken
        if taken < count:
            self._keep(_view[taken:count], flags & ~MSG_MORE)
            return False
        return True

    def _forward_to_mark(self):
        """As forward(), but no read passes the mark of urgent data.

        Used while urgent data may come that no event has announced. Where poll() reports nothing, nothing is read: an
        urgent byte that arrives in between would be taken for a plain one.
        """
        for turn in TURNS:
            events = events_now(self.number, READ | URGENT)
            if not events:
                return turn > 0
            try:
                count, flags = self._read_to_mark(urgent=events & URGENT)
            except BlockingIOError:
                return turn > 0
            except OSError as error:
                self.relay.stream_failed(self, error.errno)
                return True
            if not count:
                self._end()
                return True
            if not self._send(count, flags):
                return True
            self.full_reads = self.full_reads + 1 if count == BUFFER_SIZE else 0
            if self.full_reads >= FULL_READS:
                break
        self.relay.loop.poller.again(self.resume)
        return True

    def _read_to_mark(self, urgent=True):
        """Read up to the mark, or the urgent byte alone; return (bytes read, flags for sending them).

        ``urgent``: whether there may be urgent data at all.
        """
        if urgent and sockets.at_mark(self.sock):
            return self.sock.recv_into(_buffer, 1, MSG_DONTWAIT), _FLAGS_URGENT
        return self.sock.recv_into(_buffer, BUFFER_SIZE, MSG_DONTWAIT), MSG_DONTWAIT

    # -- a peer that is full ---------------------------------------------------------------------------------------

    def _keep(self, rest, flags):
        """Keep what the peer did not take; ``flags`` are for sending it once there is room."""
        self.pending = memoryview(bytes(rest))
        self.pending_flags = flags
        self.unread = self.check_mark = True
        self.fast = 0
        self.peer.watch_writable()

    def flush(self):
        """Send what was kept for the peer, which has room again, and go on reading once it has taken all of it."""
        if self.pipe is not None:
            if not bulk.empty_pipe(self):
                return
        elif self.pending is not None:
            peer = self.peer
            if peer.delay_first:
                peer.set_nodelay()
            try:
                taken = peer.sock.send(self.pending, self.pending_flags)
            except BlockingIOError:
                return
            except OSError as error:
                self.peer_failed(error.errno)
                return
            peer.sent += taken
            if taken < len(self.pending):
                self.pending = self.pending[taken:]
                return
            self.pending = None
        if self.unread:
            self.unread = False
            self.forward()

    def set_nodelay(self):
        """Set TCP_NODELAY: what is sent from now on does not wait for the acknowledgement of what was sent before."""
        self.delay_first = False
        sockets.send_at_once(self.sock)

    def watch_writable(self):
        """Ask the poller to report when this socket has room again."""
        self.fast = 0
        if not self.writable_watched:
            self.writable_watched = True
            self.relay.loop.poller.watch_writable(self.number)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _end(self):
        self.ended = True
        self.fast = 0
        if self.pipe is not None:
            bulk.return_pipe(self)
        self.relay.handle(self.eof)

    def peer_failed(self, number):
        """End the session: sending to the peer failed with errno ``number``.

        A server may answer early and close. What it sent before its reset is still in the kernel, and a client without
        a proxy in between would have received it; so it is forwarded first.
        """
        peer = self.peer
        if not peer.blocked and not peer.ended:  # else nothing more can reach this socket in order
            peer.forward_rest()
        self.relay.stream_failed(peer, number)

    def forward_rest(self):
        """Forward what can still be read from this socket, as far as the peer takes it at once."""
        peer = self.peer
        try:
            while True:
                count, flags = self._read_to_mark()
                if not count:
                    return
                taken = peer.sock.send(_view[:count], flags)
                peer.sent += taken
                if taken < count:
                    return
        except OSError:
            return

    def abort(self, reason):
        """End the session after a defect (event_loop.py)."""
        if self.relay is not None:  # else it has ended already
            self.relay.abort(reason)

    def detach(self):
        """Drop the socket and all references between the objects of the relay (no garbage to collect); return it."""
        sock = self.sock
        self.relay.loop.poller.forget(self.number)
        if self.pipe is not None:
            bulk.return_pipe(self)
        self.sock = self.peer = self.pending = self.relay = None
        self.fast = 0
        return sock
