# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend gets a connection, and which one is next when that fails.

Backends holds the backends of one service and family for one worker. It decides which are candidates (health, orders of
the operator, limits, priorities) and leaves the choice to a balancing algorithm (algorithms.py). A backend is named by
its index in the list of its family. Time is passed in (monotonic seconds). What other processes find out comes through
shared memory; while it does not change, a choice costs two reads of it.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from operator import add

from ..admission.refusal import Refusal
from ..config.defaults import HASH_TABLES
from ..counters import agent_state, heartbeat, shared_memory
from ..counters.shared_memory import DATAGRAM_FIELDS, EPOCH_ADMIN, EPOCH_HEALTH, LATENCY_BOUNDS
from ..counters.totals import SAMPLE_VALID
from . import flapping
from .agent_word import Standing, standing
from .algorithms import algorithm_of, bounded
from .passive_health import SUCCESS_PROOF, PassiveHealth

REFRESH = 0.1  # seconds between two reads of the connections that other workers have
UNUSUAL = 4  # times as long as usual: a connect whose answer is overdue
RAMP_STEP = 1.0  # seconds between two steps of a slow start
RAMP_FLOOR = 0.1  # of its weight: where a slow start begins

# Events in the log.
SKIPPED = "backend skipped"
SKIPPED_ALONE = "backend skipped for a client"

NONE_UP = Refusal("no_backend", "no backend is up")
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
    """The number of connections of each backend in all workers; that of other workers is up to REFRESH seconds old."""

    def __init__(self, region, slot, first, count):
        self._cells = region.cells
        starts = [region.cell(number, "target", "active", first) for number in range(region.slots + 1)]
        self.own = starts.pop(slot)
        self._others = starts
        self._count = count
        self._foreign = [0] * count
        self._next_refresh = 0.0

    def refresh(self, now):
        """Read the numbers of other workers again when REFRESH seconds have passed."""
        if now < self._next_refresh:
            return
        self._next_refresh = now + REFRESH
        total = [0] * self._count
        for start in self._others:
            total = list(map(add, total, self._cells[start : start + self._count].tolist()))
        self._foreign = total

    def all(self):
        """Return the number of connections of each backend, by index."""
        return list(map(add, self._foreign, self._cells[self.own : self.own + self._count].tolist()))

    def exact(self, index):
        """Return the current number of connections of one backend."""
        return self._cells[self.own + index] + sum(self._cells[start + index] for start in self._others)


