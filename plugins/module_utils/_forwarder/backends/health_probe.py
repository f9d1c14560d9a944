# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One non-blocking health probe: a connect over TCP, maybe with an exchange, or a request and its response over UDP.

Nothing is registered with a selector; the checker polls. For TCP a second connect(2) tells how the first one went
(EALREADY, EISCONN), one system call where a selector would take three. A connection without an exchange is closed by
RST, so it leaves little trace in the server's accept queue and logs.
"""

from __future__ import annotations

import errno
import socket

from ..._shared.families import socket_family_of
from ..loop import sockets
from .health_exchange import LATER

READ = 16384  # bytes at once

_PENDING = {errno.EINPROGRESS, errno.EALREADY}


def _socket(address, kind, source):
    """Return a non-blocking socket, bound to the spoofed ``source``, or not bound if that is None."""
    kind |= socket.SOCK_NONBLOCK
    family = socket_family_of(address)
    return socket.socket(family, kind) if source is None else sockets.transparent_socket(family, source, kind=kind)


class TcpProbe:
    """A handshake from ``source`` (None: the proxy's own address). Raises OSError if it cannot be sent."""

    established = False  # a handshake without the expected result of an exchange

    def __init__(self, address, port, source):
        self._peer = (address, port)
        self._sock = _socket(address, socket.SOCK_STREAM, source)
        try:
            self._result = self._connect()
        except OSError:
            self._sock.close()
            raise

    def _connect(self):
        number = self._sock.connect_ex(self._peer)
        return None if number in _PENDING else 0 if number == errno.EISCONN else number

    def poll(self):
        """Return None while there is no answer, 0 for a handshake, or the errno."""
        if self._result is None:
            self._result = self._connect()
        return self._result

    def expired(self):
        """Return the result when the time is over."""
        return errno.ETIMEDOUT

    def close(self):
        """Close it; after a handshake by RST."""
        if self._result == 0:
            sockets.reset(self._sock)
        else:
            self._sock.close()


class ExchangeProbe(TcpProbe):
    """A handshake, and then an Exchange (health_exchange.py).

    After an answer the connection is closed by FIN, as servers expect it from a client: many log a reset as an error.
    Our port is in TIME-WAIT then, which is no port lost: with IP_BIND_ADDRESS_NO_PORT it is taken for one backend only.
    Without an answer RST ends it on both hosts at once.
    """

    def __init__(self, address, port, source, exchange):
        self._exchange = exchange
        self._answer = None
        self.moved = True  # something has happened since this was set to False, so more may follow soon
        super().__init__(address, port, source)

    def poll(self):
        """Return None while there is no result, 0 for the expected answer, an errno or one of probe_results."""
        if not self.established:
            number = super().poll()
            if number != 0:
                return number
            self.established = self.moved = True
        if self._answer is None:
            self._answer = self._go_on()
            if self._answer is not None:
                self._exchange.outgoing += self._exchange.farewell()
                self._send()
        return self._answer

    def _go_on(self):
        number = self._exchange.new_turn()
        if number is not None:
            return number
        error = self._send()
        try:
            data = self._sock.recv(READ)
        except BlockingIOError:
            return error
        except OSError as reason:
            return error or reason.errno
        if not data and error:
            return error  # it was the reason of the end
        self.moved = True
        number = self._exchange.received(data)
        self._send()
        return number

    def _send(self):
        """Send what is due; return the errno if that is impossible."""
        exchange = self._exchange
        if not exchange.outgoing:
            return None
        try:
            exchange.outgoing = exchange.outgoing[self._sock.send(exchange.outgoing) :]
        except BlockingIOError:
            return None
        except OSError as error:
            return error.errno
        return None

    def expired(self):
        """Return the result when the time is over; None if the answer has to be judged yet."""
        return self._exchange.expired() if self.established else errno.ETIMEDOUT

    def close(self):
        """Close it."""
        if self.established and self._answer is None:
            sockets.reset(self._sock)
        else:
            self._sock.close()


class UdpProbe:
    """Sends ``request`` (bytes) and gives the response to ``judge``. Raises OSError like TcpProbe."""

    established = False

    def __init__(self, address, port, source, request, judge):
        self._judge = judge
        self._data = None
        self._sock = _socket(address, socket.SOCK_DGRAM, source)
        try:
            self._sock.connect((address, port))
            self._sock.send(request)
        except OSError:
            self._sock.close()
            raise

    def poll(self):
        """Return None while there is no response, 0 for a good one, an errno or one of probe_results."""
        try:
            if self._data is None:
                self._data = self._sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:  # ECONNREFUSED: ICMP port unreachable
            return error.errno
        number = self._judge(self._data, True)
        return None if number is LATER else number

    def expired(self):
        """Return the result when the time is over."""
        return errno.ETIMEDOUT

    def close(self):
        """Close it."""
        self._sock.close()
