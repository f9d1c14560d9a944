# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An address that this host has on lo always, and that a routing daemon announces while a token route exists.

The address is a route of type local (``ip route add local ADDRESS dev lo table local proto 205``), not an address of
lo: zebra has a connected route for each address of lo, prefers it to any route of the kernel with the same prefix, and
so would never announce the token (seen with FRR 8.4). Such a route makes the kernel accept packets for the address, but
never choose it as a source. IPv4 sockets can bind it, IPv6 ones with IPV6_FREEBIND, which our listeners have.

The token is a route of type blackhole in table main, which no packet reaches, because table local is looked up first.
Its metric says how it is to be announced: a routing daemon only has to redistribute routes of protocol 205.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .model import MAIN, OWNERS, Route, host_address

OWNER = "announce"
PROTOCOL = OWNERS[OWNER]
# The number of table local (linux/rtnetlink.h).
LOCAL = 255
# Metrics of the token: announced; announced with the community graceful shutdown (RFC 8326), so that routers move away.
ANNOUNCED, GRACEFUL = 1, 2


@dataclass(frozen=True)
class Announced:
    family: str
    address: str
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", host_address(self.address))

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.address,)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.family, self.address)

    @property
    def local_route(self) -> Route:
        return Route(self.family, LOCAL, self.address, type="local")

    def token(self, metric: int) -> Route:
        return Route(self.family, MAIN, self.address, type="blackhole", metric=metric)


def from_route(route: Route) -> Announced:
    return Announced(route.family, route.dst)


def describe(value: Announced) -> str:
    return f"{value.address} on lo, to be announced"
