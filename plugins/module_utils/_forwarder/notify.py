# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify(3): tell the service manager how things are. A datagram to a socket named in the environment.

It also keeps descriptors for us (sd_pid_notify_with_fds(3), FDSTORE=1): listeners that outlive a supervisor that was
killed. While nobody accepts, connections wait in their backlog; the next supervisor finds them by name.
"""

from __future__ import annotations

import os
import socket
import time
from array import array
from urllib.parse import quote, unquote

FIRST_STORED = 3  # the descriptor that comes first (sd_listen_fds(3), SD_LISTEN_FDS_START)


def notify(*assignments, descriptors=()):
    """Send assignments such as "READY=1"; returns whether there was a service manager to hear it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            sock.sendmsg(["\n".join(assignments).encode()], ancillary, 0, address)
    except OSError:  # a service manager that does not listen is no reason to stop serving
        return False
    return True


def ready(status):
    """The service serves; also what ends RELOADING=1."""
    return notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def reloading():
    """A reload has begun (systemd 253 and later want the monotonic time with it)."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping():
    """No new connections from here on."""
    return notify("STOPPING=1", "STATUS=draining")


class Store:
    """What the service manager keeps for us: ``names`` of sockets."""

    def __init__(self, names=()):
        self.names = set(names)

    def keep(self, held):
        """Have exactly the sockets of ``held`` ({name: socket}) kept."""
        for name in self.names - set(held):
            notify("FDSTOREREMOVE=1", f"FDNAME={_spelled(name)}")
        kept = {name for name in held if name in self.names}
        for name in set(held) - kept:
            if notify("FDSTORE=1", f"FDNAME={_spelled(name)}", descriptors=[held[name].fileno()]):
                kept.add(name)
        self.names = kept


def stored(environ):
    """Return {name: descriptor} of what the service manager has kept; clears it from ``environ``."""
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    numbers = range(FIRST_STORED, FIRST_STORED + int(count))
    return {unquote(name): number for name, number in zip(names.split(":"), numbers)}


def _spelled(name):
    """Return a name the service manager takes: ASCII without colons."""
    return quote(name, safe="")
