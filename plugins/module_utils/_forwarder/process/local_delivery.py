# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host still takes its backends' replies to clients for its own (local delivery).

While somebody asks, the kernel is asked every INTERVAL for the route of such replies. A packet counts only if it was
delivered before: nothing that this file misunderstands may ever make a proxy unhealthy. What cannot be seen this way
(the mark of ``socket_mark`` itself, which only root can list; rules that were missing at the start), health checks find
within seconds: then all return paths are broken at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..._shared.families import FAMILIES, SPELLED, socket_family_of
from ..config.defaults import HEALTH_SOURCE
from ..loop.route_query import Kernel
from .supervisor_loop import SupervisorLoop

INTERVAL = 0.3  # seconds between two looks
GRACE = 0.25  # seconds that a rule may be missing: the keeper repairs it within that, as a rule
ASKED = 10.0  # seconds to go on looking after the last question
MOST = 50  # packets in one look
LOOPBACK = 1  # index of lo: the backend is on this host


class Packet(NamedTuple):
    """A reply of a backend to a client; ``dst`` is an address that no host has."""

    family: str
    src: str
    dst: str
    protocol: str
    port: int


class LocalDelivery:
    """Looks at the packets of the config that ``serving()`` returns, (number of the generation, config)."""

    def __init__(self, loop: SupervisorLoop, serving: Callable[[], tuple[int, Any]], kernel=Kernel):
        self._loop = loop
        self._serving = serving
        self._make_kernel = kernel
        self._kernel: Any = None
        self._number: int | None = None  # of the generation whose packets these are
        self._packets: list[Packet] = []
        self._next = 0
        self._delivered: set[Packet] = set()  # at any time
        self._lost: dict[Packet, float] = {}  # and since when
        self._marks: dict[str, set[int]] = {}
        self._links: dict[str, int | None] = {}
        self._asked = 0.0
        self._looks = False  # whether a timer is set

    def faults(self) -> tuple[str, ...]:
        """Return a sentence for each family in which replies are lost."""
        now = self._asked = self._loop.now()
        if not self._looks:
            self._look()
        lost = [packet for packet, since in self._lost.items() if now - since >= GRACE]
        return tuple(
            f"this host does not take replies of {first.src} to {SPELLED[family]} clients for its own: a rule or route"
            " of local delivery is missing (l4proxy keep --dry-run)"
            for family in FAMILIES
            for first in [packet for packet in lost if packet.family == family][:1]
        )

    def descriptors(self) -> list[int]:
        """Return the file descriptor of the netlink socket."""
        return [self._kernel.fileno()] if self._kernel else []

    def _look(self):
        self._looks = self._loop.now() - self._asked < ASKED
        if self._looks:
            self._loop.call_later(INTERVAL, self._look)
            try:
                self._kernel = self._kernel or self._make_kernel()
                self._check(self._loop.now())
            except OSError:  # no netlink, or no answer: nothing is known
                self._lost.clear()

    def _check(self, now):
        number, config = self._serving()
        if number != self._number:
            self._number, self._packets = number, packets(config)
            self._delivered.intersection_update(self._packets)
            self._lost = {packet: since for packet, since in self._lost.items() if packet in self._delivered}
        count = min(MOST, len(self._packets))
        looked_at = [self._packets[(self._next + place) % len(self._packets)] for place in range(count)]
        self._next += count
        for packet in {*looked_at, *self._lost}:
            delivered = self._delivers(packet)
            if delivered:
                self._delivered.add(packet)
            if delivered is False and packet in self._delivered:
                self._lost.setdefault(packet, now)
            else:
                self._lost.pop(packet, None)

    def _delivers(self, packet):
        """Return whether the kernel takes a packet for this host's own; None: it has no link to the backend."""
        for _attempt in ("as remembered", "anew"):
            link = self._links.get(packet.src)
            if link == LOOPBACK:
                return None
            marks = self._marks.get(packet.family, ())
            asked = (packet.src, packet.dst, link, packet.protocol, packet.port)
            if link and any(self._kernel.delivers(*asked, mark) for mark in (*marks, 0)):
                return True
            self._links[packet.src] = self._kernel.interface_to(packet.src)
            self._marks[packet.family] = self._kernel.marks(socket_family_of(packet.src))
        return None if link is None else False


def packets(config) -> list[Packet]:
    """Return a packet of each backend to which the forwarder itself connects."""
    found = {
        Packet(family, address, HEALTH_SOURCE[family].format(config.proxy_id), service.protocol, backend.port)
        for service in (config.services if config else ())
        if not service.in_kernel
        for backend in service.backends
        for family in FAMILIES
        for address in [backend.address(family)]
        if address
    }
    return sorted(found)
