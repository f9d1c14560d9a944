# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether an address that is asked again and again is alive. Pure: the caller sends, and passes the time.

One question every INTERVAL; without an answer after WAIT, one every WAIT. After LOST questions without an answer, half
a second, the address is dead: at most 0.85 s after its last sign of life. On a link that loses 8 % of the packets in
each direction, that happens by chance once in a year (0.154 ** 10 * 11,000 questions an hour).
"""

from __future__ import annotations

# Seconds.
INTERVAL, WAIT = 0.33, 0.05
LOST = 10
# After so many questions without an answer nobody else relies on the address, and it does not count as recovering.
DOUBTFUL, SILENT = 2, 3
# An address that was dead must answer so often, which takes three seconds: a link that flaps does not move routes twice
# a second.
RECOVERED = 10
# While it has been unanswered for so many questions, everybody on the link is asked: its MAC may have changed.
SAME_MAC = 3


class Liveness:
    """``alive`` is None until something is known. ``due`` is when to call ``ask`` next."""

    def __init__(self, now: float):
        self.alive: bool | None = None
        self.due = now
        self.unanswered = 0
        self._answers = 0
        self._asked_at = now - INTERVAL

    @property
    def answers(self) -> bool | None:
        """Whether it answers; None while that is in doubt: something is lost, or it is about to come back."""
        if self.alive:
            return True if self.unanswered < DOUBTFUL else None
        return False if self.alive is False and self.unanswered >= SILENT else None

    @property
    def asks_everybody(self) -> bool:
        """Whether the next question goes to everybody on the link; to a dead address, one of three does."""
        if self.alive is False:
            return self.unanswered % SAME_MAC == 0
        return self.unanswered >= SAME_MAC

    def answered(self) -> None:
        self.unanswered, self.due = 0, self._asked_at + INTERVAL
        self._answers += 1
        if self.alive is None or self._answers >= RECOVERED:
            self.alive = True

    def ask(self, now: float) -> bool:
        """Judge what is known, after all answers were read; whether to send a question now."""
        if self.unanswered >= LOST:
            self.alive = False
        if self.unanswered >= SILENT:
            self._answers = 0
        urgent = self.unanswered > 0 and self.alive is not False
        if not urgent and now < self._asked_at + INTERVAL:
            self.due = self._asked_at + INTERVAL
            return False
        return True

    def asked(self, now: float) -> None:
        """A question was sent."""
        self.unanswered += 1
        self._asked_at, self.due = now, now + WAIT

    def not_asked(self, now: float) -> None:
        """No question could be sent, because the link is down: that says nothing about the address."""
        self._asked_at, self.due = now, now + INTERVAL
