# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend takes a connection, and which one is next when it fails.

Backends holds one service's backends of one family as one worker sees them, decides who is a candidate, and leaves the
choice to a strategy (algorithms.py). Backends are named by their index in the list of their family. Time is passed in
(monotonic seconds). What other processes know comes through shared memory (shared_memory.py): as long as nobody changed
anything, a choice costs two reads of it.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from operator import add

from ..admission.refusal import Refusal
from ..counters import heartbeat, shared_memory
from ..counters.shared_memory import EPOCH_ADMIN, EPOCH_HEALTH, LATENCY_BOUNDS
from .algorithms import STRATEGIES
from .health_state import PROOF, PassiveHealth

REFRESH = 0.1  # seconds between two looks at the connections other workers have
RAMP_STEP = 1.0  # seconds between two steps of a slow start
RAMP_FLOOR = 0.1  # the part of its weight a backend has at the beginning of a slow start

SKIPPED = "backend skipped"  # events in the log
SKIPPED_ALONE = "backend skipped for a client"

NOBODY = Refusal("no_backend", "no backend is up")
ALL_FULL = Refusal("no_backend", "every backend is at its limit")

_CAUSES = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "reset",
    errno.ECONNABORTED: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
}


class Load:
    """How many connections each backend has, over all workers; those of others are up to REFRESH seconds old."""

    def __init__(self, region, slot, first, count):
        self._cells = region.cells
        starts = [region.cell(number, "target", "active", first) for number in range(region.slots + 1)]
        self.own = starts.pop(slot)
        self._others = starts
        self._count = count
        self._foreign = [0] * count
        self._next_look = 0.0

    def look(self, now):
        """Renew what is known of other workers, when it is time."""
        if now < self._next_look:
            return
        self._next_look = now + REFRESH
        total = [0] * self._count
        for start in self._others:
            total = list(map(add, total, self._cells[start : start + self._count].tolist()))
        self._foreign = total

    def all(self):
        """Return the connections of every backend, by index."""
        return list(map(add, self._foreign, self._cells[self.own : self.own + self._count].tolist()))

    def exact(self, index):
        """Return the connections of one backend, as they are now."""
        return self._cells[self.own + index] + sum(self._cells[start + index] for start in self._others)


