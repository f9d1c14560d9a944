# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify(3): tell the service manager how things are. A datagram to a socket named in the environment.

It also keeps descriptors for us (sd_pid_notify_with_fds(3), FDSTORE=1): listeners that outlive a supervisor that was
killed. While nobody accepts, connections wait in their backlog; the next supervisor finds them by name.
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

FIRST_STORED = 3  # the descriptor that comes first (sd_listen_fds(3), SD_LISTEN_FDS_START)
MOST_KEPT = 4096  # FileDescriptorStoreMax= of our unit; systemd 254 and later tell theirs in $FDSTORE
# Bytes of all names: an environment variable ends at 128 KiB (MAX_ARG_STRLEN), and with more of them in LISTEN_FDNAMES
# the next supervisor could not be started.
MOST_NAMES = 120_000
LONGEST_STATUS = 1000  # bytes; systemd ignores a message of more than 4096
PATIENCE = 5.0  # seconds for what has to be said before we go

_NAME = re.compile(r"(tcp|udp):.+:\d+#\d+\Z")  # of a listener, listeners.name_of()


class Notifier:
    """Tells the service manager, never waits for it, and loses nothing.

    Its queue is short (10 to 512 datagrams). What there is no room for waits here until ``selector`` says that there
    is; news of the service go before those of descriptors. ``names`` are of the sockets that it keeps.
    """

    def __init__(self, selector, names=()):
        self.names = set(names)
        self._selector = selector
        self._news: deque = deque()
        self._changes: deque = deque()  # (name, socket to keep, or None to let go of it)
        self._sock = None
        self._waiting = False

    def ready(self, status):
        """The service serves; also what ends RELOADING=1."""
        self._tell("READY=1", f"STATUS={_one_line(status)}", f"MAINPID={os.getpid()}")

    def reloading(self):
        """A reload has begun (systemd 253 and later want the monotonic time with it)."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self):
        """No new connections from here on."""
        self._tell("STOPPING=1", "STATUS=draining")

    def keep(self, held):
        """Have exactly the sockets of ``held`` ({name: socket}) kept; return how many of them are too many."""
        if _address() is None:
            return 0
        kept = _bounded(held)
        self._changes.clear()  # what waits may be of another config
        self._changes += [(name, None) for name in sorted(self.names - set(kept))]
        self._changes += [(name, held[name]) for name in kept if name not in self.names]
        self.flush()
        return len(held) - len(kept)

    def descriptors(self):
        """Return the descriptor that is open while something waits."""
        return [self._sock.fileno()] if self._sock else []

    def flush(self):
        """Say what waits, as much as there is room for."""
        while self._news or self._changes:
            try:
                self._say_next()
            except BlockingIOError:
                self._wait()
                return
            except OSError:  # a service manager that does not listen is no reason to stop serving
                (self._news or self._changes).popleft()
        self._close()

    def finish(self, patience=PATIENCE):
        """Wait up to ``patience`` seconds until all is said; return whether it is."""
        deadline = time.monotonic() + patience
        while self._sock and time.monotonic() < deadline:
            select.select([], [self._sock], [], max(0.0, deadline - time.monotonic()))
            self.flush()
        return not self._sock

    def _tell(self, *assignments):
        self._news.append("\n".join(assignments).encode("utf-8", "replace"))
        self.flush()

    def _say_next(self):
        """Say one thing; raise OSError, BlockingIOError where there is no room for it."""
        if self._sock is None:
            self._sock = _connected()
        if self._news:
            self._sock.send(self._news[0])
            self._news.popleft()
            return
        name, sock = self._changes[0]
        if sock is None:
            self._sock.send(f"FDSTOREREMOVE=1\nFDNAME={_spelled(name)}".encode())
            self.names.discard(name)
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [sock.fileno()]))
            self._sock.sendmsg([f"FDSTORE=1\nFDNAME={_spelled(name)}".encode()], [rights])
            self.names.add(name)
        self._changes.popleft()

    def _wait(self):
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
    """Return {name: descriptor} of the listeners that the service manager has kept; clears it from ``environ``.

    What is no listener of ours is closed, and so is the older of two of one name: nobody would accept from it.
    """
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not re.fullmatch("[0-9]{1,9}", count):
        return {}
    found: dict[str, int] = {}
    numbers = range(FIRST_STORED, FIRST_STORED + int(count))
    for name, number in zip(map(unquote, names.split(":")), numbers):
        if not _NAME.match(name) or not stat.S_ISSOCK(os.fstat(number).st_mode):
            os.close(number)
            continue
        if name in found:
            os.close(found[name])
        found[name] = number
    return found


def _address():
    """Return the address of the service manager's socket, None without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return "\0" + address[1:] if address.startswith("@") else address or None


def _connected():
    """Return a socket to the service manager: only of a connected one the selector knows whether there is room."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        address = _address()
        if address is None:
            raise FileNotFoundError("there is no service manager")
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def _bounded(held):
    """Return the names in ``held`` that can be kept."""
    told = os.environ.get("FDSTORE", "")
    room, kept = MOST_NAMES, []
    for name in list(held)[: int(told) if re.fullmatch("[0-9]{1,9}", told) else MOST_KEPT]:
        room -= len(_spelled(name)) + 1
        if room < 0:
            break
        kept.append(name)
    return kept


def _spelled(name):
    """Return a name the service manager takes: ASCII without colons."""
    return quote(name, safe="")


def _one_line(text):
    """Return a status that neither ends its line nor makes the message too long for the service manager."""
    line = " ".join(text.split())
    return line.encode("utf-8", "replace")[:LONGEST_STATUS].decode("utf-8", "ignore")
