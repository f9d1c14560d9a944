# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the replacement of a dead child waits: a child that dies again soon after its start waits longer."""

from __future__ import annotations

DELAYS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds, by deaths in a row
LONGEST_DELAY = DELAYS[-1]
STEADY = 10.0  # seconds of life after which a death counts as the first in a row again


class Deaths:
    """Counts the deaths in a row of each (role, slot)."""

    def __init__(self):
        self._counts = {}

    def count(self, key, lifetime):
        """Count a death after ``lifetime`` seconds; return (deaths in a row, seconds until the replacement)."""
        before = 0 if lifetime > STEADY else self._counts.get(key, 0)
        self._counts[key] = before + 1
        return before + 1, DELAYS[min(before, len(DELAYS) - 1)]
