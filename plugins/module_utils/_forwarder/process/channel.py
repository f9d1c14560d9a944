# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel between the supervisor and one of its children: a socket pair with JSON messages in both directions.

A child reports that it is READY or why it FAILED, and answers questions; the supervisor tells workers which slots to
cover. End of file means that the other process has ended. Channels stay open over the supervisor's exec.

SOCK_SEQPACKET keeps messages apart, so they need no framing and no buffer. Sending a message that is too large raises
TooLarge. A message that cannot be read (maybe from another version) is received as LOST, and later ones are not
affected. A message may carry file descriptors (unix(7), SCM_RIGHTS); a receiver that does not expect any closes them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from array import array

MAX_SENT = 65535  # bytes of one message; far below net.core.wmem_default (212,992)
MAX_RECEIVED = 1 << 18  # bytes of one message

READY = "ready"
FAILED = "failed"
LOST = "lost"  # {LOST: reason} replaces a message that cannot be read

MAX_DESCRIPTORS = 250  # of one message; the kernel takes 253 (SCM_MAX_FD in include/net/scm.h)
DESCRIPTORS = "descriptors"  # key of a received message: the descriptors that came with it, if there were any

_ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)


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

    def send(self, message, descriptors=()):
        """Send a dictionary, with copies of file descriptors; raise TooLarge.

        Return False if the other process has ended, its queue is full, or too many descriptors are in flight.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_SENT:
            raise TooLarge(f"a message of {len(data)} bytes exceeds the limit of {MAX_SENT}")
        try:
            if not descriptors:
                return self._sock.send(data) > 0
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
            return self._sock.sendmsg([data], [rights]) > 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # net.core.wmem_default is set lower than on any known host
                raise TooLarge(f"a message of {len(data)} bytes: {error.strerror}") from None
            return False

    def receive(self):
        """Return ([messages in the queue], whether the other process has ended).

        The descriptors of a message are under the key DESCRIPTORS; close_descriptors() closes those nobody wants.
        """
        messages: list[dict] = []
        while True:
            try:
                data, ancillary, flags, _address = self._sock.recvmsg(MAX_RECEIVED, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return messages, False
            except OSError:  # ECONNRESET: it has ended without reading our messages
                return messages, True
            if not data:
                return messages, True
            message = _read(data, flags)
            message.pop(DESCRIPTORS, None)  # it can only come from the kernel
            if ancillary:
                message[DESCRIPTORS] = _descriptors(ancillary)
            messages.append(message)

    def close(self):
        """Close this end; the other process gets end of file."""
        self._sock.close()


def _descriptors(ancillary):
    """Return the descriptors of a received message."""
    numbers = array("i")
    for _level, _kind, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers.tolist()


def close_descriptors(message):
    """Close the descriptors that came with a message and take them out of it."""
    for number in message.pop(DESCRIPTORS, ()):
        os.close(number)


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
