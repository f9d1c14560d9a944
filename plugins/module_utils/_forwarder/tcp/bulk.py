# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forwarding through a pipe: for a stream that fills the receive buffer twice in a row, without copying its bytes.

A stream borrows the pipe from the worker's pool and returns it when nothing is left to read; whether what comes next is
bulk again is decided anew. A short splice says nothing about the socket, for the pipe may be full of small pieces. At
the mark of urgent data, splice returns 0 or EAGAIN for ever, which is not the end of the stream: a read has to follow.
"""

from __future__ import annotations

from ..loop import sockets
from .splice import splice

BUFFER_SIZE = 65536  # bytes of the receive buffer (stream.py): what a read can bring
TURNS = range(4)  # full buffers or pipes that one stream may forward before the others get their turn
BYTES_IN_A_TURN = 1 << 20  # through a pipe; the others get their turn then as well
FULL_READS = 2  # in a row: from here on a stream counts as bulk
WITHOUT_PIPE = 256  # full reads after which a stream that got no pipe tries again


def borrow_pipe(stream):
    """Give ``stream`` a pipe if the pool has one."""
    stream.pipe = stream.relay.server.pipes.take()
    if stream.pipe is None:
        stream.full_reads = FULL_READS - WITHOUT_PIPE
        return
    for end in (stream, stream.peer):
        sockets.make_non_blocking(end.sock)
        if end.delay_first:
            end.set_nodelay()


def return_pipe(stream):
    """Return the pipe of ``stream`` to the pool."""
    pipe, stream.pipe = stream.pipe, None
    stream.relay.server.pipes.give_back(pipe)


def forward(stream):
    """As Stream.forward(), through the pipe, which is empty; so EAGAIN is about the socket.

    Return False where only a read can tell what comes next: nothing, the end of the stream, or urgent data.
    """
    pipe = stream.pipe
    moved = 0
    for _turn in TURNS:
        try:
            pipe.held = splice(stream.number, pipe.write_end, pipe.size)
        except BlockingIOError:
            if 0 < moved < BUFFER_SIZE:
                stream.full_reads = 0
            return_pipe(stream)
            return not stream.until_empty
        except OSError as error:
            stream.relay.stream_failed(stream, error.errno)
            return True
        if not pipe.held:
            return_pipe(stream)
            stream.check_mark = True
            return False
        moved += pipe.held
        if not empty_pipe(stream):
            stream.unread = True
            return True
        if moved >= BYTES_IN_A_TURN:
            break
    stream.relay.loop.poller.again(stream.resume)
    return True


def empty_pipe(stream):
    """Move what the pipe holds to the peer; return whether the peer took all of it."""
    pipe, peer = stream.pipe, stream.peer
    while pipe.held:
        try:
            taken = splice(pipe.read_end, peer.number, pipe.held)
        except BlockingIOError:
            peer.watch_writable()
            return False
        except OSError as error:
            stream.peer_failed(error.errno)
            return False
        pipe.held -= taken
        peer.sent += taken
    return True
