# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A service that the kernel forwards: what clients connect to, and the servers behind it, as normalised values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# How a client finds its bucket: by address and port, or by address alone.
BALANCES = ("hash", "source_hash")
ON_ALL_DOWN = ("refuse", "try_all")
ON_DOWN = ("keep", "reset")
PROTOCOLS = ("tcp", "udp")
LOGS = ("all", "errors", "none")


@dataclass(frozen=True)
class Server:
    """A backend of a service. ``tier``: it serves while none of a lower tier does. Not ``enabled``: it gets no new
    connections.
    """

    name: str
    address: str
    port: int
    weight: int = 1
    tier: int = 0
    enabled: bool = True


@dataclass(frozen=True)
class KernelService:
    """One address and port that clients connect to.

    ``connections``, ``connections_per_client`` (at once) and ``rate_per_client`` (new ones per second) limit it; 0: no
    limit. ``allow`` and ``deny`` are prefixes of clients, of any family; with an ``allow`` that has none of this
    family, nobody is allowed. A client is an IPv4 address or an IPv6 /64.

    A retiring service forwards only the packets of connections that it has. Beside an active one with the same address
    and port, it has the servers that have left that one.
    """

    name: str
    family: str
    protocol: str
    address: str
    port: int
    servers: tuple[Server, ...]
    balance: str = BALANCES[0]
    on_all_down: str = ON_ALL_DOWN[0]
    on_down: str = ON_DOWN[0]
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    connections: int = 0
    connections_per_client: int = 0
    rate_per_client: float = 0.0
    log: str = LOGS[0]
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    @property
    def endpoint(self) -> tuple[str, str, str, int]:
        return (self.family, self.protocol, self.address, self.port)

    @property
    def key(self) -> tuple[Any, ...]:
        """Beside an active service, those that retire at different times may have its address and port."""
        return (*self.endpoint, self.retiring, self.retire_at or 0)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.name, *self.key)
