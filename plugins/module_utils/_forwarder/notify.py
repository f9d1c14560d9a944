# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify(3): tell the service manager how things are. A datagram to a socket named in the environment."""

from __future__ import annotations

import os
import socket
import time


def notify(*assignments):
    """Send assignments such as "READY=1"; returns whether there was a service manager to hear it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto("\n".join(assignments).encode(), address)
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
