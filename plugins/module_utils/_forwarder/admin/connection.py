# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection of a client to the admin or metrics server: bounded input, output and time.

Nothing is read from a client while an answer to it is not completely sent.
"""

from __future__ import annotations

import selectors
from itertools import chain

from ..loop import sockets

MAX_REQUEST = 16384  # bytes
MAX_OUTPUT = 8 << 20  # bytes of answers that the client has not read yet
EXCHANGE_TIMEOUT = 10.0  # seconds for a request and its answer
CHUNK = 65536  # bytes
PIECES = 4  # pieces of a large answer sent in one turn of the loop


class Connection:
    """The connection of one client of a server.

    ``since`` is when it connected or got its last answer, in monotonic seconds.
    """

    def __init__(self, server, sock):
        self._server = server
        self._sock = sock
        self._input = bytearray()
        self._output = bytearray()
        self.stream = None  # iterator over the rest of a large answer
        self._interest = 0  # the event that the selector waits for
        self._again = False  # whether the input may contain another request
        self._closing = False  # whether to close the connection when all output is sent
        self._timer = None
        self.since = server.now()
        self.closed = False
        self._close_after(server.idle_timeout)
        self._update_interest()

    def fileno(self):
        """Return the file descriptor."""
        return self._sock.fileno()

    @property
    def answering(self):
        """Whether part of an answer is not sent yet."""
        return bool(self._output) or self.stream is not None

    def write(self, data, last=False):
        """Send ``data``, bytes or an iterator of bytes; with ``last`` close the connection afterwards."""
        if self.closed:
            return
        if self.stream is not None:  # a deferred answer follows the one that is being sent
            self.stream = chain(self.stream, [data] if isinstance(data, bytes) else data)
        elif isinstance(data, bytes):
            self._output += data
        else:
            self._server.make_room_for_stream()
            self.stream = data
        self._closing = self._closing or last
        self._flush()

    def ready(self):
        """Callback of the selector."""
        if self.answering:
            self._flush()
        elif self._again:
            self._serve_request()
        else:
            self._receive()

    def _receive(self):
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if not self._input and self._server.keeps_connections:
            self._close_after(EXCHANGE_TIMEOUT)
        self._input += data
        self._serve_request()

    def _serve_request(self):
        """Serve one request of the input. The next one has to wait for another turn of the loop."""
        self._again = self._server.handle(self, self._input)
        if self.closed:
            return
        if not self._again and len(self._input) > MAX_REQUEST:
            self.write(self._server.refusal, last=True)
            return
        if self._again and not self.answering:
            self._answered()
        self._update_interest()

    def _answered(self):
        """Restart the timer after an answer; the next request may have arrived already."""
        self.since = self._server.now()
        if self._server.keeps_connections:
            self._close_after(EXCHANGE_TIMEOUT if self._input else self._server.idle_timeout)

    def _flush(self):
        """Send as much as the socket accepts, at most PIECES of a large answer."""
        try:
            for _piece in range(PIECES):
                while self._output:
                    sent = self._sock.send(memoryview(self._output)[:CHUNK])
                    del self._output[:sent]
                if self.stream is None:
                    break
                piece = next(self.stream, None)
                if piece is None:
                    self.stream = None
                else:
                    self._output += piece
        except BlockingIOError:
            if len(self._output) > MAX_OUTPUT:
                self.close()
                return
        except OSError:
            self.close()
            return
        if not self.answering:
            if self._closing:
                self.close()
                return
            self._answered()
        self._update_interest()

    def _update_interest(self):
        interest = selectors.EVENT_WRITE if self.answering or self._again else selectors.EVENT_READ
        if interest == self._interest:
            return
        if self._interest:
            self._server.selector.modify(self._sock, interest, self.ready)
        else:
            self._server.selector.register(self._sock, interest, self.ready)
        self._interest = interest

    def _close_after(self, seconds):
        """Close the connection in ``seconds``, unless this is called again before."""
        timers = self._server.timers
        if self._timer is not None:
            timers.discard(self._timer, self.close)
        self._timer = timers.add(self._server.now() + seconds, self.close)

    def close(self):
        """Close the connection. An incomplete answer ends with RST, so that no client takes it for complete."""
        if self.closed:
            return
        self.closed = True
        self._server.timers.discard(self._timer, self.close)
        if self._interest:
            self._server.selector.unregister(self._sock)
        if self.answering:
            self.stream = None
            sockets.reset(self._sock)
        else:
            self._sock.close()
        self._server.connections.discard(self)
