# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When the keeper looks: soon after news, by the clock without any, and never so often that it only looks. Pure.

All times are seconds of one monotonic clock, which is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable

# A tool that reconfigures a host sends its news in a burst: look when it is quiet for so long, at the latest after ...
QUIET, BURST = 0.01, 0.1
# After looks that found nothing to do the next one waits this long, twice as long each time: a flood of news that looks
# like ours costs a few per cent of a core, and what is really broken is still repaired within a second.
FIRST_GAP, LONGEST_GAP = 0.05, 0.8
# What is broken again within CALM seconds after its own repair is being undone: a restart of networkd does it twice in
# a row. Beyond that a repair waits for SHORT: nothing tells when whoever undoes it has stopped, and a host is to be
# whole within a second then. After some minutes of it nobody is about to stop, and the pause grows.
CALM = 5.0
SHORT, SHORT_TIMES = 0.5, 300
LONG = (1.0, 2.0, 5.0, 10.0, 30.0)
# Repairs that are undone, and steps that fail, cost a tenth of a core at most.
BUSY = 10.0
# While something is missing that only the clock may bring: quick while a boot is under way, then sparing. A step that
# fails, as somebody took away what it built on, is as good as undone.
FIRST_RETRY, LONGEST_RETRY = 0.2, 15.0
FAILED_TIMES = 60
# What has no news, but costs some microseconds to look at (settings, documents, iptables-legacy), is looked at every so
# many seconds. Everything, in case that news were lost for good, is dear with thousands of rules: a glance at it (or,
# where that is of no use, a look) may take a two-thousandth of the time. Once in LONGEST_EVERYTHING it is looked at.
SILENT, EVERYTHING, LONGEST_EVERYTHING, SHARE = 1.0, 60.0, 900.0, 2000


class Pace:
    """Told what happened and when; says when to look next, and how long what was found had been broken."""

    def __init__(self, now: float):
        self.broken_at: float | None = None
        self.undone = 0
        self._news_due: float | None = None
        self._not_before = now
        self._retry = 0.0
        self._retry_due: float | None = now
        self._everything_due = now
        self._silent_due = now
        self._repaired_at: float | None = None
        self._repaired: frozenset[str] = frozenset()
        self._fruitless = 0
        self._failures = 0
        self._looked_at = now
        # How long the next repair waits.
        self.pause = 0.0

    def only_by_the_clock(self, now: float) -> bool:
        """Nothing happened and nothing is missing: a glance will do, unless it is long since everything was read."""
        return self._news_due is None and self._retry_due is None and now - self._looked_at < LONGEST_EVERYTHING

    def glanced(self, now: float, cost: float = 0.0) -> None:
        """All was as the last look left it. ``cost`` is the CPU time that it took to see this."""
        self._everything_due = min(now + max(EVERYTHING, cost * SHARE), self._looked_at + LONGEST_EVERYTHING)

    def heard(self, now: float, urgent: bool = False) -> None:
        """There was news that matters, or it was seen that something is not as it was. ``urgent``: look at once."""
        if self.broken_at is None:
            self.broken_at = now
            if self._is_calm(now):
                self._repaired_at, self.undone, self._not_before = None, 0, now
        if now - self._looked_at > CALM:
            self._fruitless = 0
        self._news_due = now if urgent else min(now + QUIET, self.broken_at + BURST)

    def due(self, now: float) -> bool:
        """Whether it is time to look at everything."""
        return self.next_look() <= now

    def next_look(self) -> float:
        """When to look at everything, if nothing happens before."""
        dates = [date for date in (self._news_due, self._retry_due) if date is not None]
        return min([max(date, self._not_before) for date in dates] + [self._everything_due])

    def silent_due(self, now: float) -> bool:
        """Whether it is time to look at what has no news; then it is next due after SILENT."""
        if now < self._silent_due:
            return False
        self._silent_due = now + SILENT
        return True

    def sleep(self, now: float) -> float:
        """Seconds until there is something to do."""
        return max(0.0, min(self.next_look(), self._silent_due) - now)

    def looked(
        self,
        now: float,
        repaired: Iterable[str] = (),
        missing: bool = False,
        failed: bool = False,
        next_due: float | None = None,
        cost: float = 0.0,
    ) -> None:
        """A look has ended.

        ``repaired``: what was put back, in words. ``missing``: it has to be tried again. ``failed``: that was after
        something had been changed and changed back, which makes news of its own. ``next_due`` is when to look again at
        the latest (seconds), whatever happens. ``cost`` is the CPU time of this look.
        """
        repairs = frozenset(repaired)
        if repairs:
            soon = self._repaired_at is not None and (self.broken_at or now) - self._repaired_at <= CALM
            self.undone = self.undone + 1 if soon and repairs & self._repaired else 0
            self._repaired, self._repaired_at, self._fruitless = repairs, now, 0
            self.pause = self._pause(cost)
            self._not_before = now + self.pause
        elif self._is_calm(now):
            self._repaired_at, self.undone = None, 0
        if not repairs and self._news_due is not None:
            self._not_before = max(self._not_before, now + min(FIRST_GAP * 2**self._fruitless, LONGEST_GAP))
            self._fruitless = min(self._fruitless + 1, 8)
        self._failures = self._failures + 1 if failed else 0
        longest = SHORT if 0 < self._failures <= FAILED_TIMES else LONGEST_RETRY
        self._retry = min(self._retry * 2 or FIRST_RETRY, longest) if missing else 0.0
        self._retry_due = now + max(self._retry, BUSY * cost if failed else 0.0) if missing else None
        if failed and self._retry_due is not None:
            self._not_before = self._retry_due
        everything = min(max(EVERYTHING, cost * SHARE), LONGEST_EVERYTHING)
        self._everything_due = now + min(everything, everything if next_due is None else next_due)
        self._silent_due = now + SILENT
        self._news_due = self.broken_at = None
        self._looked_at = now

    def _is_calm(self, now: float) -> bool:
        """The last repair has lasted."""
        return self._repaired_at is not None and now - self._repaired_at > CALM

    def _pause(self, cost: float) -> float:
        """How long the next repair waits, after having been undone so often in a row. ``cost`` is that of this one."""
        if self.undone < 3:
            return 0.0
        over = (self.undone - SHORT_TIMES) // 10
        return max(SHORT if over < 0 else LONG[min(over, len(LONG) - 1)], BUSY * cost)
