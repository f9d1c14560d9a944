# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Extend systemd's start timeout while the keeper's start makes progress: a busy host needs more than a few seconds.

The unit's TimeoutStartSec ends a start that hangs; the network waits no longer than that for it at boot. A start that
uses CPU time or often waits for something, itself or in commands that have ended, gets EXTENSION seconds more every
INTERVAL seconds (EXTEND_TIMEOUT_USEC of sd_notify(3)), but no more after LONGEST_START seconds. Waiting for the host's
lock is progress too: the keeper looks at it many times a second, and gives up after a minute.

A timer signal does this, so it also works during imports, and not in a system call that hangs.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable

# Seconds. EXTENSION is the unit's TimeoutStartSec.
INTERVAL, EXTENSION, LONGEST_START = 5.0, 20, 100.0
# What counts as progress in one INTERVAL: CPU seconds, or context switches. Handling the signal needs far less.
CPU, SWITCHES = 0.005, 10


def usage() -> tuple[float, int]:
    """CPU seconds and context switches of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both), sum(one.ru_nvcsw + one.ru_nivcsw for one in both)


class StartTimer:
    """``notify`` sends a line to systemd; ``clock`` returns monotonic seconds, ``used`` CPU seconds and switches."""

    def __init__(
        self,
        notify: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], tuple[float, int]] = usage,
    ):
        self._notify, self._clock, self._used = notify, clock, used
        self._began, self._before = clock(), used()

    def start(self) -> None:
        signal.signal(signal.SIGALRM, lambda _number, _frame: self.extend())
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def extend(self) -> None:
        """Extend the timeout if there was progress since the last call."""
        (cpu, switches), before, self._before = self._used(), self._before, self._used()
        working = cpu - before[0] >= CPU or switches - before[1] >= SWITCHES
        if working and self._clock() - self._began < LONGEST_START:
            self._notify(f"EXTEND_TIMEOUT_USEC={EXTENSION * 1_000_000}")
