# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections of kernel services conntrack must forget, because it pins each to the server it began with. Pure.

Its next packet then finds a backend again. UDP: if the backend is down. TCP: if the backend is down and has not
answered, and with ``on_down: reset`` also if it has, because the next backend, or this host, answers with a reset. In
both protocols also what goes to no backend: it began while the table was missing, or before the backend was removed.
Connections to a backend that is drained, and those of a retiring service, stay.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable

from ..document.kernel_service import KernelService, Server
from ..document.model import IP_PROTOCOLS
from ..host.backend_states import DOWN, States
from ..netlink.conntrack_entries import Entry
from ..netlink.messages import AF

# Protocol, packed address and port of a service; packed address and port of a server.
Place = tuple[int, bytes, int]
Peer = tuple[bytes, int]


class ServiceConnections:
    """The connections of these services, with what is known of their backends."""

    def __init__(self, services: Iterable[KernelService], states: States):
        self._services: dict[Place, KernelService] = {}
        self._servers: dict[Place, dict[Peer, Server]] = {}
        self._down: dict[Place, set[Peer]] = {}
        # (family, address): whose connections may be stale, as far as the documents tell.
        self.suspects: set[tuple[str, str]] = set()
        for service in services:
            place = (IP_PROTOCOLS[service.protocol], _packed(service.family, service.address), service.port)
            servers = {(_packed(service.family, one.address), one.port): one for one in service.servers}
            said, serving = states.of_service(service), states.serving(service)
            down = [one for one in service.servers if said[one.name] == DOWN and one.name not in serving]
            self._services[place], self._servers[place] = service, servers
            self._down[place] = {(_packed(service.family, one.address), one.port) for one in down}
            if not service.retiring:
                addresses = {service.address, *(one.address for one in down)}
                self.suspects |= {(service.family, address) for address in addresses}

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

    def backend_of(self, entry: Entry) -> tuple[KernelService, Server] | None:
        """The service and the backend of a connection; None if it is not ours, or goes to no backend."""
        place = (entry.protocol, entry.address, entry.port)
        server = self._servers.get(place, {}).get((entry.server, entry.server_port))
        return (self._services[place], server) if server else None

    def open(self, entries: Iterable[Entry]) -> tuple[Counter[tuple[str, str]], list[Entry]]:
        """The number of open connections by names of service and backend; and the stale ones."""
        counts: Counter[tuple[str, str]] = Counter()
        stale = []
        for entry in entries:
            found = self.backend_of(entry)
            if self.is_stale(entry):
                stale.append(entry)
            elif found and not entry.has_ended:
                counts[found[0].name, found[1].name] += 1
        return counts, stale


def _packed(family: str, address: str) -> bytes:
    return socket.inet_pton(AF[family], address)
