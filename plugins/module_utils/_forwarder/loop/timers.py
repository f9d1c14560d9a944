# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One coarse timer timers: many deadlines, one short dictionary, no timer a connection.

Pure; time is passed in (monotonic seconds). Deadlines are rounded up to the next tick, never down, so a timeout is kept
for at least its length and at most one TICK longer.
"""

from __future__ import annotations

_NEVER = float("inf")
TICK = 0.1  # seconds: an attempt timeout of 1 s ends after 1.0-1.1 s


class Timers:
    """Items by deadline. An item is a callable without arguments, run by expire() or by who asks what is due()."""

    def __init__(self):
        self._slots = {}  # tick number -> {item: None} (a dict keeps the order of adding)
        self._first = _NEVER  # the earliest of them

    def add(self, deadline, item):
        """Have ``item`` run once ``deadline`` has passed; returns the handle discard() takes."""
        tick = int(deadline / TICK) + 1
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            if tick < self._first:
                self._first = tick
        slot[item] = None
        return tick

    def discard(self, handle, item):
        """Forget an item; nothing happens when it has run already."""
        slot = self._slots.get(handle)
        if slot is not None:
            slot.pop(item, None)
            if not slot:
                del self._slots[handle]
                if handle == self._first:
                    self._first = min(self._slots, default=_NEVER)

    def timeout(self, now):
        """Return the seconds until the next item is due (0 when one is), None when there is none."""
        if not self._slots:
            return None
        return max(0.0, self._first * TICK - now)

    def expire(self, now):
        """Run every item that is due; items added meanwhile wait for their own turn."""
        for item in self.due(now):
            item()

    def due(self, now):
        """Hand out and forget every item that is due, for a caller that runs them in its own way."""
        current = int(now / TICK)
        if current < self._first:
            return
        for tick in sorted(tick for tick in self._slots if tick <= current):
            slot = self._slots.pop(tick, ())
            self._first = min(self._slots, default=_NEVER)
            yield from slot
