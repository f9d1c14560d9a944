# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When the keeper runs its next pass: soon after notifications, otherwise by the clock, and never too often. Pure.

All times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable

# A tool that reconfigures a host causes a burst of notifications: wait until it is quiet for QUIET, at most for BURST.
QUIET, BURST = 0.01, 0.1
# After a pass that changed nothing the next one waits FIRST_GAP, then twice as long each time. So a flood of irrelevant
# notifications costs a few per cent of a core, and real damage is still repaired within a second.
FIRST_GAP, LONGEST_GAP = 0.05, 0.8
# If the same object breaks again within CALM seconds of its repair, the repair was reverted; a restart of networkd does
# this twice in a row. From the third time on each repair waits SHORT: it is unknown when the other tool stops, and the
# host must be repaired within a second after that. After some minutes the pause grows through LONG.
CALM = 5.0
SHORT, SHORT_TIMES = 0.5, 300
LONG = (1.0, 2.0, 5.0, 10.0, 30.0)
# Repeated repairs and failing passes may use at most a tenth of a core.
BUSY = 10.0
# Retries while something is missing: quick during a boot, then rare. A failing pass is retried about as often as a
# reverted repair, because another tool may have removed what the pass relied on.
FIRST_RETRY, LONGEST_RETRY = 0.2, 15.0
FAILED_TIMES = 60
# Counting the connections that need retiring objects lists all sockets: the next pass for that waits COUNT_SHARE times
# the CPU time of the last one, at most LONGEST_COUNT seconds.
COUNT_SHARE, LONGEST_COUNT = 200, 300.0
# What sends no notifications (settings, documents, iptables-legacy) takes microseconds to check, every POLL seconds. A
# full check (in case notifications were lost) is expensive with thousands of rules, so it may use at most 1/SHARE of
# the CPU; it compares fingerprints if possible, but every LONGEST_FULL seconds it is a complete pass.
POLL, FULL, LONGEST_FULL, SHARE = 1.0, 60.0, 900.0, 2000


class Schedule:
    """The caller reports events with their times; the schedule says when the next pass is due.

    ``broken_at`` is when the first notification since the last pass arrived, ``reverted`` how many repairs in a row
    were reverted, ``pause`` how many seconds the next repair waits.
    """

    def __init__(self, now: float):
        self.broken_at: float | None = None
        self.reverted = 0
        self.pause = 0.0
        self._notified_due: float | None = None
        self._not_before = now
        self._retry = 0.0
        self._retry_due: float | None = now
        self._full_due = now
        self._poll_due = now
        self._repaired_at: float | None = None
        self._repaired: frozenset[str] = frozenset()
        self._idle_passes = 0
        self._failures = 0
        self._passed_at = now

    def may_compare(self, now: float) -> bool:
        """Whether comparing fingerprints may replace the next pass: no event, no retry, and a recent complete pass."""
        return self._notified_due is None and self._retry_due is None and now - self._passed_at < LONGEST_FULL

    def compared(self, now: float, cost: float = 0.0) -> None:
        """The fingerprint is unchanged. ``cost`` is the CPU time of computing it."""
        self._full_due = min(now + max(FULL, cost * SHARE), self._passed_at + LONGEST_FULL)

    def notified(self, now: float, urgent: bool = False) -> None:
        """A relevant notification arrived, or a poll found a difference. ``urgent``: run a pass at once."""
        if self.broken_at is None:
            self.broken_at = now
            if self._is_calm(now):
                self._repaired_at, self.reverted, self._not_before = None, 0, now
        if now - self._passed_at > CALM:
            self._idle_passes = 0
        self._notified_due = now if urgent else min(now + QUIET, self.broken_at + BURST)

    def is_due(self, now: float) -> bool:
        """Whether a pass is due."""
        return self.next_pass() <= now

    def next_pass(self) -> float:
        """When the next pass is due if nothing happens before."""
        dates = [date for date in (self._notified_due, self._retry_due) if date is not None]
        return min([max(date, self._not_before) for date in dates] + [self._full_due])

    def poll_is_due(self, now: float) -> bool:
        """Whether to check what sends no notifications; if so, the next poll is due after POLL seconds."""
        if now < self._poll_due:
            return False
        self._poll_due = now + POLL
        return True

    def sleep(self, now: float) -> float:
        """Seconds until the next pass or poll is due."""
        return max(0.0, min(self.next_pass(), self._poll_due) - now)

    def passed(
        self,
        now: float,
        repaired: Iterable[str] = (),
        incomplete: bool = False,
        failed: bool = False,
        next_due: float | None = None,
        cost: float = 0.0,
    ) -> None:
        """A pass has ended.

        ``repaired``: the changes that were repairs, as text. ``incomplete``: something is missing: retry. ``failed``: a
        document was applied in part and rolled back, which causes notifications of its own. ``next_due``: seconds
        after which a pass is due in any case. ``cost``: CPU seconds of this pass.
        """
        repairs = frozenset(repaired)
        if repairs:
            soon = self._repaired_at is not None and (self.broken_at or now) - self._repaired_at <= CALM
            self.reverted = self.reverted + 1 if soon and repairs & self._repaired else 0
            self._repaired, self._repaired_at, self._idle_passes = repairs, now, 0
            self.pause = self._pause(cost)
            self._not_before = now + self.pause
        elif self._is_calm(now):
            self._repaired_at, self.reverted = None, 0
        if not repairs and self._notified_due is not None:
            self._not_before = max(self._not_before, now + min(FIRST_GAP * 2**self._idle_passes, LONGEST_GAP))
            self._idle_passes = min(self._idle_passes + 1, 8)
        self._plan_retry(now, incomplete, failed, cost)
        full = min(max(FULL, cost * SHARE), LONGEST_FULL)
        self._full_due = now + min(
            full, full if next_due is None else max(next_due, min(cost * COUNT_SHARE, LONGEST_COUNT))
        )
        self._poll_due = now + POLL
        self._notified_due = self.broken_at = None
        self._passed_at = now

    def _plan_retry(self, now: float, incomplete: bool, failed: bool, cost: float) -> None:
        self._failures = self._failures + 1 if failed else 0
        longest = SHORT if 0 < self._failures <= FAILED_TIMES else LONGEST_RETRY
        self._retry = min(self._retry * 2 or FIRST_RETRY, longest) if incomplete else 0.0
        self._retry_due = now + max(self._retry, BUSY * cost if failed else 0.0) if incomplete else None
        if failed and self._retry_due is not None:
            self._not_before = self._retry_due

    def _is_calm(self, now: float) -> bool:
        """Whether the last repair has lasted."""
        return self._repaired_at is not None and now - self._repaired_at > CALM

    def _pause(self, cost: float) -> float:
        """Seconds that the next repair waits; ``cost`` is the CPU time of the last one."""
        if self.reverted < 3:
            return 0.0
        step = (self.reverted - SHORT_TIMES) // 10
        return max(SHORT if step < 0 else LONG[min(step, len(LONG) - 1)], BUSY * cost)
