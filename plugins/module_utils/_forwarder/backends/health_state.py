# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a backend's health: from the connections themselves, and from the checker's questions.

Pure; time is passed in (monotonic seconds).

Two questions are asked. *Is the server up?* from the proxy's own address; *is the return path whole?* from an address
the proxy does not own, as for a client. An answer to the second one, even a refusal, says that the path is whole. Real
connections outrank the second question: the network may drop its source (a bogon filter) and no client's.

A client's connect that fails says little about the backend: it may reject this one client (fail2ban, a limit of
connections, a packet filter). How many clients fail says no more, because one attacker has many addresses. So a failure
is remembered for its client alone, and the checker is asked at once; only what it says counts for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..counters.shared_memory import ANSWERED, BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP

SKIP = 5.0  # seconds; one trial of connect_timeout in each SKIP is what a dead backend costs
FIRST = 0.25  # seconds for which the first failure has everybody skip a backend, until another client has tried it
LONGEST = 60.0  # seconds; a client that fails again and again is given such a backend this rarely
PROOF = 1.0  # seconds for which a success shows that a failure is about the client, where there is no checker to ask
MOST_CLIENTS = 1024  # clients that are remembered; of more, those that failed last


class PassiveHealth:
    """Failure memory of ``count`` backends, named by index: what one worker's connections tell.

    ``alone`` is {client: {index: [skipped until, for how long]}}: the backends that failed for one client. It is given
    any other that would take it, and these once in a while: first after SKIP seconds, then after twice as many, up to
    LONGEST. ``skipping`` says whether a backend is skipped for everybody, for FIRST seconds and then for SKIP: where no
    checker can be asked, what fails while nobody succeeds must not cost every n-th client the whole attempt timeout.
    When the time is over one connection tries it again, and while that trial is under way all others still skip it.
    """

    def __init__(self, count):
        self._skip_until = [None] * count
        self.skipping = False
        self.alone = {}
        self.quiet = True  # what the good path looks at: nobody is skipped, for nobody

    def usable(self, client, index, now):
        """Whether a client's connection may be given to this backend: it is well, or a trial is due."""
        until = self._skip_until[index]
        if until is not None and now < until:
            return False
        entry = self.alone.get(client, {}).get(index)
        return entry is None or now >= entry[0]

    def chosen(self, client, index, now):
        """A connection was given to this backend; if it is a trial, the others wait for its outcome."""
        if self._skip_until[index] is not None:
            self._skip_until[index] = now + SKIP
        entry = self.alone.get(client, {}).get(index)
        if entry is not None:
            entry[0] = now + entry[1]

    def failed(self, client, index, now):
        """A client's connect to this backend failed; returns True when it was well for this client until now."""
        known = self.alone.get(client)
        if known is None:
            if len(self.alone) >= MOST_CLIENTS:
                del self.alone[next(iter(self.alone))]
            known = self.alone[client] = {}
        entry = known.get(index)
        length = SKIP if entry is None else min(2 * entry[1], LONGEST)
        known[index] = [now + length, length]
        self.quiet = False
        return entry is None

    def skips(self, index):
        """Whether a backend is skipped for everybody."""
        return self._skip_until[index] is not None

    def skip(self, index, now):
        """Skip a backend for everybody; returns True when it was not skipped until now."""
        was_well = self._skip_until[index] is None
        self._skip_until[index] = now + (FIRST if was_well else SKIP)
        self.skipping, self.quiet = True, False
        return was_well

    def succeeded(self, client, index):
        """A connect to this backend succeeded; returns True when it was being skipped for everybody until now."""
        if client in self.alone:
            self._forget(client, index)
        was_skipped = self._skip_until[index] is not None
        if was_skipped:
            self._skip_until[index] = None
            self.skipping = any(until is not None for until in self._skip_until)
        self.quiet = not (self.skipping or self.alone)
        return was_skipped

    def acquit(self, index):
        """It was the backend, and not its clients: forget for whom it failed."""
        for client in list(self.alone):
            self._forget(client, index)
        self.quiet = not (self.skipping or self.alone)

    def _forget(self, client, index):
        known = self.alone[client]
        known.pop(index, None)
        if not known:
            del self.alone[client]


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
    silent_since: float | None = None  # when the first of the rounds began in which the spoofed question is unanswered
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
        """Take a round that began at ``begun``; ``experience`` is what real connections say by now.

        Return whether it is good: True, False, or None when it says nothing.
        """
        server, path = answer.server, answer.path
        if path:
            self.silent_since = None
        elif path is False and self.silent_since is None:
            self.silent_since = begun
        if experience.succeeded and experience.succeeded >= begun:  # while we asked, a client was served
            server = path = True
        elif path is False and server and self._outranked(experience, now):
            path = True
        if path is False and server is False:
            path = None  # a server that is down says nothing about the way back
        if server is not None:
            self.server.note(server)
        if path is not None:
            self.path.note(path)
        return None if server is None and path is None else server is not False and path is not False

    def _outranked(self, experience, now):
        """Whether a real connection counts more than the silence that met the spoofed question.

        One that succeeded during this silence shows that it is not what clients meet, whoever failed since. One before
        it does so as long as nobody has failed.
        """
        served = experience.succeeded
        return (
            bool(served) and now - served <= self.window and (served >= self.silent_since or served > experience.failed)
        )

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