class Backends:
    """The backends of a config.Service and one family in one worker slot: who is next for a connection."""

    def __init__(self, service, family, region, slot):
        self.service = service
        self.family = family
        self.backends = service.backends_of(family)
        count = len(self.backends)
        self.health = PassiveHealth(count)
        self._region = region
        self._cells = region.cells
        self._first = region.first_target(service.name, family)
        self._load = Load(region, slot, self._first, count)
        self._active = self._load.own
        self._fields = fields = {
            name: region.cell(slot, "target", name, self._first) for name in region.record["fields"]["target"]
        }
        self._connections, self._succeeded = fields["connections"], fields["succeeded"]
        self._to_backend, self._to_client = fields["bytes_to_backend"], fields["bytes_to_client"]
        self._latency, self._latency_sum = fields[shared_memory.LATENCY_FIELDS[0]], fields["connect_microseconds"]
        self._buckets_apart = len(region.targets)
        self._failures = region.cell(slot, "worker", "failures")
        self._successes = [region.cell(row, "target", "succeeded", self._first) for row in range(region.slots)]
        self._checked = service.checked and region.has_suspects
        self._slow = fields.get("slow") if self._checked else None
        self._weights = [backend.weight for backend in self.backends]
        self._strategy = STRATEGIES[service.balance]([b.name for b in self.backends], self._weights, self._load)
        self._limited = any(backend.max_connections for backend in self.backends)
        self._epoch = -1
        self._next_review = 0.0
        # candidates: those of a later tier serve only when none of an earlier one can
        self._tiers: tuple[tuple[int, ...], ...] = ()
        # of those: who failed for a client, and the checker too; only when nobody else can
        self._suspect: frozenset[int] = frozenset()
        self._ready: tuple[int, ...] = ()  # the candidates of a connection for which no backend is out of the question

    def next(self, client, tried, now):
        """Return the index of the backend for the next attempt and count its connection; None when there is none.

        ``tried`` holds the indexes this connection has had; none is given twice. Backends that failed a moment ago, for
        this client or for the checker, are skipped while any other is left, and tried all the same when none is. The
        caller gives back what it was given by release().
        """
        cells = self._cells
        if cells[EPOCH_HEALTH] + cells[EPOCH_ADMIN] != self._epoch or now >= self._next_review:
            self._review(now)
        candidates, health = self._ready, self.health
        wary = not health.quiet and (health.skipping or client in health.alone)
        if wary or tried or self._limited:
            candidates = self._narrow(client, tried, now)
        if not candidates:
            return None
        if len(candidates) == 1:
            index = candidates[0]
        else:
            self._load.look(now)
            index = self._strategy.choose(candidates, client)
        if wary:
            health.chosen(client, index, now)
        cells[self._active + index] += 1
        return index

    def at(self, address):
        """Return the indexes of the backends that have this address."""
        family = self.family
        return tuple(index for index, one in enumerate(self.backends) if one.address(family) == address)

    def take(self, index):
        """Count a connection to a backend that next() gave before."""
        self._cells[self._active + index] += 1

    def release(self, index):
        """An attempt or a connection that next() gave has ended."""
        self._cells[self._active + index] -= 1

    def connected(self, client, index, seconds, now):
        """A client's connect succeeded after ``seconds``; returns True when the backend was skipped until now."""
        cells = self._cells
        cells[self._connections + index] += 1
        cells[self._succeeded + index] = int(now * 1000)
        microseconds = int(seconds * 1e6)
        cells[self._latency + bisect_left(LATENCY_BOUNDS, microseconds) * self._buckets_apart + index] += 1
        cells[self._latency_sum + index] += microseconds
        return not self.health.quiet and self.health.succeeded(client, index)

    def failed(self, client, index, number, now, to_blame, is_served=None):
        """A client's connect failed with errno ``number``; returns the event when the backend is skipped from now on.

        ``to_blame`` says whether the backend or the way to it is: what this host lacks is nobody else's fault.
        ``is_served`` tells whether another client is served, where that is not seen by connects alone.
        """
        cells, fields = self._cells, self._fields
        cells[fields["failed_" + _CAUSES.get(number, "unreachable" if to_blame else "local")] + index] += 1
        if not to_blame:
            return None
        cells[fields["failed"] + index] = int(now * 1000)
        cells[self._failures] += 1  # the checker looks at the times when this has grown
        newly = self.health.failed(client, index, now)
        if not self._is_asked(now) and not self._serves_others(index, now, is_served):
            return SKIPPED if self.health.skip(index, now) else None
        return SKIPPED_ALONE if newly else None

    def _is_asked(self, now):
        """Whether a checker finds out whose fault a failure is; one that hangs or is gone does not."""
        beat = self._region.beat(self._region.slots)
        return self._checked and (beat is None or now - beat < heartbeat.SUSPECT)

    def _serves_others(self, index, now, is_served):
        """Whether a backend has served anybody a moment ago, in any worker."""
        if self.health.skips(index):
            return False
        cells, latest = self._cells, max(1, int((now - PROOF) * 1000))
        if any(cells[start + index] >= latest for start in self._successes):
            return True
        if is_served is None or not is_served():
            return False
        cells[self._succeeded + index] = int(now * 1000)
        return True

    def slow(self, index, now):
        """A connect takes long: have the checker ask the backend, so that more is known once the attempt has failed."""
        if self._slow is not None:
            self._cells[self._slow + index] = int(now * 1000)
            self._cells[self._failures] += 1

    def carried(self, index, to_backend, to_client):
        """Count the bytes of a connection that is over."""
        cells = self._cells
        cells[self._to_backend + index] += to_backend
        cells[self._to_client + index] += to_client

    def nobody(self):
        """Return the Refusal of a connection that had tried nobody and was given nobody by next()."""
        return ALL_FULL if self._limited and any(self._tiers) else NOBODY

    # -- who is a candidate ----------------------------------------------------------------------------------------

    def _narrow(self, client, tried, now):
        """Return the candidates when some backends are out of the question for this connection."""
        rest = []
        for tier in self._tiers:
            left = [index for index in tier if index not in tried and not self._full(index)]
            usable = [index for index in left if self._usable(client, index, now)]
            if usable:
                return usable
            rest += left
        return rest

    def _usable(self, client, index, now):
        return index not in self._suspect and self.health.usable(client, index, now)

    def _full(self, index):
        limit = self.backends[index].max_connections
        return limit is not None and self._load.exact(index) >= limit

    def _review(self, now):
        """Look at the states anew: the checker, an operator, or the time of a slow start has changed something."""
        self._epoch = self._cells[EPOCH_HEALTH] + self._cells[EPOCH_ADMIN]
        self._next_review = float("inf")
        state = self._region.state
        indexes = range(len(self.backends))
        taking = [index for index in indexes if state("admin", self._first + index) == shared_memory.READY]
        health = [state("health", self._first + index) for index in indexes]
        up = [index for index in taking if health[index] in (shared_memory.UNKNOWN, shared_memory.UP)]
        if not up and self.service.on_all_down == "refuse":
            # Nobody is known to be well. A broken return path is what a probe says, and the network may drop probes and
            # no client's packets: only the connection of each client can tell.
            up = [index for index in taking if health[index] == shared_memory.BROKEN]
        elif not up:
            up = taking
        self._suspect = frozenset(index for index in up if self._checked and state("suspect", self._first + index))
        for index in {*indexes} - {*up} | self._suspect:
            self.health.acquit(index)
        backup = {index for index in up if self.backends[index].backup}
        self._tiers = (tuple(index for index in up if index not in backup), tuple(sorted(backup)))
        sound = [tuple(index for index in tier if index not in self._suspect) for tier in self._tiers]
        self._ready = sound[0] or sound[1] or sum(self._tiers, ())
        self._weigh(now)

    def _weigh(self, now):
        """Renew the weights: an operator's word before the config's, and less for one that has just recovered."""
        for index, backend in enumerate(self.backends):
            target = self._first + index
            weight = self._region.state("weight", target) or backend.weight
            recovered = self._region.state("recovered", target) / 1000
            since = now - recovered
            if recovered and since < self.service.slow_start and self._strategy.ramps:
                weight *= max(RAMP_FLOOR, since / self.service.slow_start)
                self._next_review = now + RAMP_STEP
            self._weights[index] = weight
        self._strategy.weights_changed()
