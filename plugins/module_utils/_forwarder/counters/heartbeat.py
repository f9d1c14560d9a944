# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Heartbeats: each process writes the time to shared memory, and the supervisor checks once a second which ones hang.

A process that is stopped, blocked in a system call or in an endless loop keeps its descriptors: its clients wait, and
nothing else reveals it. A process that is only slow must not be killed, so the limit depends on what the process does.
If the supervisor itself was late, the whole machine was; then all limits start anew.
"""

from __future__ import annotations

import os

BEAT = 0.5  # seconds an idle process may sleep without writing the time; in version 0.1.0: 1.0
INTERVAL = 1.0  # seconds between two checks
LATE = 1.0  # seconds by which a check may be late; if it is later, all limits start anew
SUSPECT = 2.5  # seconds without a heartbeat after which the status shows a process as hung

# Seconds without a heartbeat after which a process is killed, by what it does.
STOPPED = 3.0  # by a signal or a debugger
BLOCKED = 5.0  # sleeping in a system call
BUSY = 10.0  # using the CPU; the handover of 65,536 UDP sessions takes seconds on a slow machine
STARVED = 30.0  # waiting for a CPU or a disk

_TICKS = os.sysconf("SC_CLK_TCK")


class Monitor:
    """Finds the processes that hang. All times are monotonic seconds."""

    def __init__(self, now):
        self._limits_since = now
        self._checked = now
        self._suspects = {}  # pid -> (time of the first check that found it silent, seconds of CPU it had used then)

    def since(self, now):
        """Return the time from which all limits count; now, if the next check is late."""
        return now if now - self._checked > INTERVAL + LATE else self._limits_since

    def check(self, now, beats):
        """Return {pid: reason} of the processes that hang; ``beats`` is {pid: time of the last heartbeat}."""
        if now - self._checked > INTERVAL + LATE:
            self._limits_since = now
        self._checked = now
        self._suspects = {pid: suspect for pid, suspect in self._suspects.items() if pid in beats}
        hanging = {}
        for pid, beat in beats.items():
            silent = now - max(beat, self._limits_since)
            if silent < SUSPECT:
                self._suspects.pop(pid, None)
                continue
            state, used = process(pid)
            since, used_before = self._suspects.setdefault(pid, (now, used))
            reason = verdict(silent, state, used - used_before > (now - since) / 2)
            if reason:
                hanging[pid] = reason
        return hanging


def verdict(silent, state, busy):
    """Return why a process hangs, one sentence, or None if it may only be slow.

    ``silent`` is the number of seconds since its last heartbeat, ``state`` the letter of proc_pid_stat(5), ``busy``
    whether it has used at least half a CPU.
    """
    if state in "Tt":
        limit, cause = STOPPED, "it is stopped (by a signal or a debugger)"
    elif state == "S":
        limit, cause = BLOCKED, "it is blocked in a system call"
    elif busy:
        limit, cause = BUSY, "it is in an endless loop"
    else:
        limit, cause = STARVED, "it gets no CPU time or waits for a disk"
    return f"no heartbeat for {silent:.0f} s: {cause}" if silent >= limit else None


def process(pid):
    """Return (state letter, seconds of CPU used) of a process; "Z" and 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS
