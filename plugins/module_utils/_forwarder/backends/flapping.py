# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends that flap: growing pauses after they were down, and how many backends caution may keep out at once.

A target *flaps* if it goes down within LONGEST seconds (health.flap_pause_max) after it came back. When its checks
succeed again, it stays out for a pause: health.flap_pause seconds after the first flap, twice as long after each
further one, at most LONGEST. Each LONGEST seconds without a flap after it came back forget one flap, and an operator
who takes the backend out forgets all. An outage while an operator has it out is no flap.

Time is passed in (monotonic seconds). The checker decides and publishes (Pauses); workers, in which a pause ends by the
clock even if the checker hangs, use a paused backend only if no other is left (balancer.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..counters.shared_memory import DOWN, EPOCH_ADMIN, READY, UNKNOWN

PAUSED = "paused"  # what is shown of a target that is up, but paused


@dataclass
class Flaps:
    """The flaps of one target. ``back_at`` is when it came back, or will at the end of its pause; 0: it is down, or it
    never was down before."""

    pause: float
    longest: float
    count: int = 0
    back_at: float = 0.0

    def remembered(self, now):
        """Return how many flaps still count."""
        forgotten = int((now - self.back_at) // self.longest) if self.back_at and self.back_at < now else 0
        return max(0, self.count - forgotten)

    def went_down(self, now):
        """Note that the target has gone down: that is a flap if it came back a short time ago, or is paused."""
        soon = self.back_at and now < self.back_at + self.longest
        self.count = self.remembered(now)
        if soon and self._length() < self.longest:  # else the pause cannot grow, and nothing has to be forgotten
            self.count += 1
        self.back_at = 0.0

    def came_back(self, now):
        """Note that the checks of the target succeed again; return the seconds of the pause, 0 without one."""
        length = self._length()
        self.back_at = now + length
        return length

    def _length(self):
        return min(self.pause * 2 ** (self.count - 1), self.longest) if self.count else 0.0


def in_region(region):
    """Return whether a region has the states "flaps" and "back_at", which early versions lack."""
    return "back_at" in region.record["fields"]["state"]


def of_target(region, number, health):
    """Return the Flaps that a region has of a target; None if the ``health`` of its service has no pauses."""
    if not (health.flap_pause and in_region(region)):
        return None
    count, back_at = region.state("flaps", number), region.state("back_at", number) / 1000
    return Flaps(health.flap_pause, health.longest_pause, count, back_at)


def kept_out(doubts, most, ready, unusable):
    """Return the indexes of the backends that get connections only if no other backend is left.

    ``doubts`` is {index: (whether it is a suspect, its flaps)} of those that are suspects or paused. With ``most``
    (health.max_out) at most that percentage of the ``ready`` backends may be out. The ``unusable`` ones, which health
    checks have found down, are out in any case and count first. Of the others the worst ones stay out.
    """
    if most is None:
        return frozenset(doubts)
    places = max(0, ready * most // 100 - unusable)
    return frozenset(sorted(doubts, key=lambda index: (doubts[index], index), reverse=True)[:places])


class Pauses:
    """What the checker does for the pauses of ``targets``, health_round.CheckedTarget."""

    def __init__(self, region, log, targets):
        self._region = region
        self._log = log
        self._targets = {}  # number: target
        self._flaps = {}  # number: its Flaps, only of services that have pauses
        self._paused = set()  # numbers
        self._epoch = None
        for target in targets:
            flaps = of_target(region, target.number, target.service.health)
            if flaps is not None:
                self._targets[target.number], self._flaps[target.number] = target, flaps

    def resume(self, now):
        """Go on with what the checker before has published; a pause is no longer than this config allows."""
        for number in self._flaps:
            flaps = of_target(self._region, number, self._targets[number].service.health)
            flaps.back_at = min(flaps.back_at, now + flaps.longest)
            self._flaps[number] = flaps
            self._publish(number)
            if flaps.back_at > now:
                self._paused.add(number)

    def changed(self, number, before, state, now):
        """Follow a target whose state has changed; called before readers are told."""
        flaps = self._flaps.get(number)
        if flaps is None or UNKNOWN in (before, state) or DOWN not in (before, state):
            return
        if state == DOWN:
            if self._is_taken_out(number):
                self._forget(number)
            else:
                flaps.went_down(now)
            self._paused.discard(number)
        else:
            seconds = flaps.came_back(now)
            if seconds:
                self._paused.add(number)
                reason = f"it went down {_times(flaps.count)} shortly after it had come back"
                self._event(
                    "backend paused", number, level="warning", seconds=seconds, flaps=flaps.count, reason=reason
                )
        self._publish(number)

    def check(self, now):
        """Log the pauses that have ended. End those of backends that an operator has taken out; return whether there
        are any, which readers have to be told."""
        if not self._flaps:
            return False
        ended = self._follow_operator()
        for number in [number for number in self._paused if self._flaps[number].back_at <= now]:
            self._paused.discard(number)
            self._event("backend pause ended", number)
        return ended

    def _follow_operator(self):
        epoch, before = self._region.cells[EPOCH_ADMIN], self._epoch
        self._epoch = epoch
        if epoch == before:
            return False
        taken_out = [number for number in self._flaps if self._is_taken_out(number)]
        for number in taken_out:
            self._forget(number)
        return not self._paused.isdisjoint(taken_out)

    def _is_taken_out(self, number):
        return self._targets[number].backend.disabled or self._region.state("admin", number) != READY

    def _forget(self, number):
        flaps = self._flaps[number]
        flaps.count, flaps.back_at = 0, 0.0
        self._publish(number)

    def _publish(self, number):
        flaps = self._flaps[number]
        self._region.set_state("flaps", number, flaps.count)
        self._region.set_state("back_at", number, int(flaps.back_at * 1000))

    def _event(self, name, number, **fields):
        target = self._targets[number]
        names = {"service": target.service.name, "backend": target.backend.name, "family": target.family}
        self._log.event(name, **{"level": "info", **names, **fields})


def _times(count):
    return "once" if count == 1 else f"{count} times"
