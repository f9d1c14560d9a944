# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for the PROXY header of a connection that a trusted proxy makes for its client.

The bytes are only looked at (MSG_PEEK) until the header is complete. So a slow sender costs no memory here, and the
relay reads what follows the header as if there had been none.
"""

from __future__ import annotations

import socket

from ..admission.refusal import Refusal
from ..loop import sockets
from ..loop.poller import ENDED
from . import proxy_protocol
from .proxy_protocol import LONGEST, MalformedHeader


class HeaderReader:
    """Calls ``relay.header_received(header)``, or ``relay.refuse(refusal)`` where there is no valid header in time."""

    __slots__ = ("_deadline", "_timeout", "_waiting", "relay")

    def __init__(self, relay, timeout):
        self.relay = relay
        self._timeout = timeout  # seconds
        self._waiting = True
        loop = relay.loop
        self._deadline = loop.timers.add(loop.now() + timeout, self._timed_out)
        loop.poller.watch(relay.client.number, self.ready)

    def ready(self, mask):
        """The poller's callback."""
        sock = self.relay.client.sock
        if sock is None:
            return  # the session was aborted
        try:
            data = sock.recv(LONGEST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            header = proxy_protocol.parse(data)
            if header is None:
                if mask & ENDED:
                    self._refuse("the connection ended before its PROXY header was complete")
                return
            sock.recv(header.length, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except MalformedHeader as error:
            self._refuse(f"not a PROXY header: {error}")
        except OSError as error:
            self._refuse(sockets.describe(error), "other")
        else:
            self._stop()
            self.relay.header_received(header)

    def _timed_out(self):
        self.ready(0)  # the header may have arrived while this worker was busy
        if self._waiting and self.relay.client.sock is not None:
            self._refuse(f"no PROXY header within {self._timeout:g} s")

    def _refuse(self, text, cause="bad_header"):
        self._stop()
        self.relay.refuse(Refusal(cause, text))

    def _stop(self):
        """Leave the poller. When the relay registers the socket, the poller reports what has arrived by then."""
        self._waiting = False
        loop = self.relay.loop
        loop.timers.discard(self._deadline, self._timed_out)
        loop.poller.unregister(self.relay.client.number)

    def abort(self, reason):
        """End the session after a defect (event_loop.py)."""
        self.relay.abort(reason)
