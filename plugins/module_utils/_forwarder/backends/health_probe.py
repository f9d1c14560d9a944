# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One question to a backend: a connect (TCP) or an exchange (UDP) that never waits.

Nothing is registered with a selector: whoever asks looks again a moment later. For TCP a second connect(2) tells how
the first one went (connect(2), EALREADY and EISCONN), which costs one system call where a selector would cost three;
the connection is closed by RST, so the server's accept queue and its logs see as little of it as possible.
"""

from __future__ import annotations

import errno
import socket

from ..._shared.families import socket_family_of
from ..loop import sockets

_PENDING = {errno.EINPROGRESS, errno.EALREADY}


def _socket(family, kind, source):
    """Return a socket that never waits, bound to ``source`` or, without one, to whatever the route gives."""
    kind |= socket.SOCK_NONBLOCK
    return socket.socket(family, kind) if source is None else sockets.transparent_socket(family, source, kind=kind)


class TcpQuestion:
    """A handshake; ``source`` None asks from an address of our own. Raises OSError when it cannot be asked."""

    def __init__(self, address, port, source):
        self._peer = (address, port)
        family = socket_family_of(address)
        self._sock = _socket(family, socket.SOCK_STREAM, source)
        try:
            self._answer = self._look()
        except OSError:
            self._sock.close()
            raise

    def _look(self):
        number = self._sock.connect_ex(self._peer)
        return None if number in _PENDING else 0 if number == errno.EISCONN else number

    def poll(self):
        """Return None while there is no answer, 0 for a good one, or the errno."""
        if self._answer is None:
            self._answer = self._look()
        return self._answer

    def close(self):
        """End it; without a trace, if it was answered."""
        if self._answer == 0:
            sockets.reset(self._sock)
        else:
            self._sock.close()


class UdpQuestion:
    """``request`` (bytes) is sent; an answer is good when it begins with ``expect``. Raises OSError."""

    def __init__(self, address, port, source, request, expect):
        self._expect = expect
        family = socket_family_of(address)
        self._sock = _socket(family, socket.SOCK_DGRAM, source)
        try:
            self._sock.connect((address, port))
            self._sock.send(request)
        except OSError:
            self._sock.close()
            raise

    def poll(self):
        """Return None while there is no answer, 0 for a good one, or the errno (EBADMSG: not what was expected)."""
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return None
        except OSError as error:  # ECONNREFUSED: ICMP port unreachable
            return error.errno
        return 0 if data.startswith(self._expect) else errno.EBADMSG

    def close(self):
        """End it."""
        self._sock.close()
