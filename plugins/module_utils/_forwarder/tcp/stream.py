# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One socket of a relay: reading it and handing what it said to the other.

What keeps it fast (`make bench` measures it): one buffer for the whole worker; what was received is sent on at
once and is kept only when the peer does not take it; a short read means drained, so nobody asks again only to hear
EAGAIN; and a direction that fills the buffer twice in a row goes on through a pipe, without a copy, until it has less
to say.

Events are edges (poller.py), so a side remembers those that come while it must not be read, and is otherwise read until
a read has said that there is no more. A short read says so, except when an error or urgent data is on its way: that was
reported with the edge, and then the side is read until it has really nothing more (``thorough``). A short *splice* says
nothing: the pipe may have been full of small pieces.

When the FIN is known to be here already, a short read has brought all that was before it, and nobody asks for the end.
Those bytes are sent with MSG_MORE: they wait for the shutdown that follows in the same turn and leave in one segment
with it, which saves two packets of a short connection.

Urgent data (MSG_OOB of send(2)) goes on as urgent data at the same place of the stream. Both sockets have SO_OOBINLINE,
so the kernel leaves the byte in the stream; a read ends before it (at the *mark*), and SIOCATMARK tells that. A splice
ends there as well: at the mark it returns 0 or EAGAIN for ever, which is no end of the stream.

