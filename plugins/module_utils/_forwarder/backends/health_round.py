# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target under watch by the checker, and one round of its questions."""

from __future__ import annotations

import errno
from typing import Any

from .health_probe import TcpQuestion, UdpQuestion
from .health_state import Answer, Target

TICK = 0.05  # seconds between two looks at a round under way
SECOND_QUESTION = 0.5  # part of the timeout after which the own address asks as well
SILENCE = 2 * TICK  # seconds without an answer that are suspicious; and twice what the last good round took

# The spoofed question can be answered by "no": then the path is whole and the server is not up.
_REFUSALS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EBADMSG}


class Round:
    """One round under way: the questions of a target that have not been answered yet."""

    def __init__(self, begun, deadline):
        self.begun = begun
        self.deadline = deadline
        self.answer = Answer()
        self.spoofed = None  # question
        self.own = None
        self.own_asked = None  # when

    def close(self):
        """End what is still open."""
        for question in (self.spoofed, self.own):
            if question is not None:
                question.close()
        self.spoofed = self.own = None


class Watch:
    """A target under watch: its rounds, one after the other."""

    def __init__(self, number, service, backend, family):
        health = service.health
        self.number = number  # of the target in the region
        self.service = service
        self.backend = backend
        self.family = family
        self.address = backend.address(family)
        self.source = health.source_of(family)
        self.target = Target(health.rise, health.fall, window=health.fall * health.interval)
        self.round: Any = None  # the Round under way
        self.due = 0.0
        self.hurried = False  # whether a client's connect has failed, or lasts long, since the last round ended
        self.blamed = False  # whether one has failed
        self.last_begun = 0.0
        self.usual = 0.0  # seconds the last good round took

    def ask(self, source):
        """Return a question from ``source``; raise OSError."""
        health = self.service.health
        port = health.port or self.backend.port
        if self.service.protocol == "udp":
            request, expect = (text.encode("latin-1") for text in (health.request, health.expect or ""))
            return UdpQuestion(self.address, port, source, request, expect)
        return TcpQuestion(self.address, port, source)

    def begin(self, now):
        """Begin a round."""
        self.last_begun = now
        self.round = Round(now, now + self.service.health.timeout)
        if self.source is not None:
            try:
                self.round.spoofed = self.ask(self.source)
            except OSError as error:  # EPERM and the like: this host cannot ask it, and that is about no backend
                self.round.answer.path_errno = error.errno
        if self.round.spoofed is None:
            self._ask_ourselves(now)

    def _ask_ourselves(self, now):
        self.round.own_asked = now
        try:
            self.round.own = self.ask(None)
        except OSError as error:  # ENETUNREACH: no way there
            self._answered_own(error.errno)

    def look(self, now):
        """Look at the round under way; returns its Answer when it is over."""
        current = self.round
        if current.spoofed is not None:
            number = current.spoofed.poll()
            if number is not None:
                self._answered_spoofed(number)
            elif now >= current.deadline:
                self._answered_spoofed(errno.ETIMEDOUT)
        if current.own is not None:
            number = current.own.poll()
            if number is not None:
                self._answered_own(number)
            elif now >= current.deadline:
                self._answered_own(errno.ETIMEDOUT)
        if current.own_asked is None and current.answer.server is None and self._wants_second(now):
            self._ask_ourselves(now)
        over = current.spoofed is None and current.own is None
        if current.answer.server and current.answer.path:
            over = True
        if over:
            current.close()
            return current.answer
        return None

    def give_up(self):
        """End the round, and forget what was known."""
        if self.round is not None:
            self.round.close()
            self.round = None
        health = self.service.health
        self.target = Target(health.rise, health.fall, window=health.fall * health.interval)
        self.hurried = self.blamed = False

    def _wants_second(self, now):
        current = self.round
        patience = TICK if self.hurried else SECOND_QUESTION * self.service.health.timeout
        return current.spoofed is None or now >= current.begun + patience

    def is_silent(self, now):
        """Whether the round under way has met longer silence than is usual, on both questions."""
        current = self.round
        if current.own_asked is None or current.answer.server is not None or current.answer.path:
            return False
        return now >= max(current.begun + SILENCE, current.own_asked + TICK) + 2 * self.usual

    def _answered_spoofed(self, number):
        current = self.round
        current.spoofed.close()
        current.spoofed = None
        current.answer.path = number == 0 or number in _REFUSALS
        current.answer.path_errno = 0 if current.answer.path else number
        if current.answer.path:
            current.answer.server = number == 0
            current.answer.server_errno = number

    def _answered_own(self, number):
        current = self.round
        if current.own is not None:
            current.own.close()
            current.own = None
        if current.answer.path:
            return  # what a client's address was told counts more
        current.answer.server = number == 0
        current.answer.server_errno = number
