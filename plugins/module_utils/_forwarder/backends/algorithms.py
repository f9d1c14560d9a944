# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balancing algorithms: choose one of several backends by weight. Pure.

To add one: a class here, its name in ALGORITHMS and in config/defaults.py (BALANCES), a row in
docs/docsite/rst/services.rst. source_hash has two, HASH_TABLES, of which the config names one. It is made from the
backends' names, their weights (a list that the owner changes in place, and then calls weights_changed()) and their
Load. ``choose(candidates, client)`` returns one of ``candidates``
(indexes, never empty) for ``client`` (an address in text form). ``ramps`` says whether a weight may grow in steps after
a recovery (slow_start). When a config is taken in place, ``follow(other, indexes)`` is called once at first: ``other``
is of the same class, ``indexes`` are those of the backends that are still there, {in ``other``: here}.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate, compress
from typing import Any

from ..._shared import bucket_table
from ..._shared.client_hash import client_hash


class SmoothRoundRobin:
    """nginx's smooth weighted round robin (ngx_http_upstream_round_robin.c): weights 5, 1, 1 give a a b a c a a.

    In each round every candidate gains its weight as credit; the one with most credit is chosen and pays the sum of all
    weights. A backend that is no candidate neither gains nor pays, so it gets no burst when it returns.
    """

    ramps = True

    def __init__(self, names, weights, _load):
        self._weights = weights
        self._credit = [0] * len(names)

    def follow(self, other, indexes):
        """Go on with the credit of ``other``, so that frequent changes do not favour the first backend."""
        for old, new in indexes.items():
            self._credit[new] = other._credit[old]

    def weights_changed(self):
        """Nothing is derived from the weights."""

    def choose(self, candidates, _client):
        """Return the candidate with most credit."""
        credit, weights = self._credit, self._weights
        best, total = -1, 0
        for index in candidates:
            credit[index] += weights[index]
            total += weights[index]
            if best < 0 or credit[index] > credit[best]:
                best = index
        credit[best] -= total
        return best


class LeastConnections:
    """The backend with the fewest connections per weight; equal ones take turns."""

    ramps = True

    def __init__(self, names, weights, load):
        self._weights = weights
        self._load = load
        self._turns = SmoothRoundRobin(names, weights, load)

    def follow(self, other, indexes):
        """Go on with the turns of ``other``."""
        self._turns.follow(other._turns, indexes)

    def weights_changed(self):
        """Nothing is derived from the weights."""

    def choose(self, candidates, client):
        """Return the candidate with the fewest connections per weight."""
        connections, weights = self._load.all(), self._weights
        loads = [connections[index] / weights[index] for index in candidates]
        least = min(loads)
        equal = [index for index, load in zip(candidates, loads) if load == least]
        return equal[0] if len(equal) == 1 else self._turns.choose(equal, client)


class Random:
    """The less loaded of two that are drawn by weight.

    This is nearly as even as least_connections, and workers do not all choose the same backend.
    (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.)
    """

    ramps = True

    def __init__(self, _names, weights, load):
        self._weights = weights
        self._load = load
        self._candidates = None
        self._cumulated = []

    def follow(self, _other, _indexes):
        """Nothing is remembered from one choice to the next."""

    def weights_changed(self):
        """Forget the cumulated weights."""
        self._candidates = None

    def choose(self, candidates, _client):
        """Draw two candidates and return the one with fewer connections per weight; the first if equal."""
        if candidates is not self._candidates:
            self._candidates = candidates
            self._cumulated = list(accumulate(self._weights[index] for index in candidates))
        first, second = random.choices(candidates, cum_weights=self._cumulated, k=2)
        if first == second:
            return first
        connections, weights = self._load.all(), self._weights
        return second if connections[second] / weights[second] < connections[first] / weights[first] else first


POINTS = 256  # on the ring for the least weight of the config: shares of equal ones then differ by 1 / sqrt(256), 6 %
MAX_POINTS = 200_000  # of all backends together
_PER_DIGEST = 8  # points of 8 bytes in one digest


