# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections of kernel services conntrack must forget, because it pins each to the server it began with. Pure.

Its next packet then finds a backend again. UDP: if the backend is down. TCP: if the backend is down and has not
answered, and with ``on_down: reset`` also if it has, because the next backend, or this host, answers with a reset. In
both protocols also what goes to no backend: it began while the table was missing, or before the backend was removed.
Connections to a backend that is drained, or that retires, stay.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable

from ..document.kernel_service import KernelService
from ..document.model import IP_PROTOCOLS
from ..host.backend_states import DOWN, States
from ..netlink.conntrack_entries import Entry
from ..netlink.messages import AF

# Protocol, packed address and port; packed address and port.
Place = tuple[int, bytes, int]
Peer = tuple[bytes, int]


class ServiceConnections:
    """The connections of these services, with what is known of their backends."""

    def __init__(self, services: Iterable[KernelService], states: States):
        self._services: dict[Place, KernelService] = {}
        self._servers: dict[Place, dict[Peer, str]] = {}
        self._down: dict[Place, set[Peer]] = {}
        # Whose connections may be stale, as far as the documents tell: backends that are down, and this host itself.
        self.suspects: set[Place] = set()
        # A live service and retiring ones, which have servers that it has lost, may have one place.
        for service in sorted(services, key=lambda service: service.retiring):
            place = (IP_PROTOCOLS[service.protocol], _packed(service.family, service.address), service.port)
            self._services.setdefault(place, service)
            servers = self._servers.setdefault(place, {})
            for one in service.servers:
                servers.setdefault((_packed(service.family, one.address), one.port), one.name)
            if not service.retiring:
                self._add_down(place, service, states)

    def _add_down(self, place: Place, service: KernelService, states: States) -> None:
        said, serving = states.of_service(service), states.serving(service)
        down = [one for one in service.servers if said[one.name] == DOWN and one.name not in serving]
        self._down[place] = {(_packed(service.family, one.address), one.port) for one in down}
        self.suspects |= {place, *((place[0], *peer) for peer in self._down[place])}

    def is_stale(self, entry: Entry) -> bool:
        """Whether conntrack must forget a connection."""
        place, peer = (entry.protocol, entry.address, entry.port), (entry.server, entry.server_port)
        service = self._services.get(place)
        if service is None or service.retiring:
            return False
        is_down = peer in self._down[place]
        if not is_down and peer in self._servers[place]:
            return False
        if entry.protocol == IP_PROTOCOLS["udp"] or not entry.replied:
            return True
        return is_down and service.on_down == "reset" and not entry.has_ended

    def names_of(self, entry: Entry) -> tuple[KernelService | None, str | None]:
        """The service of a connection and the name of its backend; None if it has none that is declared."""
        place = (entry.protocol, entry.address, entry.port)
        return self._services.get(place), self._servers.get(place, {}).get((entry.server, entry.server_port))

    def open(self, entries: Iterable[Entry]) -> tuple[Counter[tuple[str, str]], list[Entry]]:
        """The number of open connections by names of service and backend; and the stale ones."""
        counts: Counter[tuple[str, str]] = Counter()
        stale = []
        for entry in entries:
            service, backend = self.names_of(entry)
            if self.is_stale(entry):
                stale.append(entry)
            elif service and backend and not entry.has_ended:
                counts[service.name, backend] += 1
        return counts, stale


def _packed(family: str, address: str) -> bytes:
    return socket.inet_pton(AF[family], address)
