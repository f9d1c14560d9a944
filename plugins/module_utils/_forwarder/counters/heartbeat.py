# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of our processes hang: each writes the time to shared memory, and the supervisor reads it once a second.

A process that is stopped, waits in a system call or is in an endless loop keeps its descriptors: its clients wait, and
nothing else tells. One that is only slow must not be killed. So the time it may be silent depends on what it does; and
when the supervisor itself was late, the whole machine was, and everybody is given the time again.
"""

from __future__ import annotations

import os

BEAT = 1.0  # seconds a process that has nothing to do may sleep without writing the time
INTERVAL = 1.0  # seconds between two looks
LATE = 1.0  # seconds by which a look may come late before nobody's silence counts
SUSPECT = 2.5  # seconds of silence from which on the status says so

# Seconds of silence after which a process hangs.
STOPPED = 3.0  # by a signal or a debugger
BLOCKED = 5.0  # in a system call
BUSY = 10.0  # with the CPU: handing over 65,536 UDP sessions takes a slow machine seconds
STARVED = 30.0  # without the CPU that it waits for, or for a disk

_TICKS = os.sysconf("SC_CLK_TCK")


class Beats:
    """Looks at the times that processes wrote; monotonic seconds throughout."""

    def __init__(self, now):
        self._fair_since = now
        self._looked = now
        self._suspects = {}  # pid -> (when it was first found silent, the CPU it had used by then)

    def look(self, now, times):
        """Return {pid: why it is said to hang} of ``times``, {pid: when it last wrote the time}."""
        if now - self._looked > INTERVAL + LATE:
            self._fair_since = now
        self._looked = now
        self._suspects = {pid: one for pid, one in self._suspects.items() if pid in times}
        found = {}
        for pid, beat in times.items():
            silent = now - max(beat, self._fair_since)
            if silent < SUSPECT:
                self._suspects.pop(pid, None)
                continue
            state, used = process(pid)
            since, before = self._suspects.setdefault(pid, (now, used))
            reason = verdict(silent, state, used - before > (now - since) / 2)
            if reason:
                found[pid] = reason
        return found


def verdict(silent, state, busy):
    """Return why a process hangs that has been ``silent`` for so many seconds, None where it may only be slow.

    ``state`` is the letter of proc_pid_stat(5), ``busy`` whether it has had half of a CPU at least.
    """
    if state in "Tt":
        longest, what = STOPPED, "it is stopped (a signal or a debugger)"
    elif state == "S":
        longest, what = BLOCKED, "it waits in a system call"
    elif busy:
        longest, what = BUSY, "it is in a loop"
    else:
        longest, what = STARVED, "it gets no CPU, or waits for a disk"
    return f"no sign of life for {silent:.0f} s: {what}" if silent >= longest else None


def process(pid):
    """Return (state letter, seconds of CPU used) of a process; "Z" and 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS
