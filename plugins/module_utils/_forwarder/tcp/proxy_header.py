# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for the PROXY header of a connection that another proxy makes for its client.

The bytes are looked at (MSG_PEEK) and stay in the kernel until the header is whole; so nothing is kept here for those
who are slow to send it, and what follows the header is read by the relay as if it had come first.
"""

from __future__ import annotations

import socket

from ..admission.refusal import Refusal
from ..loop import sockets
from ..loop.poller import ENDED, URGENT
from . import proxy_protocol
from .proxy_protocol import LONGEST, MalformedHeader


class HeaderReader:
    """Reports the header to ``relay.introduced(header)``, or why there is none to ``relay.refuse(refusal)``."""

    __slots__ = ("_deadline", "_timeout", "_waiting", "relay")

    def __init__(self, relay, timeout):
        self.relay = relay
        self._timeout = timeout
        self._waiting = True
        worker = relay.worker
        self._deadline = worker.timers.add(worker.now() + timeout, self._too_slow)
        worker.selector.watch(relay.client.number, self.ready)

    def ready(self, mask):
        """The poller's callback."""
        sock = self.relay.client.sock
        if sock is None:
            return  # aborted meanwhile
        if mask & URGENT:  # said once, and the relay reads what it is about
            self.relay.client.careful = True
        try:
            data = sock.recv(LONGEST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            header = proxy_protocol.parse(data)
            if header is None:
                if mask & ENDED:
                    self._over("the connection ended before its PROXY header was complete")
                return
            sock.recv(header.length, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except MalformedHeader as error:
            self._over(f"not a PROXY header: {error}")
        except OSError as error:
            self._over(sockets.describe(error), "other")
        else:
            self._leave()
            self.relay.introduced(header)

    def _too_slow(self):
        self.ready(0)  # it may have come while this worker was busy with others
        if self._waiting and self.relay.client.sock is not None:
            self._over(f"no PROXY header within {self._timeout:g} s")

    def _over(self, text, cause="bad_header"):
        self._leave()
        self.relay.refuse(Refusal(cause, text))

    def _leave(self):
        """Take the client out of the poller: what arrived meanwhile is then reported when the relay puts it in."""
        self._waiting = False
        worker = self.relay.worker
        worker.timers.discard(self._deadline, self._too_slow)
        worker.selector.unregister(self.relay.client.number)