class Ring:
    """A ring (Karger et al., Consistent Hashing and Random Trees, 1997): a client stays with its backend.

    A backend's points follow from its name and weight, a client's point from its address, so all workers and proxies
    choose alike. If a backend is not a candidate, only its own clients move, to the next candidate on the ring: losing
    one of N backends moves 1/N of the clients. A ring of 300 backends takes 0.1 s to make, so where few of them change,
    their points are exchanged.
    """

    ramps = False  # each step would move clients back and forth

    def __init__(self, names, weights, _load):
        self._names = names
        self._weights = weights
        self._least = min(weights)  # of the config: a weight that sinks at run time must not move others' clients
        self._built_for = None
        self._counts = [0] * len(names)  # points of each backend
        self._points, self._owners = [], []  # of the ring, in order

    def follow(self, other, indexes):
        """Begin with the ring of ``other``, without the backends that are gone."""
        self._points, self._owners = other._points, other._owners
        if len(indexes) < len(other._counts):
            self._keep(indexes)
        if any(old != new for old, new in indexes.items()):
            self._owners = list(map(indexes.__getitem__, self._owners))
        for old, new in indexes.items():
            self._counts[new] = other._counts[old]

    def weights_changed(self):
        """Give each backend as many points as its weight says."""
        if self._built_for == self._weights:
            return
        self._built_for = list(self._weights)
        counts = [max(1, round(POINTS * weight / self._least)) for weight in self._weights]
        excess = max(1.0, sum(counts) / MAX_POINTS)
        counts = [max(1, int(count / excess)) for count in counts]
        changed = {index for index, count in enumerate(counts) if count != self._counts[index]}
        if any(self._counts[index] for index in changed):
            self._keep({*range(len(counts))} - changed)
        self._insert(
            sorted((point, index) for index in changed for point in _points(self._names[index], counts[index]))
        )
        self._counts = counts

    def _keep(self, owners):
        """Remove all points but those of these ``owners``."""
        selectors = list(map(owners.__contains__, self._owners))
        self._points = list(compress(self._points, selectors))
        self._owners = list(compress(self._owners, selectors))

    def _insert(self, ring):
        """Add the pairs (point, index), which are in order."""
        points: list[int] = []
        owners: list[int] = []
        start = 0
        for point, index in ring:
            end = bisect(self._points, point, start)
            points += self._points[start:end]
            owners += self._owners[start:end]
            points.append(point)
            owners.append(index)
            start = end
        self._points, self._owners = points + self._points[start:], owners + self._owners[start:]

    def choose(self, candidates, client):
        """Return the candidate that owns the first point after the client's."""
        owners = self._owners
        start = bisect(self._points, int.from_bytes(blake2b(client.encode(), digest_size=8).digest(), "big"))
        for place in range(start, start + len(owners)):
            index = owners[place % len(owners)]
            if index in candidates:
                return index
        raise ValueError("no candidate is on the ring")


def _points(name, count):
    """Yield ``count`` 64-bit numbers that follow from ``name``."""
    for number in range(0, count, _PER_DIGEST):
        digest = blake2b(f"{name}#{number}".encode()).digest()
        for place in range(min(_PER_DIGEST, count - number)):
            yield int.from_bytes(digest[place * 8 : place * 8 + 8], "big")


class Maglev:
    """A table of buckets (bucket_table.py): a client stays with its backend, and the shares are even.

    If a backend is not a candidate, its clients alone move: to all others, by weight. It takes 2 ms to fill
    a table for 40 backends and 40 ms for 300; that happens when the first client comes after a change of a weight or of
    the backends.
    """

    ramps = False  # each step would move clients back and forth

    def __init__(self, names, weights, _load):
        self._names = tuple(names)
        self._weights = weights
        self._table: Sequence[int] = ()
        self._filled_for: tuple = ()

    def follow(self, other, _indexes):
        """Begin with the table of ``other``, which may be the right one."""
        self._table, self._filled_for = other._table, other._filled_for

    def weights_changed(self):
        """Fill the table if names or weights are others."""
        wanted = self._names, tuple(self._weights)
        if wanted != self._filled_for:
            self._table, self._filled_for = bucket_table.fill(*wanted), wanted

    def choose(self, candidates, client):
        """Return the candidate that has the client's bucket."""
        table = self._table
        return bucket_table.owner(table, client_hash(client) * len(table) >> 32, candidates)


def bounded(choose, percent, weights, load, passed_over):
    """Return ``choose`` so that it passes over a backend with more than ``percent`` of the average connections.

    It calls ``passed_over`` with the index of the backend that would have got the connection.
    The average is that of the candidates, by weight, with the new connection. (Mirrokni, Thorup, Zadimoghaddam,
    Consistent Hashing with Bounded Loads, 2016.)
    """

    def choose_within(candidates, client):
        connections = load.all()
        most = percent * (sum(connections[index] for index in candidates) + 1)  # for all weights, of 100 of them
        total = 100 * sum(weights[index] for index in candidates)
        chosen = choose(candidates, client)
        if connections[chosen] * total < most * weights[chosen]:
            return chosen
        passed_over(chosen)
        # There is always another: all candidates together would have more connections than there are.
        return choose([index for index in candidates if connections[index] * total < most * weights[index]], client)

    return choose_within


ALGORITHMS: dict[str, Any] = {
    "round_robin": SmoothRoundRobin,
    "least_connections": LeastConnections,
    "source_hash": Ring,
    "random": Random,
}
HASH_TABLES: dict[str, Any] = {"ring": Ring, "maglev": Maglev}


def algorithm_of(balance, hash_table):
    """Return the class for ``balance`` of a service; ``hash_table`` is that of the config."""
    return HASH_TABLES[hash_table] if balance == "source_hash" else ALGORITHMS[balance]