class Backends:
    """The backends of one service (config) and family in one worker slot: which is next for a connection."""

    def __init__(self, service, family, region, slot, hash_table=HASH_TABLES[0]):
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
        self._fields = fields = region.cells_of(slot, "target", self._first)
        self._connections, self._succeeded = fields["connections"], fields["succeeded"]
        self._to_backend, self._to_client = fields["bytes_to_backend"], fields["bytes_to_client"]
        # Not in a record of an early version.
        self._datagrams_to_backend, self._datagrams_to_client = map(fields.get, DATAGRAM_FIELDS)
        self._latency, self._latency_sum = fields[shared_memory.LATENCY_FIELDS[0]], fields["connect_microseconds"]
        self._buckets_apart = len(region.targets)
        self._failures = region.cell(slot, "worker", "failures")
        self._successes = [region.cell(row, "target", "succeeded", self._first) for row in range(region.slots)]
        self._checked = service.checked and region.has_suspects
        self._pauses = bool(self._checked and service.health.flap_pause and flapping.in_region(region))
        self._slow = fields.get("slow") if self._checked else None
        self._agents = service.health.agent is not None and agent_state.in_region(region)
        self._weights = [backend.weight for backend in self.backends]
        names = [backend.name for backend in self.backends]
        self._algorithm = algorithm_of(service.balance, hash_table)(names, self._weights, self._load)
        self._choose = self._algorithm.choose
        if service.hash_balance_factor:
            factor, algorithm = service.hash_balance_factor, self._algorithm
            self._choose = bounded(algorithm.choose, factor, self._weights, self._load, self._passed_over)
        self._limited = any(backend.max_connections for backend in self.backends)
        self._epoch = -1
        self._next_review = 0.0
        # Candidates by priority; those of a later tier are used only when no earlier one can be. No tier is empty.
        self._tiers: tuple[tuple[int, ...], ...] = ()  # after the others those of backends that are paused
        self._suspects: tuple[int, ...] = ()  # candidates that failed for a client and the checker; used last
        self._ready: tuple[int, ...] = ()  # the candidates of a connection that excludes no backend

    def next(self, client, tried, now):
        """Return the index of the backend for the next attempt and count its connection; None if none is left.

        ``tried`` are the indexes this connection has had already. A backend that failed a moment ago, for this client
        or for the checker, is returned only when no other is left. The caller has to release() the index.
        """
        cells = self._cells
        if cells[EPOCH_HEALTH] + cells[EPOCH_ADMIN] != self._epoch or now >= self._next_review:
            self._review(now)
        candidates, health = self._ready, self.health
        wary = not health.all_usable and (health.any_skipped or client in health.failed_for)
        if wary or tried or self._limited:
            candidates = self._narrow(client, tried, now)
        if not candidates:
            return None
        if len(candidates) == 1:
            index = candidates[0]
        else:
            self._load.refresh(now)
            index = self._choose(candidates, client)
        if wary:
            health.chosen(client, index, now)
        cells[self._active + index] += 1
        return index

    def places_of(self, other):
        """Return {index in ``other``: index here} of the backends that are in both; their address may have changed."""
        here = {backend.name: index for index, backend in enumerate(self.backends)}
        return {old: here[backend.name] for old, backend in enumerate(other.backends) if backend.name in here}

    def same_address(self, index, other, old):
        """Whether a backend has the address that it has in ``other``, at index ``old``."""
        return self.backends[index].address(self.family) == other.backends[old].address(self.family)

    def follow(self, other):
        """Take the place of ``other``, of an earlier config: go on with what it knows of the same backends."""
        places = {
            old: new
            for old, new in self.places_of(other).items()
            if other.backends[old].port == self.backends[new].port and self.same_address(new, other, old)
        }
        self.health.follow(other.health, places)
        if type(self._algorithm) is type(other._algorithm):
            self._algorithm.follow(other._algorithm, places)

    def with_address(self, address):
        """Return the indexes of the backends that have this address."""
        family = self.family
        return tuple(index for index, backend in enumerate(self.backends) if backend.address(family) == address)

    def adopt(self, index):
        """Count a connection that another worker, or an earlier config, has had to this backend."""
        self._cells[self._active + index] += 1

    def release(self, index):
        """Note that an attempt or a connection to this backend has ended."""
        self._cells[self._active + index] -= 1

    def connected(self, client, index, seconds, now):
        """Count a client's connect that took ``seconds``; return True if all clients skipped the backend before."""
        cells = self._cells
        cells[self._connections + index] += 1
        cells[self._succeeded + index] = int(now * 1000)
        microseconds = int(seconds * 1e6)
        cells[self._latency + bisect_left(LATENCY_BOUNDS, microseconds) * self._buckets_apart + index] += 1
        cells[self._latency_sum + index] += microseconds
        return not self.health.all_usable and self.health.succeeded(client, index)

    def failed(self, client, index, number, now, to_blame, is_served=None):
        """Count a client's connect that failed with errno ``number``; return the log event if that starts a skip.

        ``to_blame`` says whether the backend, or the path to it, is at fault and not this host. ``is_served()`` says
        whether the backend serves another client, if connects alone do not show that (UDP).
        """
        cells, fields = self._cells, self._fields
        cells[fields["failed_" + _CAUSES.get(number, "unreachable" if to_blame else "local")] + index] += 1
        if not to_blame:
            return None
        cells[fields["failed"] + index] = int(now * 1000)
        cells[self._failures] += 1  # when this grows, the checker reads the times
        first = self.health.failed(client, index, now)
        if not self._has_checker(now) and not self._serves_others(index, now, is_served):
            return SKIPPED if self.health.skip(index, now) else None
        return SKIPPED_ALONE if first else None

    def _has_checker(self, now):
        """Return whether a checker runs and can find out who is at fault; one that hangs or is gone cannot."""
        beat = self._region.beat(self._region.slots)
        return self._checked and (beat is None or now - beat < heartbeat.SUSPECT)

    def _serves_others(self, index, now, is_served):
        """Return whether a backend has served any client a moment ago, in any worker."""
        if self.health.is_skipped(index):
            return False
        cells, latest = self._cells, max(1, int((now - SUCCESS_PROOF) * 1000))
        if any(cells[start + index] >= latest for start in self._successes):
            return True
        if is_served is None or not is_served():
            return False
        cells[self._succeeded + index] = int(now * 1000)
        return True

    def report_slow(self, index, now):
        """Make the checker probe a backend whose connect takes long, so that more is known when the attempt fails."""
        if self._slow is not None:
            self._cells[self._slow + index] = int(now * 1000)
            self._cells[self._failures] += 1

    def is_unusual(self, client, index, seconds):
        """Return whether a connect that has taken ``seconds`` should have been answered: this worker's usually take
        much less, and the last one of this client has not failed."""
        if client in self.health.failed_for:
            return False
        cells = self._cells
        return seconds * 1e6 * cells[self._connections + index] >= UNUSUAL * cells[self._latency_sum + index]

    def _passed_over(self, index):
        """Count a connection that hash_balance_factor gives to another backend than this one."""
        if "passed_over" in self._fields:  # a record of an early version does not have it
            self._cells[self._fields["passed_over"] + index] += 1

    def add_bytes(self, index, to_backend, to_client):
        """Count bytes that a session has forwarded."""
        cells = self._cells
        cells[self._to_backend + index] += to_backend
        cells[self._to_client + index] += to_client

    def add_datagrams(self, index, to_backend, to_client):
        """Count datagrams that a session has forwarded."""
        if self._datagrams_to_backend is not None:
            self._cells[self._datagrams_to_backend + index] += to_backend
            self._cells[self._datagrams_to_client + index] += to_client

    def add_samples(self, index, count, round_trip, retransmits, now):
        """Count samples of connections: their average round-trip time in microseconds, and segments sent again."""
        cells, fields = self._cells, self._fields
        if "sampled" not in fields:  # in a record of an early version
            return
        cells[fields["tcp_samples"] + index] += count
        cells[fields["retransmits"] + index] += retransmits
        average, last = fields["rtt_microseconds"] + index, fields["sampled"] + index
        if cells[average] and now - cells[last] / 1000 <= SAMPLE_VALID:
            round_trip = (cells[average] + round_trip) / 2
        cells[average] = round(round_trip)
        cells[last] = int(now * 1000)

    def refusal(self):
        """Return the Refusal of a connection that has tried no backend and for which next() returned None."""
        return ALL_FULL if self._limited and self._ready else NONE_UP

    # -- candidates --------------------------------------------------------------------------------------------------

    def _narrow(self, client, tried, now):
        """Return the candidates of a connection that excludes some backends."""
        rest = []
        for tier in self._tiers:
            left = [index for index in tier if index not in tried and not self._full(index)]
            usable = [index for index in left if self.health.usable(client, index, now)]
            if usable:
                return usable
            rest += left
        return rest + [index for index in self._suspects if index not in tried and not self._full(index)]

    def _full(self, index):
        limit = self.backends[index].max_connections
        return limit is not None and self._load.exact(index) >= limit

    def _review(self, now):
        """Find the candidates again: the checker, an operator or the time of a slow start has changed something."""
        self._epoch = self._cells[EPOCH_HEALTH] + self._cells[EPOCH_ADMIN]
        self._next_review = float("inf")
        indexes = range(len(self.backends))
        standings = [self._standing(index) for index in indexes]
        enabled = [index for index in indexes if not self.backends[index].disabled]
        ready = [index for index in enabled if standings[index].admin == shared_memory.READY]
        health = [one.health for one in standings]
        up = [index for index in ready if health[index] in (shared_memory.UNKNOWN, shared_memory.UP)]
        unusable = len(ready) - len(up)
        if not up and self.service.on_all_down == "refuse":
            # No backend is known to work. "Return path broken" comes from a probe, and the network may drop probes
            # but not the clients' packets. So each client's connection has to find out.
            up = [index for index in ready if health[index] == shared_memory.BROKEN]
        elif not up:
            up = ready
        doubts = self._doubts(up, now) if self._checked else {}
        kept_out = flapping.kept_out(doubts, self.service.health.max_out, len(ready), unusable)
        self._suspects = tuple(index for index in up if index in kept_out and doubts[index][0])
        for index in {*indexes} - {*up} | {*self._suspects}:
            self.health.forget_clients(index)
        tiers: dict[tuple[bool, int], list[int]] = {}
        for index in up:
            if index not in self._suspects:
                tiers.setdefault((index in kept_out, self.backends[index].tier), []).append(index)
        self._tiers = tuple(tuple(tiers[tier]) for tier in sorted(tiers))
        self._ready = self._tiers[0] if self._tiers else self._suspects
        self._weigh(now, [one.weight for one in standings])

    def _doubts(self, candidates, now):
        """Return {index: (whether it is a suspect, its flaps)} of the candidates that are suspects or paused."""
        suspects = self._column("suspect")
        if not self._pauses:
            return {index: (True, 0) for index in candidates if suspects[index]}
        back_at, flaps = self._column("back_at"), self._column("flaps")
        paused = {index for index in candidates if back_at[index] > now * 1000}
        self._next_review = min((back_at[index] / 1000 for index in paused), default=self._next_review)
        return {
            index: (bool(suspects[index]), flaps[index]) for index in candidates if suspects[index] or index in paused
        }

    def _column(self, field):
        """Return a state of all backends, by index."""
        start = self._region.state_cell(field, self._first)
        return self._cells[start : start + len(self.backends)].tolist()

    def _standing(self, index):
        """Return what the checker, the operator and the agent say of a backend, as it counts."""
        state, target, weight = self._region.state, self._first + index, self.backends[index].weight
        admin, health, override = state("admin", target), state("health", target), state("weight", target)
        if not self._agents:
            return Standing(admin, health, override or weight)
        return standing(agent_state.read(self._region, target, with_reason=False), admin, health, weight, override)

    def _weigh(self, now, weights):
        """Set these weights; less for a backend that has just recovered."""
        recovered = self._column("recovered")
        if self._pauses:
            recovered = list(map(max, recovered, self._column("back_at")))
        for index, weight in enumerate(weights):
            since = now - recovered[index] / 1000
            if recovered[index] and 0 <= since < self.service.slow_start and self._algorithm.ramps:
                weight *= max(RAMP_FLOOR, since / self.service.slow_start)
                self._next_review = min(self._next_review, now + RAMP_STEP)
            self._weights[index] = weight
        self._algorithm.weights_changed()
