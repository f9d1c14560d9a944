# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend takes a connection, and which one is next when it fails.

Pure. A *strategy* turns a set of candidates into one choice; Backends holds one service's backends of one family and
decides who is a candidate. Backends are named by their index in the list they were given as. Time is passed in
(monotonic seconds).
"""

from __future__ import annotations

from .health import PassiveHealth


class SmoothRoundRobin:
    """nginx's smooth weighted round robin (ngx_http_upstream_round_robin.c): weights 5, 1, 1 give a a b a c a a.

    Every candidate gains its weight, the one with most is chosen and pays the sum of all gains. Backends that are left
    out of a round neither gain nor pay, so one that comes back does not make up for its absence in one burst.
    """

    def __init__(self, weights):
        self._weights = tuple(weights)
        self._credit = [0] * len(self._weights)

    def choose(self, candidates, client):
        """Return one of ``candidates`` (indexes, not empty) for ``client`` (an address; only hashes look at it)."""
        credit, weights = self._credit, self._weights
        best, total = -1, 0
        for index in candidates:
            credit[index] += weights[index]
            total += weights[index]
            if best < 0 or credit[index] > credit[best]:
                best = index
        credit[best] -= total
        return best


# A strategy is built from the weights and has choose(candidates, client) -> index.
STRATEGIES = {"round_robin": SmoothRoundRobin}


class Backends:
    """The backends of one service and one family: who is next for a connection.

    ``backends`` is a sequence of config.Backend, ``balance`` a key of STRATEGIES.
    """

    def __init__(self, backends, balance):
        self.backends = tuple(backends)
        self.health = PassiveHealth(len(self.backends))
        self._strategy = STRATEGIES[balance]([backend.weight for backend in self.backends])
        self._all = tuple(range(len(self.backends)))

    def next(self, client, tried, now):
        """Return the index of the backend for the next attempt, None when every one is in ``tried``.

        ``tried`` holds the indexes this connection has had; none is given twice. Backends that failed a moment ago are
        skipped while any other is left, and tried all the same when none is.
        """
        candidates = self._all
        if tried:
            candidates = [index for index in candidates if index not in tried]
            if not candidates:
                return None
        if self.health.all_well:
            return self._strategy.choose(candidates, client)
        usable = [index for index in candidates if self.health.usable(index, now)]
        index = self._strategy.choose(usable or candidates, client)
        self.health.chosen(index, now)
        return index
