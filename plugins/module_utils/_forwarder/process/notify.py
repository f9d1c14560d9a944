# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications to the service manager, systemd: state changes, and descriptors to store (sd_notify(3)).

systemd keeps stored descriptors open if the supervisor is killed (sd_pid_notify_with_fds(3), FDSTORE=1). Connections
wait in the backlog of listening sockets until the next supervisor gets them back, by name. A supervisor that leaves for
a restart also stores its state (restart_state.py).
"""

from __future__ import annotations

import os
import re
import select
import selectors
import socket
import stat
import time
from array import array
from collections import deque
from urllib.parse import quote, unquote

from ..._shared.environment import notify_address
from . import restart_state

FIRST_STORED = 3  # the first descriptor from systemd (sd_listen_fds(3), SD_LISTEN_FDS_START)
MAX_STORED = 4096  # FileDescriptorStoreMax= of our unit; systemd 254 and later pass it in $FDSTORE
# Bytes of all names. systemd passes them in the variable LISTEN_FDNAMES; beyond 128 KiB (MAX_ARG_STRLEN) the next
# supervisor could not be started.
MAX_NAMES = 120_000
MAX_STATUS = 1000  # bytes; systemd ignores messages above 4096
FINISH_TIMEOUT = 5.0  # seconds for sending the queue before the supervisor exits
NOT_STORED = (
    "the service manager stores no more sockets; when the supervisor restarts or dies, connections queued in the"
    " sockets that were not stored are reset; listen on fewer ports or use fewer workers"
)

_NAME = re.compile(r"(tcp|udp):.+:\d+#\d+\Z")  # of a listener, listeners.name_of()


class Notifier:
    """Sends notifications without blocking or losing one.

    systemd's queue is short (10 to 512 datagrams). Notifications that do not fit wait here until ``selector`` reports
    room; state changes are sent before changes of stored sockets. ``names`` are those of everything that is stored.
    """

    def __init__(self, selector, names=()):
        self.names = set(names)
        self._selector = selector
        self._states: deque = deque()
        self._changes: deque = deque()  # (name, socket to store, or None to remove it)
        self._sock = None
        self._waiting = False

    def ready(self, status):
        """Notify that the service is ready, which also ends reloading()."""
        self._notify("READY=1", f"STATUS={_one_line(status)}", f"MAINPID={os.getpid()}")

    def reloading(self):
        """Notify that a reload has begun (systemd 253 and later require the monotonic time)."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self):
        """Notify that the service stops."""
        self._notify("STOPPING=1", "STATUS=draining")

    def store(self, listening):
        """Make systemd store exactly ``listening``, {name: socket or descriptor}; return how many do not fit.

        The last ones are those that do not fit into its store.
        """
        if notify_address(os.environ) is None:
            return 0
        kept = _storable(listening)
        self._changes.clear()  # they may be from an older config
        self._changes += [(name, None) for name in sorted(self.names - set(kept))]
        self._changes += [(name, listening[name]) for name in kept if name not in self.names]
        self.flush()
        return len(listening) - len(kept)

    def store_listeners(self, listening, log):
        """Make systemd store exactly these sockets; log a warning if it cannot store all of them."""
        surplus = self.store(listening)
        if surplus:
            log.event("listeners not kept", level="warning", count=surplus, of=len(listening), reason=NOT_STORED)

    def descriptors(self):
        """Return the file descriptor that is open while notifications wait."""
        return [self._sock.fileno()] if self._sock else []

    def flush(self):
        """Send the waiting notifications, as many as there is room for."""
        while self._states or self._changes:
            try:
                self._send_next()
            except BlockingIOError:
                self._wait_for_room()
                return
            except OSError:  # without a service manager the forwarder serves all the same
                (self._states or self._changes).popleft()
        self._close()

    def finish(self, timeout=FINISH_TIMEOUT):
        """Wait up to ``timeout`` seconds until all notifications are sent; return whether they are."""
        deadline = time.monotonic() + timeout
        while self._sock and time.monotonic() < deadline:
            select.select([], [self._sock], [], max(0.0, deadline - time.monotonic()))
            self.flush()
        return not self._sock

    def _notify(self, *assignments):
        self._states.append("\n".join(assignments).encode("utf-8", "replace"))
        self.flush()

    def _send_next(self):
        """Send one notification; raise OSError, BlockingIOError if the queue is full."""
        if self._sock is None:
            self._sock = _connected()
        if self._states:
            self._sock.send(self._states[0])
            self._states.popleft()
            return
        name, sock = self._changes[0]
        if sock is None:
            self._sock.send(f"FDSTOREREMOVE=1\nFDNAME={_encoded(name)}".encode())
            self.names.discard(name)
        else:
            number = sock if isinstance(sock, int) else sock.fileno()
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [number]))
            self._sock.sendmsg([f"FDSTORE=1\nFDNAME={_encoded(name)}".encode()], [rights])
            self.names.add(name)
        self._changes.popleft()

    def _wait_for_room(self):
        if not self._waiting:
            self._selector.register(self._sock, selectors.EVENT_WRITE, self.flush)
            self._waiting = True

    def _close(self):
        if self._waiting:
            self._selector.unregister(self._sock)
            self._waiting = False
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def stored(environ):
    """Return {name: descriptor} of what systemd has stored; remove its variables from ``environ``.

    Descriptors that are neither our listeners nor a supervisor's state are closed, and so is the older of two with one
    name.
    """
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not re.fullmatch("[0-9]{1,9}", count):
        return {}
    sockets: dict[str, int] = {}
    numbers = range(FIRST_STORED, FIRST_STORED + int(count))
    for name, number in zip(map(unquote, names.split(":")), numbers):
        is_listener = _NAME.match(name) and stat.S_ISSOCK(os.fstat(number).st_mode)
        if not is_listener and not restart_state.is_name(name):
            os.close(number)
            continue
        if name in sockets:
            os.close(sockets[name])
        sockets[name] = number
    return sockets


def _connected():
    """Return a socket connected to systemd's; without connect() a selector could not tell whether its queue is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        address = notify_address(os.environ)
        if address is None:
            raise FileNotFoundError("there is no service manager")
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def _storable(listening):
    """Return the names of the sockets in ``listening`` that fit into systemd's store."""
    limit = os.environ.get("FDSTORE", "")
    room, kept = MAX_NAMES, []
    for name in list(listening)[: int(limit) if re.fullmatch("[0-9]{1,9}", limit) else MAX_STORED]:
        room -= len(_encoded(name)) + 1
        if room < 0:
            break
        kept.append(name)
    return kept


def _encoded(name):
    """Return a name as systemd accepts it: ASCII without colons."""
    return quote(name, safe="")


def _one_line(text):
    """Return a status without line breaks, of at most MAX_STATUS bytes."""
    line = " ".join(text.split())
    return line.encode("utf-8", "replace")[:MAX_STATUS].decode("utf-8", "ignore")
