# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker: one process asks both health questions (health.py) of all backends and publishes what it concludes.

In a round the spoofed question goes first: an answer to it answers both. Only when it stays away the question from our
own address is asked as well, so a fleet that is well costs one handshake a backend and interval. A target whose last
answer contradicts its state is asked again after half an interval.

A target to which a client's connect has failed is asked at once, at most every SPACING seconds however many fail: is it
the backend, or this client? It becomes a *suspect*, which workers pass over, when this round is bad; or sooner, when
both questions are silent for longer than usual. The next good answer makes an end of that.

It wakes once a TICK, begins what is due and looks at what is under way; 300 backends at 2 s cost about 1 % of a core.
"""

from __future__ import annotations

import gc
import heapq
import random
import select
import signal
import time

from ..counters import shared_memory
from ..counters.heartbeat import BEAT
from ..counters.shared_memory import BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP
from ..loop import sockets
from ..loop.log import RETRY, places
from .health_round import TICK, Watch
from .health_state import Experience

JITTER = 0.1  # part of an interval by which rounds are spread: checks of many proxies must not march in step
EARLY = 0.5  # part of the interval after which a wavering target is asked again
SPACING = 0.2  # seconds between the beginnings of two rounds that failures of clients cause


class Checker:
    """Asks for ``config`` and publishes to ``region``; ``line`` is the channel to the supervisor."""

    def __init__(self, config, log, line, region):
        self.now = time.monotonic
        self._log = log
        self._line = line
        self._region = region
        self._beat = region.beat_cell(region.slots)
        self._watches = [watch for watch in _watches(config, region) if watch.service.checked]
        self._queue = []
        self._under_way = []
        self._supervised = True
        self._by_number = {watch.number: watch for watch in self._watches}
        self._failures = 0
        self._failed, self._slow = self._clients_say()  # what was looked at
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
        return TICK if self._watches else longest

    def _resume(self):
        """Take up what the region knows from the generation before, and spread the first rounds over an interval."""
        now = self.now()
        for watch in self._watches:
            state = self._region.state
            # A return path that nobody asks about any more is not broken for ever.
            path = state("path", watch.number) if watch.source else UNASKED
            watch.target.resume(state("server", watch.number), path)
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
        self._hear_of_failures(now)
        for watch in self._under_way:
            answer = self._contained(watch, watch.look, now)
            if answer is not None:
                changed = self._conclude(watch, answer, now) or changed
            elif watch.round is not None:
                still.append(watch)
                changed = self._is_silent(watch, now) or changed
        while self._queue and self._queue[0][0] <= now:
            when, _number, watch = heapq.heappop(self._queue)
            if when == watch.due and watch.round is None:  # else it was brought forward, and this is the old entry
                self._contained(watch, watch.begin, now)
                if watch.round is not None:
                    still.append(watch)
        self._under_way = still
        if changed:
            self._region.advance(shared_memory.EPOCH_HEALTH)
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
        if self._region.has_suspects:
            self._region.set_state("suspect", watch.number, 0)
        self._publish(watch, now)
        self._region.advance(shared_memory.EPOCH_HEALTH)
        self._plan(watch, now + watch.service.health.interval)
        return None

    def _clients_say(self):
        """Return when connects to each target last failed, and when they last took long; both by number."""
        return tuple(self._region.latest_of_all(field) for field in ("failed", "slow"))

    def _served(self, number):
        """Return when a client's connect to a target last succeeded."""
        return self._region.latest("succeeded", number) / 1000

    def _hear_of_failures(self, now):
        """Ask at once where a client's connect has failed since the last look, or takes long."""
        failures = self._region.total("worker", "failures")
        if failures == self._failures:
            return
        self._failures = failures
        failed, slow = self._clients_say()
        for number, watch in self._by_number.items():
            has_failed = failed[number] > self._failed[number]
            if (not has_failed and slow[number] <= self._slow[number]) or self._is_suspect(number):
                continue
            watch.hurried = True
            watch.blamed = watch.blamed or has_failed
            when = max(now, watch.last_begun + SPACING)
            if watch.round is None and watch.due > when:
                self._plan(watch, when)
        self._failed, self._slow = failed, slow

    def _is_suspect(self, number):
        return self._region.has_suspects and bool(self._region.state("suspect", number))

    def _is_silent(self, watch, now):
        """A round goes on: whether it has made a suspect, by silence while a client's connect has failed as well."""
        if not watch.blamed or not watch.is_silent(now) or self._served(watch.number) >= watch.round.begun:
            return False
        return self._suspect(watch, True, "no answer")

    def _suspect(self, watch, on, reason=None):
        """Have workers pass over a target, or not any more; returns whether that is news."""
        if not self._region.has_suspects or self._is_suspect(watch.number) == on:
            return False
        self._region.set_state("suspect", watch.number, int(on))
        fields = {"service": watch.service.name, "backend": watch.backend.name, "family": watch.family}
        if on:
            self._log.event("backend skipped", level="warning", **fields, reason=f"a client's connect failed; {reason}")
        else:
            self._log.event("backend answers again", **fields)
        return True

    def _conclude(self, watch, answer, now):
        """Take a round's answer; returns whether the target's published state has changed."""
        region, number, target = self._region, watch.number, watch.target
        begun, watch.round = watch.round.begun, None
        real = Experience(self._served(number), region.latest("failed", number) / 1000)
        well = target.judge(answer, real, begun, now)
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
        changed = self._settle(watch, answer, well, now - begun)
        return self._publish(watch, now) or changed

    def _settle(self, watch, answer, well, took):
        """Say whose fault it is that connects of clients failed; returns whether workers have to look at that."""
        changed = False
        if well:
            watch.usual = took
            changed = self._suspect(watch, False)
        elif well is False and watch.blamed:
            number = answer.path_errno if answer.server else answer.server_errno
            changed = self._suspect(watch, True, sockets.describe_errno(number))
        if well is not None:
            watch.hurried = watch.blamed = False
        return changed

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
            state=shared_memory.STATES[after],
            before=shared_memory.STATES[published],
            server=self._region.told("server", number),
            return_path=self._region.told("path", number),
            **({"reason": NO_WAY_BACK.format(watch.source)} if after == BROKEN else {}),
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


NO_WAY_BACK = (
    "the backend answers this host, but not {}: its replies to clients take another way, or a filter drops this address"
    " (then give health.source one that clients could have)"
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
