# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One non-blocking health probe: a connect over TCP, a request and its response over UDP.

Nothing is registered with a selector; the checker polls. For TCP a second connect(2) tells how the first one went
(EALREADY, EISCONN), one system call where a selector would take three. The connection is closed by RST, so it leaves
little trace in the server's accept queue and logs.
"""

from __future__ import annotations

import errno
import socket

from ..._shared.families import socket_family_of
from ..loop import sockets

_PENDING = {errno.EINPROGRESS, errno.EALREADY}


def _socket(address, kind, source):
    """Return a non-blocking socket, bound to the spoofed ``source``, or not bound if that is None."""
    kind |= socket.SOCK_NONBLOCK
    family = socket_family_of(address)
    return socket.socket(family, kind) if source is None else sockets.transparent_socket(family, source, kind=kind)


class TcpProbe:
    """A handshake from ``source`` (None: the proxy's own address). Raises OSError if it cannot be sent."""

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

    def close(self):
        """Close it; after a handshake by RST."""
        if self._result == 0:
            sockets.reset(self._sock)
        else:
            self._sock.close()


class UdpProbe:
    """Sends ``request`` (bytes); a response is good if it begins with ``expect``. Raises OSError like TcpProbe."""

    def __init__(self, address, port, source, request, expect):
        self._expect = expect
        self._sock = _socket(address, socket.SOCK_DGRAM, source)
        try:
            self._sock.connect((address, port))
            self._sock.send(request)
        except OSError:
            self._sock.close()
            raise

    def poll(self):
        """Return None while there is no response, 0 for a good one, or the errno (EBADMSG: an unexpected response)."""
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:  # ECONNREFUSED: ICMP port unreachable
            return error.errno
        return 0 if data.startswith(self._expect) else errno.EBADMSG

    def close(self):
        """Close it."""
        self._sock.close()
