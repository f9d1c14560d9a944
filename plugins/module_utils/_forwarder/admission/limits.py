# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a service and each of its clients may have, in all workers together.

Time is passed in (monotonic seconds). The numbers of each client are in counters.client_tables. Workers that admit one
client in the same instant do not see each other's admission yet: a limit can be passed by as many connections as there
are other workers, and no more. Connections of a generation that drains count for the
limit of the service, not of a client.
"""

from __future__ import annotations

import socket
from typing import Any

from ..counters import client_tables
from .refusal import Refusal

PER_WORKER = Refusal("limited", "session limit of the worker")
PER_SERVICE = Refusal("limited", "connection limit of the service")
PER_CLIENT = Refusal("limited", "connection limit of the client")
RATE = Refusal("limited", "rate limit of the client")

_PREFIX = 8  # bytes of an IPv6 address that name a client: whoever has one address has its /64


def client_key(address):
    """Return the number that names a client: an IPv4 address, or the /64 of an IPv6 address; never 0."""
    if ":" not in address:
        return int.from_bytes(socket.inet_aton(address), "big")
    prefix = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_PREFIX]
    return int.from_bytes(prefix, "big", signed=True) or -1  # no network of the Internet begins with 64 ones


class Rate:
    """A token bucket a client: ``rate`` new connections a second, and a second's worth (at least one) at once.

    What is kept of a client is when its bucket will be full again (the generic cell rate algorithm, ITU-T I.371): the
    latest of what all workers have written is the bucket they share.
    """

    def __init__(self, rate, numbers):
        self._interval = 1e6 / rate  # microseconds of a token
        self._slack = (max(1.0, rate) - 1) * self._interval
        self._numbers = numbers

    def admit(self, key, now):
        """Count a new connection; returns whether it is within the rate."""
        now = int(now * 1e6)
        full_at = max(now, self._numbers.get(key), *self._numbers.elsewhere(key))
        if full_at - now > self._slack:
            return False
        self._numbers.put(key, int(full_at + self._interval))
        return True


class Gate:
    """Admits the connections of one service in this worker.

    ``limits`` is an options.Limits; ``total()`` the number of connections the service has, in all workers;
    ``client_numbers`` returns the client_tables.ClientNumbers of one kind.
    """

    def __init__(self, limits, total, client_numbers):
        self._limits = limits
        self._total = total
        self._per_client = {}  # what this worker has, exactly: ClientNumbers may forget
        self._held: Any = client_numbers(client_tables.HELD) if limits.connections_per_client else None
        rate = limits.rate_per_client
        self._rate = Rate(rate, client_numbers(client_tables.RATE)) if rate else None

    @property
    def full(self):
        """Whether the service has all the connections it may have."""
        most = self._limits.connections
        return bool(most) and self._total() >= most

    @property
    def pauses(self):
        """Whether connections beyond the service's limit wait in the backlog instead of being refused."""
        return self._limits.at_limit == "pause"

    def enter(self, address, now):
        """Admit a client and return None, or return the Refusal. Who was admitted leaves by leave()."""
        key = client_key(address)
        most = self._limits.connections_per_client
        held = self._per_client.get(key, 0)
        if most and held + sum(self._held.elsewhere(key)) >= most:
            return PER_CLIENT
        if self._rate is not None and not self._rate.admit(key, now):
            return RATE
        if most:
            self._hold(key, held + 1)
        return None

    def readmit(self, address):
        """Count a client that was admitted by another worker, whose place this one takes."""
        if self._limits.connections_per_client:
            key = client_key(address)
            self._hold(key, self._per_client.get(key, 0) + 1)

    def leave(self, address):
        """A client that was admitted is gone."""
        if not self._limits.connections_per_client:
            return
        key = client_key(address)
        self._hold(key, self._per_client[key] - 1)

    def _hold(self, key, held):
        """Note, and tell the other workers, how many connections a client has here."""
        self._held.put(key, held)
        if held:
            self._per_client[key] = held
        else:
            del self._per_client[key]
