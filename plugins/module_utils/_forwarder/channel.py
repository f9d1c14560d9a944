# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's line to each of its children: one socket pair, JSON messages both ways.

A child says that it is READY or what it FAILED of, and answers what it is asked; the supervisor tells workers which
slots to cover. The end of the line means that the other process is gone. It stays open over the supervisor's exec.
SOCK_SEQPACKET keeps messages apart, so nobody has to frame or to buffer them.
"""

from __future__ import annotations

import json
import os
import socket

LARGEST = 65536  # bytes of one message; far below net.core.wmem_default (212,992)

READY = "ready"
FAILED = "failed"


class Channel:
    """One end of the line."""

    def __init__(self, sock):
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def adopt(cls, number):
        """Return the channel of a descriptor inherited over exec, which becomes close-on-exec again."""
        os.set_inheritable(number, False)
        return cls(socket.socket(fileno=number))

    def fileno(self):
        """Return the descriptor, for selectors and for the exec."""
        return self._sock.fileno()

    def send(self, message):
        """Send a JSON object; returns whether the other side can have it (it may be gone, or not be reading)."""
        try:
            return self._sock.send(json.dumps(message).encode()) > 0
        except OSError:
            return False

    def receive(self):
        """Return ([messages that are waiting], whether the other side is gone)."""
        messages = []
        while True:
            try:
                data = self._sock.recv(LARGEST)
            except BlockingIOError:
                return messages, False
            except OSError:  # ECONNRESET: it went away with our messages unread
                data = b""
            if not data:
                return messages, True
            messages.append(json.loads(data))

    def close(self):
        """Close this end; the other side sees the end of the line."""
        self._sock.close()


def pair():
    """Return the two ends of a new line; raise OSError."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)
