# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel between the supervisor and one of its children: a socket pair with JSON messages in both directions.

A child reports that it is READY or why it FAILED, and answers questions; the supervisor tells workers which slots to
cover. End of file means that the other process has ended. Channels stay open over the supervisor's exec.

SOCK_SEQPACKET keeps messages apart, so they need no framing and no buffer. Sending a message that is too large raises
TooLarge. A message that cannot be read (maybe from another version) is received as LOST, and later ones are not
affected.
"""

from __future__ import annotations

import errno
import json
import os
import socket

MAX_SENT = 65535  # bytes of one message; far below net.core.wmem_default (212,992)
MAX_RECEIVED = 1 << 18  # bytes of one message

READY = "ready"
FAILED = "failed"
LOST = "lost"  # {LOST: reason} replaces a message that cannot be read


class TooLarge(ValueError):
    """A message is too large for the channel; nothing was sent."""


class Channel:
    """One end of a channel."""

    def __init__(self, sock):
        self._sock = sock
        sock.setblocking(False)

    @classmethod
    def adopt(cls, number):
        """Return the channel of a file descriptor inherited over exec, and make that close-on-exec again."""
        os.set_inheritable(number, False)
        return cls(socket.socket(fileno=number))

    def fileno(self):
        """Return the file descriptor."""
        return self._sock.fileno()

    def send(self, message):
        """Send a dictionary; return False if the other process has ended or its queue is full. Raise TooLarge."""
        data = json.dumps(message).encode()
        if len(data) > MAX_SENT:
            raise TooLarge(f"a message of {len(data)} bytes exceeds the limit of {MAX_SENT}")
        try:
            return self._sock.send(data) > 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # net.core.wmem_default is set lower than on any known host
                raise TooLarge(f"a message of {len(data)} bytes: {error.strerror}") from None
            return False

    def receive(self):
        """Return ([messages in the queue], whether the other process has ended)."""
        messages: list[dict] = []
        while True:
            try:
                data, _ancillary, flags, _address = self._sock.recvmsg(MAX_RECEIVED)
            except BlockingIOError:
                return messages, False
            except OSError:  # ECONNRESET: it has ended without reading our messages
                return messages, True
            if not data:
                return messages, True
            messages.append(_read(data, flags))

    def close(self):
        """Close this end; the other process gets end of file."""
        self._sock.close()


def _read(data, flags):
    """Return the message in ``data``, a dictionary; {LOST: reason} if it cannot be read."""
    if flags & socket.MSG_TRUNC:
        return {LOST: f"it is larger than {MAX_RECEIVED} bytes"}
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        return {LOST: f"it is not JSON: {error}"}
    return message if isinstance(message, dict) else {LOST: "it is not a JSON object"}


def pair():
    """Return the two ends of a new channel; raise OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)
