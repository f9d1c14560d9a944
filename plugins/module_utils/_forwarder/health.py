# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a backend's health: from the connections themselves, and from the checker's questions.

Pure; time is passed in (monotonic seconds).

Two questions are asked. *Is the server up?* from the proxy's own address; *is the return path whole?* from an address
the proxy does not own, as for a client. An answer to the second one, even a refusal, says that the path is whole. Real
connections outrank the second question: the network may drop its source (a bogon filter) and no client's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .shared import ANSWERED, BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP

SKIP = 5.0  # seconds; one trial of connect_timeout in each SKIP is what a dead backend costs


class PassiveHealth:
    """Failure memory of ``count`` backends, named by index: what one worker's connections tell.

    Without a checker, a backend that is down would cost every n-th client the whole attempt timeout. So a backend whose
    connect failed is skipped for SKIP seconds; then one connection tries it again, and while that trial is under way
    all others still skip it.
    """

    def __init__(self, count):
        self._skip_until = [None] * count
        self.all_well = True  # what the good path looks at: nobody is being skipped

    def usable(self, index, now):
        """Whether a connection may be given to this backend: it is well, or a trial is due."""
        until = self._skip_until[index]
        return until is None or now >= until

    def chosen(self, index, now):
        """A connection was given to this backend; if it is a trial, the others wait for its outcome."""
        if self._skip_until[index] is not None:
            self._skip_until[index] = now + SKIP

    def failed(self, index, now):
        """A connect to this backend failed; returns True when it was well until now."""
        was_well = self._skip_until[index] is None
        self._skip_until[index] = now + SKIP
        self.all_well = False
        return was_well

    def succeeded(self, index):
        """A connect to this backend succeeded; returns True when it was being skipped until now."""
        if self._skip_until[index] is None:
            return False
        self._skip_until[index] = None
        self.all_well = all(until is None for until in self._skip_until)
        return True


class Question:
    """The answers to one question: good after ``rise`` good ones in a row, bad after ``fall`` bad ones.

    ``verdict`` is UNASKED until the first good answer or ``fall`` bad ones: what was never asked is not yet bad.
    """

    __slots__ = ("_fall", "_rise", "_streak", "failures", "verdict")

    def __init__(self, rise, fall):
        self._rise = rise
        self._fall = fall
        self._streak = 0  # answers in a row that contradict the verdict
        self.failures = 0
        self.verdict = UNASKED

    @property
    def wavering(self):
        """Whether the last answer contradicts the verdict: then the next one is wanted soon."""
        return self._streak > 0

    def note(self, good):
        """Take one answer."""
        if not good:
            self.failures += 1
        if (self.verdict == ANSWERED) == good and self.verdict != UNASKED:
            self._streak = 0
            return
        self._streak += 1
        if self.verdict == UNASKED:
            enough = good or self._streak >= self._fall
        else:
            enough = self._streak >= (self._rise if good else self._fall)
        if enough:
            self.verdict = ANSWERED if good else UNANSWERED
            self._streak = 0


@dataclass
class Answer:
    """What one round of a target's questions brought: True, False, or None for not asked or not told."""

    server: bool | None = None
    path: bool | None = None
    server_errno: int = 0
    path_errno: int = 0


@dataclass
class Experience:
    """When real connections to a target last succeeded and failed; monotonic seconds, 0 for never."""

    succeeded: float = 0.0
    failed: float = 0.0


@dataclass
class Target:
    """The checker's opinion of one target."""

    rise: int
    fall: int
    window: float  # seconds for which a real success outranks the spoofed question
    server: Question = field(init=False)
    path: Question = field(init=False)

    def __post_init__(self):
        self.server = Question(self.rise, self.fall)
        self.path = Question(self.rise, self.fall)

    @property
    def wavering(self):
        """Whether the next round should not wait for its regular time."""
        return self.server.wavering or self.path.wavering

    def judge(self, answer, experience, begun, now):
        """Take a round that began at ``begun``; ``experience`` is what real connections say by now."""
        server, path = answer.server, answer.path
        if experience.succeeded > experience.failed:
            if experience.succeeded >= begun:  # while we asked, a client was served
                server = path = True
            elif path is False and server and now - experience.succeeded <= self.window:
                path = True
        if path is False and server is False:
            path = None  # a server that is down says nothing about the way back
        if server is not None:
            self.server.note(server)
        if path is not None:
            self.path.note(path)

    @property
    def state(self):
        """UNKNOWN, UP, BROKEN (return path broken) or DOWN."""
        if self.server.verdict == UNANSWERED:
            return DOWN
        if self.path.verdict == UNANSWERED:
            return BROKEN
        if self.server.verdict == self.path.verdict == UNASKED:
            return UNKNOWN
        return UP

    def resume(self, server, path):
        """Go on with the verdicts another checker came to."""
        self.server.verdict, self.path.verdict = server, path
