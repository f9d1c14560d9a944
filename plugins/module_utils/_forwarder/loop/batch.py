# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections or datagrams to read from one socket in a turn. Pure.

An idle worker usually finds one, and a batch of one spares it the system call that would only say that there is no
second. Where many wait, one per turn would be slow. So a batch grows when it was full. On a socket that always has
exactly one, growing is in vain, and is tried less and less often.
"""

from __future__ import annotations

SELDOM = 64  # at the latest after so many full batches a larger one is tried


class Batch:
    """``size`` is how many to read in the next turn, at most ``most``."""

    __slots__ = ("_full", "_most", "_wait", "size")

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most
        self._full = 0  # full batches in a row
        self._wait = 1  # full batches before the next growth

    def was_full(self) -> None:
        """Note that at least ``size`` were waiting."""
        if self.size > 1:
            self._wait = 1
        self._full += 1
        if self._full >= self._wait:
            self._full = 0
            self.size = min(self.size * 2, self._most)

    def came_to(self, count: int) -> None:
        """Note that only ``count`` were waiting, fewer than ``size``."""
        self._full = 0
        self.size = count or 1
        if count < 2:
            self._wait = min(self._wait * 2, SELDOM)
