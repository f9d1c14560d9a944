# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orphans: workers whose supervisor was killed, or was one of version 0.1.0 that has left for a restart of the service.

The unit has KillMode=process, so they finish their connections; they drain because their channel to the supervisor was
closed, and end their sessions at a SIGTERM. The next supervisor makes sure that each of them ends. They are not its
children, so it searches /proc for them and waits for their end by pidfds. Workers that it takes over (restart_state.py)
are no orphans.
"""

from __future__ import annotations

import os
import selectors
import signal
from functools import partial

WORKER, SUPERVISOR = "l4-worker", "l4-supervisor"  # how comm begins, see children.name_process()


def find(proc="/proc"):
    """Return the pids of workers without a supervisor that have the command line of this process."""
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
    except OSError:  # it has ended, or belongs to another user and the unit's ProtectProc= hides it
        return ""


class Orphans:
    """The orphans that have not ended yet."""

    def __init__(self, loop):
        self._loop = loop
        self._pidfds = {}  # by pid

    def watch(self, pids):
        """Wait for the end of these processes."""
        for pid in pids:
            try:
                self._pidfds[pid] = pidfd = os.pidfd_open(pid)
            except OSError:  # it has ended, or the kernel has no pidfds (before 5.3)
                continue
            self._loop.selector.register(pidfd, selectors.EVENT_READ, lambda pid=pid: self._ended(pid))

    def __len__(self):
        return len(self._pidfds)

    def __iter__(self):
        """Iterate over their pids."""
        return iter(list(self._pidfds))

    def end_after(self, seconds, kill_after):
        """After ``seconds`` make them end their sessions; kill those that are left after ``kill_after``."""
        self._loop.call_later(seconds, partial(self.signal, signal.SIGTERM))
        self._loop.call_later(kill_after, partial(self.signal, signal.SIGKILL))

    def descriptors(self):
        """Return the open pidfds, which forked children must close."""
        return list(self._pidfds.values())

    def signal(self, number):
        """Send a signal to all."""
        for pidfd in self._pidfds.values():
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                pass

    def _ended(self, pid):
        pidfd = self._pidfds.pop(pid)
        self._loop.selector.unregister(pidfd)
        os.close(pidfd)