Backpressure: what a side has said and its peer has not taken (at most one buffer, or one pipe) waits, and while it
waits the side is not read, so the kernel's windows close all the way to the sender.
"""

from __future__ import annotations

from socket import MSG_DONTWAIT, MSG_MORE, MSG_OOB

from ..loop import sockets
from ..loop.poller import ENDED, ERROR, FIN, READ, URGENT, WRITE, events_now
from .splice import splice

BUFFER_SIZE = 65536  # bytes
READS_IN_A_ROW = 4  # full buffers, or pipes, one side may bring before the others get their turn
BULK_IN_A_ROW = 1 << 20  # bytes through a pipe: then they do as well
_TURNS = range(READS_IN_A_ROW)
FULL_READS = 2  # in a row: then this direction is bulk, and worth a pipe
PATIENCE = 256  # full reads until a direction that got no pipe asks again

_buffer = bytearray(BUFFER_SIZE)  # safe to share: between recv_into and send nothing else runs in this process
_view = memoryview(_buffer)

_UNUSUAL = ENDED | URGENT
_ROOM = WRITE | ERROR
_NOT_ROOM = ~WRITE
_AND_THAT_WAS_ALL = MSG_DONTWAIT | MSG_MORE
_AS_URGENT = MSG_DONTWAIT | MSG_OOB


class Stream:
    """``pending`` or ``pipe`` hold what this side said and its peer has not taken; ``sent`` is what this side took."""

    __slots__ = (
        "careful",
        "ended",
        "eof",
        "flags",
        "full",
        "nagling",
        "number",
        "peer",
        "pending",
        "pending_flags",
        "pipe",
        "plain",
        "readable",
        "relay",
        "reset",
        "sent",
        "sock",
        "thorough",
        "writable_watched",
    )

    def __init__(self, sock, relay, eof, reset, nagling=False):
        self.sock = sock
        self.number = sock.fileno()
        self.relay = relay
        self.eof = eof  # the events this side's end is reported as
        self.reset = reset
        self.peer = None
        self.pending = None
        self.pending_flags = MSG_DONTWAIT  # for sending what is pending
        self.pipe = None
        self.sent = 0
        self.flags = MSG_DONTWAIT  # for sending on what this side says
        self.full = 0  # full reads in a row
        self.careful = False  # whether the next read may begin at the mark of urgent data
        self.readable = False  # whether there may be something that could not be read when it came
        self.ended = False
        self.thorough = False
        self.nagling = nagling  # whether it has yet to be told TCP_NODELAY
        self.plain = False  # whether there is nothing to consider but the bytes that come
        self.writable_watched = False

    def ready(self, mask):
        """The poller's callback."""
        if self.plain and mask & _NOT_ROOM == READ:
            self.pump()
        elif self.peer is not None:  # else it is over, and had asked to be called again
            self._ready(mask)

    def go_on(self, mask):
        """The poller's callback in the turn after this one; an event of that turn may have been read already."""
        self.plain, self.careful = False, True
        self.ready(mask)

    def _ready(self, mask):
        peer = self.peer
        if mask & _UNUSUAL:
            self.plain = False
            if mask & ENDED == FIN:  # and no reset, which would take with it what was held back
                self.flags = _AND_THAT_WAS_ALL
            if mask & _UNUSUAL != FIN:
                self.thorough = True
                self.careful = self.careful or bool(mask & URGENT)
        if self.ended:
            if mask & ERROR:
                self.relay.lost(self, sockets.pending_error(self.sock))
                return
        elif mask != WRITE:
            if self.pending is None and (self.pipe is None or not self.pipe.held):
                self.pump()
            else:
                self.readable = True
        if mask & _ROOM and (peer.pending is not None or peer.pipe is not None):
            peer.push()
        if not mask & _UNUSUAL and self._is_plain(peer):
            self.plain, self.careful = True, False

    def _is_plain(self, peer):
        """Whether nothing is held on either way, no end is known, and the peer has all it has to be told."""
        if self.peer is None or self.ended or self.thorough or self.full or peer.nagling:
            return False
        held = self.pending or self.pipe or peer.pending or peer.pipe
        return held is None and self.flags == MSG_DONTWAIT

    @property
    def blocked(self):
        """Whether the peer has yet to take something this side said."""
        return self.pending is not None or (self.pipe is not None and self.pipe.held > 0)

    def pump(self):
        """Move what this side has said to the other; returns whether there was anything (an end counts)."""
        if not self.plain:
            if self.full >= FULL_READS and self.pipe is None:
                self._take_pipe()
            if self.pipe is not None and self._pump_pipe():
                return True
            if self.careful:
                return self._pump_carefully()
        peer = self.peer
        for _turn in _TURNS:
            try:
                count = self.sock.recv_into(_buffer, BUFFER_SIZE, MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                self.relay.lost(self, error.errno)
                return True
            if not count:
                self._end()
                return True
            if peer.nagling and peer.sent:
                peer.stop_nagling()
            try:
                taken = peer.sock.send(_view[:count], self.flags)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._peer_is_gone(error.errno)
                return True
            peer.sent += taken
            if taken < count:
                self._hold(_view[taken:count])
                return True
            if count < BUFFER_SIZE:
                if self.plain:
                    return True
                self.full = 0
                if not self.thorough:
                    if self.flags == _AND_THAT_WAS_ALL:
                        self._end()
                    return True
            else:
                self.plain = False
                self.careful = True
                self.full += 1
                if self.full >= FULL_READS:
                    break
                return self._pump_carefully()
        self.relay.worker.selector.again(self.go_on)
        return True

    def _hold(self, rest, flags=MSG_DONTWAIT):
        """Keep what the peer did not take, until it has room; ``flags`` are for sending it then."""
        self.pending = memoryview(bytes(rest))
        self.pending_flags = flags
        self.readable = self.careful = True
        self.plain = False
        self.peer.watch_room()

    def push(self):
        """The peer has room: hand over what waits for it, then go on reading."""
        if self.pipe is not None:
            if not self._drain():
                return
        elif self.pending is not None:
            peer = self.peer
            if peer.nagling:
                peer.stop_nagling()
            try:
                taken = peer.sock.send(self.pending, self.pending_flags)
            except BlockingIOError:
                return
            except OSError as error:
                self._peer_is_gone(error.errno)
                return
            peer.sent += taken
            if taken < len(self.pending):
                self.pending = self.pending[taken:]
                return
            self.pending = None
        if self.readable:
            self.readable = False
            self.pump()

    def stop_nagling(self):
        """What this side is sent from now on is not to wait for the acknowledgement of what was sent before."""
        self.nagling = False
        sockets.send_at_once(self.sock)

    def watch_room(self):
        """Have the poller say when this side takes more."""
        self.plain = False
        if not self.writable_watched:
            self.writable_watched = True
            self.relay.worker.selector.watch_writable(self.number)

    # -- bulk ------------------------------------------------------------------------------------------------------

    def _take_pipe(self):
        self.pipe = self.relay.worker.pipes.take()
        if self.pipe is None:
            self.full = FULL_READS - PATIENCE
            return
        for side in (self, self.peer):
            sockets.make_non_blocking(side.sock)
            if side.nagling:
                side.stop_nagling()

    def _return_pipe(self):
        pipe, self.pipe = self.pipe, None
        self.relay.worker.pipes.give_back(pipe)

    def _pump_pipe(self):
        """As pump(), through the pipe, which is empty: EAGAIN is then about the socket.

        The pipe is kept until the side is drained; whether the next arrival is bulk again depends on how much this was.
        Returns False when a read has to say what it is that came to an end: all there is, the stream, or what is before
        the mark.
        """
        pipe = self.pipe
        moved = 0
        for _turn in _TURNS:
            try:
                pipe.held = splice(self.number, pipe.write_end, pipe.size)
            except BlockingIOError:
                if 0 < moved < BUFFER_SIZE:
                    self.full = 0
                self._return_pipe()
                return not self.thorough
            except OSError as error:
                self.relay.lost(self, error.errno)
                return True
            if not pipe.held:
                self._return_pipe()
                self.careful = True
                return False
            moved += pipe.held
            if not self._drain():
                self.readable = True
                return True
            if moved >= BULK_IN_A_ROW:
                break
        self.relay.worker.selector.again(self.go_on)
        return True

    def _drain(self):
        """Empty the pipe into the peer; returns whether that was possible."""
        pipe, peer = self.pipe, self.peer
        while pipe.held:
            try:
                taken = splice(pipe.read_end, peer.number, pipe.held)
            except BlockingIOError:
                peer.watch_room()
                return False
            except OSError as error:
                self._peer_is_gone(error.errno)
                return False
            pipe.held -= taken
            peer.sent += taken
        return True

    # -- urgent data -----------------------------------------------------------------------------------------------

    def _pump_carefully(self):
        """As pump(), for a read that may begin at the mark: no event has announced it, or one of urgent data has.

        Nothing is read where nothing is: an urgent byte that arrives in that moment would be taken for a plain one.
        """
        peer = self.peer
        for turn in _TURNS:
            events = events_now(self.number, READ | URGENT)
            if not events:
                return turn > 0
            try:
                count, flags = self._read(urgent=events & URGENT)
            except BlockingIOError:
                return turn > 0
            except OSError as error:
                self.relay.lost(self, error.errno)
                return True
            if not count:
                self._end()
                return True
            if peer.nagling and peer.sent:
                peer.stop_nagling()
            try:
                taken = peer.sock.send(_view[:count], flags)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._peer_is_gone(error.errno)
                return True
            peer.sent += taken
            if taken < count:
                self._hold(_view[taken:count], flags)
                return True
            self.full = self.full + 1 if count == BUFFER_SIZE else 0
            if self.full >= FULL_READS:
                break
        self.relay.worker.selector.again(self.go_on)
        return True

    def _read(self, urgent=True):
        """Return (bytes read, flags for sending them on); with urgent data here: up to the mark, or that byte alone."""
        if urgent and sockets.at_mark(self.sock):
            return self.sock.recv_into(_buffer, 1, MSG_DONTWAIT), _AS_URGENT
        return self.sock.recv_into(_buffer, BUFFER_SIZE, MSG_DONTWAIT), MSG_DONTWAIT

    # -- ends ------------------------------------------------------------------------------------------------------

    def _end(self):
        self.ended = True
        self.plain = False
        if self.pipe is not None:
            self._return_pipe()
        self.relay.handle(self.eof)

    def _peer_is_gone(self, number):
        """Sending failed with errno ``number``. Pass on what the peer said before it reset us.

        A server may answer early and close. The kernel still has it, and a client without a proxy in between would have
        received it.
        """
        peer = self.peer
        if not peer.blocked and not peer.ended:  # else nothing more can reach this side in order
            peer.salvage()
        self.relay.lost(peer, number)

    def salvage(self):
        """Send on what can still be read from this side."""
        peer = self.peer
        try:
            while True:
                count, flags = self._read()
                if not count:
                    return
                taken = peer.sock.send(_view[:count], flags)
                peer.sent += taken
                if taken < count:
                    return
        except OSError:
            return

    def detach(self):
        """Forget the socket and everything that refers back, so that no garbage is left to collect; return it."""
        sock = self.sock
        self.relay.worker.selector.forget(self.number)
        if self.pipe is not None:
            self._return_pipe()
        self.sock = self.peer = self.pending = self.relay = None
        self.plain = False
        return sock
