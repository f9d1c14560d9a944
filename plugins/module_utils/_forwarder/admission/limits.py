# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of a service: its connections, those of each client, and the rate of new ones, in all workers together.

Time is passed in (monotonic seconds). The numbers of each client are in counters/client_tables.py. Workers that admit
one client at the same instant do not see each other's admission yet, so a limit can be exceeded by one connection per
other worker. Connections of old generations count as well; how many those are may be a second old.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ..counters import client_tables
from ..counters.client_tables import ClientNumbers
from .refusal import Refusal

PER_SERVICE = Refusal("limited", "connection limit of the service")
PER_CLIENT = Refusal("limited", "connection limit of the client")
RATE = Refusal("limited", "rate limit of the client")

_PREFIX = 8  # bytes of an IPv6 address that identify a client: a client that has one address has its /64


def client_key(address: str) -> int:
    """Return the number that identifies a client: its IPv4 address, or the /64 of its IPv6 address; never 0."""
    if ":" not in address:
        return int.from_bytes(socket.inet_aton(address), "big")
    prefix = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_PREFIX]
    return int.from_bytes(prefix, "big", signed=True) or -1  # -1 stands for ::/64: no network begins with 64 ones


class Rate:
    """A token bucket per client: ``rate`` new connections per second, and one second's worth (at least one) at once.

    The number kept per client is the time at which its bucket is full again (generic cell rate algorithm, ITU-T I.371).
    The latest time of all workers counts, so they share one bucket.
    """

    def __init__(self, rate: float, numbers: ClientNumbers) -> None:
        self._interval = 1e6 / rate  # microseconds per token
        self._slack = (max(1.0, rate) - 1) * self._interval
        self._numbers = numbers

    def admit(self, key: int, now: float) -> bool:
        """Count a new connection and return True, or return False if the client has no token."""
        microseconds = int(now * 1e6)
        full_at = max(microseconds, self._numbers.get(key), *self._numbers.elsewhere(key))
        if full_at - microseconds > self._slack:
            return False
        self._numbers.put(key, int(full_at + self._interval))
        return True


class Limiter:
    """Admits connections of one service in this worker, within its limits (service.Limits).

    ``total()`` returns the number of connections of the service in all workers; ``client_numbers(kind)`` the
    ClientNumbers of one kind.
    """

    def __init__(self, limits, total: Callable[[], int], client_numbers: Callable[[str], ClientNumbers]) -> None:
        self._limits = limits
        self._total = total
        self._per_client: dict[int, int] = {}  # exact numbers of this worker; ClientNumbers may forget a client
        self._held: Any = client_numbers(client_tables.HELD) if limits.connections_per_client else None
        rate = limits.rate_per_client
        self._rate = Rate(rate, client_numbers(client_tables.RATE)) if rate else None

    @property
    def full(self) -> bool:
        """Whether the service has reached its connection limit."""
        limit = self._limits.connections
        return bool(limit) and self._total() >= limit

    @property
    def pauses(self) -> bool:
        """Whether connections beyond the service's limit wait in the backlog instead of being refused."""
        return self._limits.at_limit == "pause"

    def admit(self, address: str, now: float) -> Refusal | None:
        """Count a connection of a client and return None, or return the Refusal; release() it when it ends."""
        key = client_key(address)
        held = self._per_client.get(key, 0)
        if self._held and held + sum(self._held.elsewhere(key)) >= self._limits.connections_per_client:
            return PER_CLIENT
        if self._rate is not None and not self._rate.admit(key, now):
            return RATE
        if self._held:
            self._set(key, held + 1)
        return None

    def adopt(self, address: str) -> None:
        """Count a connection that an earlier worker admitted and this one takes over."""
        if self._held:
            key = client_key(address)
            self._set(key, self._per_client.get(key, 0) + 1)

    def adopt_all(self, addresses: Iterable[str]) -> None:
        """Count connections that were admitted under an earlier config."""
        if self._held:
            for key, number in Counter(map(client_key, addresses)).items():
                self._set(key, self._per_client.get(key, 0) + number)

    def keep(self, addresses: Iterable[str]) -> None:
        """Count only the connections of these clients from now on: a later config counts the others."""
        if self._held:
            kept = Counter(map(client_key, addresses))
            for key in list(self._per_client):
                self._set(key, kept[key])

    def release(self, address: str) -> None:
        """Note that an admitted connection of a client has ended."""
        if self._held:
            key = client_key(address)
            self._set(key, self._per_client[key] - 1)

    def _set(self, key: int, held: int) -> None:
        """Set the number of a client's connections in this worker, for the other workers too."""
        self._held.put(key, held)
        if held:
            self._per_client[key] = held
        else:
            del self._per_client[key]
