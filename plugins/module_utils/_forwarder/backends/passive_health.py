# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passive health: which backends a worker skips because clients' connects to them failed. Pure.

A failed connect says little about the backend: it may reject this one client (fail2ban, a connection limit, a packet
filter). The number of clients that fail says no more, as one attacker has many addresses. So a failure counts for its
client alone, and the checker probes the backend at once (health_checker.py); only its result counts for all clients.
Time is passed in (monotonic seconds).
"""

from __future__ import annotations

SKIP = 5.0  # seconds a backend is skipped; a dead one then costs one connect timeout per SKIP
FIRST_SKIP = 0.25  # seconds all clients skip it after the first failure, until another client has tried it
MAX_SKIP = 60.0  # seconds; the longest skip for a client that fails again and again
SUCCESS_PROOF = 1.0  # seconds for which a success shows that a failure is the client's, if no checker runs
MAX_CLIENTS = 1024  # clients that are remembered; beyond that the oldest is forgotten


class PassiveHealth:
    """Failure memory of ``count`` backends, named by index.

    ``failed_for`` is {client: {index: [skipped until, length of the skip]}}: the backends that failed for one client.
    The client tries such a backend again after SKIP seconds, then after twice as long, up to MAX_SKIP.
    ``any_skipped`` says whether all clients skip some backend. That happens only while no checker runs and nobody else
    succeeds, so that a dead backend does not cost every n-th client the connect timeout. When the skip ends, one
    connection tries the backend; all others go on skipping it until that attempt has ended.
    """

    def __init__(self, count):
        self._skip_until = [None] * count
        self.any_skipped = False
        self.failed_for = {}
        self.all_usable = True  # fast path: no backend is skipped by any client

    def usable(self, client, index, now):
        """Return whether this client may use the backend: it has not failed, or a new attempt is due."""
        until = self._skip_until[index]
        if until is not None and now < until:
            return False
        entry = self.failed_for.get(client, {}).get(index)
        return entry is None or now >= entry[0]

    def chosen(self, client, index, now):
        """Note that a connection was given to this backend; if it was skipped, this is the one new attempt."""
        if self._skip_until[index] is not None:
            self._skip_until[index] = now + SKIP
        entry = self.failed_for.get(client, {}).get(index)
        if entry is not None:
            entry[0] = now + entry[1]

    def failed(self, client, index, now):
        """Note that a client's connect to this backend failed; return True if it is the client's first failure."""
        failures = self.failed_for.get(client)
        if failures is None:
            if len(self.failed_for) >= MAX_CLIENTS:
                del self.failed_for[next(iter(self.failed_for))]
            failures = self.failed_for[client] = {}
        entry = failures.get(index)
        length = SKIP if entry is None else min(2 * entry[1], MAX_SKIP)
        failures[index] = [now + length, length]
        self.all_usable = False
        return entry is None

    def is_skipped(self, index):
        """Return whether all clients skip this backend."""
        return self._skip_until[index] is not None

    def skip(self, index, now):
        """Make all clients skip this backend; return True if they did not before."""
        first = self._skip_until[index] is None
        self._skip_until[index] = now + (FIRST_SKIP if first else SKIP)
        self.any_skipped, self.all_usable = True, False
        return first

    def succeeded(self, client, index):
        """Note that a connect to this backend succeeded; return True if all clients skipped it before."""
        if client in self.failed_for:
            self._forget(client, index)
        was_skipped = self._skip_until[index] is not None
        if was_skipped:
            self._skip_until[index] = None
            self.any_skipped = any(until is not None for until in self._skip_until)
        self.all_usable = not (self.any_skipped or self.failed_for)
        return was_skipped

    def forget_clients(self, index):
        """Forget for which clients this backend failed, because the backend was at fault."""
        for client in list(self.failed_for):
            self._forget(client, index)
        self.all_usable = not (self.any_skipped or self.failed_for)

    def follow(self, other, indexes):
        """Remember what ``other`` does, for the backends of ``indexes``: {its index: index here}."""
        for old, new in indexes.items():
            self._skip_until[new] = other._skip_until[old]
        for client, failures in other.failed_for.items():
            kept = {indexes[old]: entry for old, entry in failures.items() if old in indexes}
            if kept:
                self.failed_for[client] = kept
        self.any_skipped = any(until is not None for until in self._skip_until)
        self.all_usable = not (self.any_skipped or self.failed_for)

    def _forget(self, client, index):
        failures = self.failed_for[client]
        failures.pop(index, None)
        if not failures:
            del self.failed_for[client]
