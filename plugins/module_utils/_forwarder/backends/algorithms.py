# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to choose one of several backends, all of them weighted.

Pure. A strategy is made from the backends' names, their weights (a list that its owner changes in place and then calls
weights_changed()) and their Load, and has ``choose(candidates, client)``: one of ``candidates`` (indexes, not empty)
for ``client`` (an address in text form). ``ramps`` says whether a weight may grow step by step after a recovery.
"""

from __future__ import annotations

import random
from bisect import bisect
from hashlib import blake2b
from itertools import accumulate
from typing import Any


class SmoothRoundRobin:
    """nginx's smooth weighted round robin (ngx_http_upstream_round_robin.c): weights 5, 1, 1 give a a b a c a a.

    Every candidate gains its weight, the one with most is chosen and pays the sum of all gains. Backends that are left
    out of a round neither gain nor pay, so one that comes back does not make up for its absence in one burst.
    """

    ramps = True

    def __init__(self, names, weights, _load):
        self._weights = weights
        self._credit = [0] * len(names)

    def weights_changed(self):
        """Nothing depends on what weights were."""

    def choose(self, candidates, _client):
        """Return the next in turn."""
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
    """The backend with the fewest connections for its weight; those that are equal take turns."""

    ramps = True

    def __init__(self, names, weights, load):
        self._weights = weights
        self._load = load
        self._turns = SmoothRoundRobin(names, weights, load)

    def weights_changed(self):
        """Nothing depends on what weights were."""

    def choose(self, candidates, client):
        """Return the one with least to do."""
        connections, weights = self._load.all(), self._weights
        loads = [connections[index] / weights[index] for index in candidates]
        least = min(loads)
        equal = [index for index, load in zip(candidates, loads) if load == least]
        return equal[0] if len(equal) == 1 else self._turns.choose(equal, client)


class Random:
    """The less loaded of two drawn by weight: nearly as even as least_connections, and no two workers run in step.

    (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.)
    """

    ramps = True

    def __init__(self, _names, weights, load):
        self._weights = weights
        self._load = load
        self._candidates = None
        self._cumulated = []

    def weights_changed(self):
        """Forget what was summed up."""
        self._candidates = None

    def choose(self, candidates, _client):
        """Draw two, return the one with less to do; the first when they are equal."""
        if candidates is not self._candidates:
            self._candidates = candidates
            self._cumulated = list(accumulate(self._weights[index] for index in candidates))
        one, other = random.choices(candidates, cum_weights=self._cumulated, k=2)
        if one == other:
            return one
        connections, weights = self._load.all(), self._weights
        return other if connections[other] / weights[other] < connections[one] / weights[one] else one


POINTS = 256  # on the ring for the smallest weight: the shares of equal backends then differ by 1 / sqrt(256), 6 %
MOST_POINTS = 200_000  # of all backends together, whatever the weights are
_PER_DIGEST = 8  # points of 8 bytes in one digest


class SourceHash:
    """A ring (Karger et al., Consistent Hashing and Random Trees, 1997): a client stays with its backend.

    The points of a backend follow from its name and weight alone and a client's from its address, so every worker and
    every proxy choose alike. Where a backend is out of the question its clients, and nobody else's, go to the next
    point on the ring that belongs to a candidate: losing one of N backends moves 1/N of the clients.
    """

    ramps = False  # each step would move clients to and fro

    def __init__(self, names, weights, _load):
        self._names = names
        self._weights = weights
        self._made_for = None
        self._points, self._owners = [], []

    def weights_changed(self):
        """Make the ring anew where they did."""
        if self._made_for == self._weights:
            return
        self._made_for = list(self._weights)
        least = min(self._weights)
        counts = [max(1, round(POINTS * weight / least)) for weight in self._weights]
        excess = max(1.0, sum(counts) / MOST_POINTS)
        ring = sorted(
            (point, index)
            for index, (name, count) in enumerate(zip(self._names, counts))
            for point in _points(name, max(1, int(count / excess)))
        )
        self._points = [point for point, _index in ring]
        self._owners = [index for _point, index in ring]

    def choose(self, candidates, client):
        """Return the owner of the first point after the client's that is a candidate."""
        owners = self._owners
        start = bisect(self._points, int.from_bytes(blake2b(client.encode(), digest_size=8).digest(), "big"))
        for place in range(start, start + len(owners)):
            index = owners[place % len(owners)]
            if index in candidates:
                return index
        raise ValueError("no candidate is on the ring")


def _points(name, count):
    """Yield ``count`` numbers of 64 bits that follow from ``name``."""
    for number in range(0, count, _PER_DIGEST):
        digest = blake2b(f"{name}#{number}".encode()).digest()
        for place in range(min(_PER_DIGEST, count - number)):
            yield int.from_bytes(digest[place * 8 : place * 8 + 8], "big")


STRATEGIES: dict[str, Any] = {
    "round_robin": SmoothRoundRobin,
    "least_connections": LeastConnections,
    "source_hash": SourceHash,
    "random": Random,
}
