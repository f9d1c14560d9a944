# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many datagrams of one socket are read in a turn. Pure.

One is what an unhurried worker finds, and then it need not ask in vain whether there is a second; where many wait, the
poller should not be asked for each. So a batch grows when it was full. On a socket that has one datagram at a time, as
the one of a lonely client, growing is in vain, and it is tried ever less often.
"""

from __future__ import annotations

MOST = 64  # datagrams of one socket: then the others get their turn
SELDOM = 64  # full batches after which a bigger one is tried at the latest


class Batch:
    """``size`` is how many datagrams to read in the next turn."""

    __slots__ = ("_full", "_wait", "size")

    def __init__(self):
        self.size = 1
        self._full = 0  # in a row
        self._wait = 1  # how many there have to be before the next growth

    def was_full(self):
        """As many datagrams were there as were asked for."""
        if self.size > 1:
            self._wait = 1
        self._full += 1
        if self._full >= self._wait:
            self._full = 0
            self.size = min(self.size * 2, MOST)

    def came_to(self, count):
        """There were only ``count``."""
        self._full = 0
        self.size = count or 1
        if count < 2:
            self._wait = min(self._wait * 2, SELDOM)
