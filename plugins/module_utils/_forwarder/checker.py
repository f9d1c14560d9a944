# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker: one process asks both health questions (health.py) of all backends and publishes what it concludes.

In a round the spoofed question goes first: an answer to it answers both. Only when it stays away the question from our
own address is asked as well, so a fleet that is well costs one handshake a backend and interval. A target whose last
answer contradicts its state is asked again after half an interval, and so is one of which a worker reports a failure.

It wakes once a TICK, begins what is due and looks at what is under way; 300 backends at 2 s cost about 1 % of a core.
"""

from __future__ import annotations

import errno
import gc
import heapq
import random
import select
import signal
import time

from . import shared
from .beats import BEAT
from .health import Answer, Experience, Target
from .log import RETRY, places
from .question import TcpQuestion, UdpQuestion
from .shared import BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP

TICK = 0.05  # seconds
JITTER = 0.1  # part of an interval by which rounds are spread: checks of many proxies must not march in step
SECOND_QUESTION = 0.5  # part of the timeout after which the own address asks as well
EARLY = 0.5  # part of the interval after which a wavering target is asked again

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
        self.own_asked = False

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
        self.round = None
        self.due = 0.0
        self.failed_before = 0.0  # the last failure of a real connection that was looked at

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
        self.round = Round(now, now + self.service.health.timeout)
        if self.source is not None:
            try:
                self.round.spoofed = self.ask(self.source)
            except OSError as error:  # EPERM and the like: this host cannot ask it, and that is about no backend
                self.round.answer.path_errno = error.errno
        if self.round.spoofed is None:
            self._ask_ourselves()

    def _ask_ourselves(self):
        self.round.own_asked = True
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
        if not current.own_asked and current.answer.server is None and self._wants_second(now):
            self._ask_ourselves()
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

    def _wants_second(self, now):
        current = self.round
        return current.spoofed is None or now >= current.begun + SECOND_QUESTION * self.service.health.timeout

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


class Checker:
    """Asks for ``config`` and publishes to ``region``; ``line`` is the channel to the supervisor."""

    def __init__(self, config, log, line, region):
        self.now = time.monotonic
        self._log = log
        self._line = line
        self._region = region
        self._beat = region.beat_cell(region.slots)
        self._watches = [watch for watch in _watches(config, region) if watch.service.asked]
        self._queue = []
        self._under_way = []
        self._supervised = True
        self._failures = 0
        self._broken_families = set()

    def run(self):
        """Ask until the supervisor is gone; returns the exit code. SIGTERM just ends it: there is nothing to finish."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        self._resume()
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        while self._supervised:
            self._turn()
            if poll.poll(self._pause() * 1000):
                self._hear()
        self._log.flush()
        return 0

    def _hear(self):
        messages, gone = self._line.receive()
        for message in messages:
            if "log_level" in message:
                self._log.set_level(message["log_level"])
        self._supervised = not gone

    def _pause(self):
        """Return the seconds until there is something to do."""
        longest = RETRY if self._log.waiting else BEAT
        if self._under_way:
            return TICK
        return min(longest, max(TICK, self._queue[0][0] - self.now())) if self._queue else longest

    def _resume(self):
        """Take up what the region knows from the generation before, and spread the first rounds over an interval."""
        now = self.now()
        for watch in self._watches:
            state = self._region.state
            # A return path that nobody asks about any more is not broken for ever.
            path = state("path", watch.number) if watch.source else UNASKED
            watch.target.resume(state("server", watch.number), path)
            watch.failed_before = self._region.latest("failed", watch.number) / 1000
            unknown = state("health", watch.number) == UNKNOWN
            spread = min(watch.service.health.interval, 0.5) if unknown else watch.service.health.interval
            self._plan(watch, now + random.uniform(0, spread))

    def _plan(self, watch, when):
        watch.due = when
        heapq.heappush(self._queue, (when, watch.number, watch))

    def _turn(self):
        now = self.now()
        if self._beat is not None:
            self._region.cells[self._beat] = int(now * 1000)
        changed = False
        still = []
        for watch in self._under_way:
            answer = self._contained(watch, watch.look, now)
            if answer is not None:
                changed = self._conclude(watch, answer, now) or changed
            elif watch.round is not None:
                still.append(watch)
        while self._queue and self._queue[0][0] <= now:
            when, _number, watch = heapq.heappop(self._queue)
            if when == watch.due and watch.round is None:  # else it was brought forward, and this is the old entry
                self._contained(watch, watch.begin, now)
                if watch.round is not None:
                    still.append(watch)
        self._under_way = still
        self._bring_forward(now)
        if changed:
            self._region.advance(shared.EPOCH_HEALTH)
            self._look_for_a_common_cause()
        if self._log.waiting:
            self._log.flush()

    def _contained(self, watch, step, now):
        """Return what ``step(now)`` of a target returns; a defect ends its round, and no other target's.

        Nothing is known of the target then, and that is what is published.
        """
        try:
            return step(now)
        except Exception as error:  # noqa: BLE001
            fields = {"service": watch.service.name, "backend": watch.backend.name, "family": watch.family}
            self._log.event("defect", level="error", error=repr(error), trace=places(error), **fields)
        watch.give_up()
        for field in ("server", "path"):
            self._region.set_state(field, watch.number, UNASKED)
        self._publish(watch, now)
        self._region.advance(shared.EPOCH_HEALTH)
        self._plan(watch, now + watch.service.health.interval)
        return None

    def _bring_forward(self, now):
        """Ask at once where a worker had a failure since the last look."""
        failures = self._region.total("worker", "failures")
        if failures == self._failures:
            return
        self._failures = failures
        for watch in self._watches:
            failed = self._region.latest("failed", watch.number) / 1000
            if failed > watch.failed_before:
                watch.failed_before = failed
                soon = watch.service.health.interval * EARLY * (1 - JITTER)
                if watch.round is None and watch.due - now > soon:
                    self._plan(watch, now)

    def _conclude(self, watch, answer, now):
        """Take a round's answer; returns whether the target's published state has changed."""
        region, number, target = self._region, watch.number, watch.target
        begun, watch.round = watch.round.begun, None
        real = Experience(region.latest("succeeded", number) / 1000, region.latest("failed", number) / 1000)
        target.judge(answer, real, begun, now)
        for field, value in (
            ("server", target.server.verdict),
            ("path", target.path.verdict),
            ("server_errno", answer.server_errno),
            ("path_errno", answer.path_errno),
            ("checks", region.state("checks", number) + 1),
        ):
            region.set_state(field, number, value)
        for field, good in (("server_failures", answer.server), ("path_failures", answer.path)):
            if good is False:
                region.set_state(field, number, region.state(field, number) + 1)
        interval = watch.service.health.interval * (EARLY if target.wavering else 1.0)
        self._plan(watch, max(now, begun + interval * random.uniform(1 - JITTER, 1 + JITTER)))
        return self._publish(watch, now)

    def _publish(self, watch, now):
        after, number = watch.target.state, watch.number
        published = self._region.state("health", number)
        if after == published:
            return False
        milliseconds = int(now * 1000)
        self._region.set_state("health", number, after)
        self._region.set_state("since", number, milliseconds)
        if after == UP and published in (BROKEN, DOWN):
            self._region.set_state("recovered", number, milliseconds)
        self._log.event(
            "backend state",
            level="info" if after == UP else "warning",
            service=watch.service.name,
            backend=watch.backend.name,
            family=watch.family,
            state=shared.STATES[after],
            before=shared.STATES[published],
            server=self._region.told("server", number),
            return_path=self._region.told("path", number),
        )
        return True

    def _look_for_a_common_cause(self):
        """Say it when no return path of a family is whole: then it is not the backends."""
        for family in ("ipv4", "ipv6"):
            asked = [watch for watch in self._watches if watch.family == family and watch.source]
            broken = [watch for watch in asked if watch.target.path.verdict == UNANSWERED]
            addresses = {watch.address for watch in asked}
            all_broken = len(addresses) > 1 and len(broken) == len(asked)
            if all_broken == (family in self._broken_families):
                continue
            self._broken_families ^= {family}
            self._region.set_common_cause(family, all_broken)
            if all_broken:
                self._log.event(
                    "local delivery", level="error", family=family, backends=len(addresses), reason=LOCAL_DELIVERY
                )


LOCAL_DELIVERY = (
    "the return path of every backend fails at once, so the fault is local delivery on this proxy, not the backends:"
    " look at its rules and routes (l4proxy keep --dry-run)"
)


def _watches(config, region):
    """Yield a Watch for each target of the region, in its order."""
    found = {(service.name, one.name): (service, one) for service in config.services for one in service.backends}
    for number, (name, backend_name, family) in enumerate(region.targets):
        yield Watch(number, *found[name, backend_name], family)
