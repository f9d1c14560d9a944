# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coarse timers: callbacks by deadline, in one short dictionary.

Pure; time is passed in (monotonic seconds). Deadlines are rounded up to the next tick, so a callback is due at its
deadline at the earliest, and one TICK later at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_NEVER = float("inf")
TICK = 0.1  # seconds: a timeout of 1 s ends after 1.0 to 1.1 s


class Timers:
    """Callbacks without arguments. The event loop calls those that are due()."""

    def __init__(self) -> None:
        # tick number -> {callback: None}, in the order of adding
        self._slots: dict[int, dict[Callable[[], None], None]] = {}
        self._first: float = _NEVER  # the earliest tick

    def add(self, deadline: float, callback: Callable[[], None]) -> int:
        """Add ``callback``, which is due once at ``deadline``; return the handle for discard()."""
        tick = int(deadline / TICK) + 1
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            if tick < self._first:
                self._first = tick
        slot[callback] = None
        return tick

    def discard(self, handle: int, callback: Callable[[], None]) -> None:
        """Remove a callback, unless it has been handed out already."""
        slot = self._slots.get(handle)
        if slot is not None:
            slot.pop(callback, None)
            if not slot:
                del self._slots[handle]
                if handle == self._first:
                    self._first = min(self._slots, default=_NEVER)

    def timeout(self, now: float) -> float | None:
        """Return the seconds until the next callback is due (0: one is due), None where there is none."""
        if not self._slots:
            return None
        return max(0.0, self._first * TICK - now)

    def due(self, now: float) -> Iterator[Callable[[], None]]:
        """Yield and remove every callback that is due; one that is added meanwhile is due the next time."""
        current = int(now / TICK)
        if current < self._first:
            return
        for tick in sorted(tick for tick in self._slots if tick <= current):
            slot = self._slots.pop(tick, {})
            self._first = min(self._slots, default=_NEVER)
            yield from slot
