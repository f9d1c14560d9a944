# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections a service and each of its clients may have.

Pure; time is passed in (monotonic seconds). Connections of a service are those of all workers, those of a client what
this worker has.
"""

from __future__ import annotations

import socket

PER_WORKER = "session limit of the worker"
PER_SERVICE = "connection limit of the service"
PER_CLIENT = "connection limit of the client"
RATE = "rate limit of the client"

MOST_CLIENTS = 65536  # remembered for the rate; beyond that the oldest are forgotten, who have had time to recover
_PREFIX = 8  # bytes of an IPv6 address that name a client: whoever has one address has its /64


def client_key(address):
    """Return what names a client: an IPv4 address as it is, the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_PREFIX]


class Rate:
    """A token bucket a client: ``rate`` new connections a second, and a second's worth (at least one) at once."""

    def __init__(self, rate):
        self._rate = rate
        self._burst = max(1.0, rate)
        self._clients = {}  # key -> (tokens, when); in the order of the last connection

    def __len__(self):
        return len(self._clients)

    def admit(self, key, now):
        """Count a new connection; returns whether it is within the rate."""
        clients = self._clients
        tokens, when = clients.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - when) * self._rate)
        admitted = tokens >= 1
        clients[key] = (tokens - 1 if admitted else tokens, now)
        if len(clients) > MOST_CLIENTS:
            del clients[next(iter(clients))]
        return admitted


class Gate:
    """Admits the connections of one service in this worker.

    ``limits`` is an options.Limits; ``total()`` the number of connections the service has, in all workers.
    """

    def __init__(self, limits, total):
        self._limits = limits
        self._total = total
        self._per_client = {}
        self._rate = Rate(limits.rate_per_client) if limits.rate_per_client else None

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
        """Admit a client and return None, or return why not. Who was admitted leaves by leave()."""
        key = client_key(address)
        most = self._limits.connections_per_client
        held = self._per_client.get(key, 0)
        if most and held >= most:
            return PER_CLIENT
        if self._rate is not None and not self._rate.admit(key, now):
            return RATE
        if most:
            self._per_client[key] = held + 1
        return None

    def readmit(self, address):
        """Count a client that was admitted by another worker, whose place this one takes."""
        if self._limits.connections_per_client:
            key = client_key(address)
            self._per_client[key] = self._per_client.get(key, 0) + 1

    def leave(self, address):
        """A client that was admitted is gone."""
        if not self._limits.connections_per_client:
            return
        key = client_key(address)
        held = self._per_client.pop(key) - 1
        if held:
            self._per_client[key] = held
