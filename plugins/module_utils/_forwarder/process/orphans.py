# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers of a supervisor that is gone: killed, or gone for a restart of the service.

The unit has KillMode=process, so they go on with the connections they have, and drain by themselves: the end of their
line told them. The supervisor that comes next sees to it that none stays for ever. They are not its children, so it has
to look for them, and a pidfd tells when one has ended.
"""

from __future__ import annotations

import os
import selectors
import signal

WORKER, SUPERVISOR = "l4-worker", "l4-supervisor"  # beginnings of comm, see children.name_process()


def find(proc="/proc"):
    """Return the pids of workers that were started with the command line of this process, and have no supervisor."""
    command = _read(f"{proc}/{os.getpid()}/cmdline")
    return [int(pid) for pid in os.listdir(proc) if pid.isdigit() and _is_orphan(proc, pid, command)]


def _is_orphan(proc, pid, command):
    if not _read(f"{proc}/{pid}/comm").startswith(WORKER) or _read(f"{proc}/{pid}/cmdline") != command:
        return False
    fields = _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    parent = fields[1] if fields else ""  # proc_pid_stat(5), field 4
    return not _read(f"{proc}/{parent}/comm").startswith(SUPERVISOR)


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:  # it has ended, or is another user's, whom the unit's ProtectProc= hides
        return ""


class Orphans:
    """Those that still live; ``pids`` are what find() returned."""

    def __init__(self, selector, pids=()):
        self._selector = selector
        self._waiting = {}  # pidfd by pid
        for pid in pids:
            try:
                self._waiting[pid] = pidfd = os.pidfd_open(pid)
            except OSError:  # it has ended, or the kernel has no pidfds (before 5.3)
                continue
            selector.register(pidfd, selectors.EVENT_READ, lambda pid=pid: self._ended(pid))

    def __len__(self):
        return len(self._waiting)

    def descriptors(self):
        """Return the open pidfds, which forked children must close."""
        return list(self._waiting.values())

    def signal(self, number):
        """Send a signal to all."""
        for pidfd in self._waiting.values():
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                pass

    def _ended(self, pid):
        pidfd = self._waiting.pop(pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
