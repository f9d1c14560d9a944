# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A line for each connection of a kernel service with ``log: all``, when conntrack has forgotten it.

The fields have the names of the forwarder's lines. ``bytes_...`` include IP, TCP and UDP headers; ``ended`` is not
known. TCP connections are forgotten up to two minutes after their end: ``duration`` has that time in it.

Events are read at most every INTERVAL, many at once, because each time costs as much as several lines. What the kernel
drops because they are read too slowly is counted (``lost``), and so is what the journal does not take (``dropped``).
"""

from __future__ import annotations

import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..._shared import line_output
from ..._shared.endpoints import join_endpoint
from ..document.kernel_service import KernelService
from ..netlink import conntrack_entries, socket_filter
from ..netlink.conntrack_entries import End
from ..netlink.messages import HEADER, address_text
from .monitor import NETLINK_NETFILTER, listen
from .service_connections import ServiceConnections

INTERVAL = 0.2  # seconds
# Bytes of the kernel's receive buffer: about 10,000 events.
BUFFER = 8 << 20
# Events of one turn. 2,000 take about 30 ms.
MOST_EVENTS = 2000
# Lines that wait while the journal is slow.
MOST_WAITING = 10000


def record(end: End, service: KernelService, backend: str | None, now: float) -> dict[str, Any]:
    """The fields of a line; ``now`` is in seconds of the epoch."""
    entry, client = end.entry, address_text(end.entry.client)
    fields = {
        "event": "connection" if service.protocol == "tcp" else "session",
        "level": "info",
        "time": round(now, 3),
        "service": service.name,
        "listener": join_endpoint(service.address, service.port),
        "client": client,
        "client_port": entry.client_port,
        "backend": backend,
        "source": client,
    }
    unit = "packets" if service.protocol == "tcp" else "datagrams"
    for name, numbers in ((unit, end.packets), ("bytes", end.size)):
        if numbers is not None:
            fields[f"{name}_to_backend"], fields[f"{name}_to_client"] = numbers
    if end.seconds is not None:
        fields["duration"] = round(end.seconds, 6)
    return fields


class Events:
    """The ends of connections to these addresses (text). OSError if the kernel has no conntrack."""

    def __init__(self, addresses: set[str]) -> None:
        self._socket = listen(NETLINK_NETFILTER, (conntrack_entries.NFNLGRP_CONNTRACK_DESTROY,), BUFFER)
        self._addresses: set[str] = set()
        self.lost = 0
        self.watch(addresses)

    @property
    def descriptor(self) -> int:
        return self._socket.fileno()

    def watch(self, addresses: set[str]) -> None:
        if addresses != self._addresses:
            self._addresses = addresses
            socket_filter.attach(self._socket, socket_filter.connections_to(addresses))

    def read(self) -> list[End]:
        """What has ended since the last call, at most MOST_EVENTS."""
        found: list[End] = []
        while len(found) < MOST_EVENTS:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            end = conntrack_entries.end_of(data[HEADER.size :])
            if end:
                found.append(end)
        return found

    def close(self) -> None:
        self._socket.close()


class Lines:
    """Writes JSON lines to a descriptor, and never waits for its reader: a slow journal must not stop the keeper."""

    def __init__(self, descriptor: int = 1) -> None:
        self._waiting: deque[bytes] = deque()
        self.dropped = 0
        self._write = line_output.non_blocking_writer(descriptor)

    def add(self, fields: dict[str, Any]) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
        else:
            self._waiting.append(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    def flush(self) -> bool:
        """Write as many as the reader takes; whether that was all."""
        return line_output.write_lines(self._waiting, self._write)


class SessionLog:
    """The lines of the services that want them. ``descriptor`` is where they go."""

    def __init__(self, descriptor: int = 1, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._connections: ServiceConnections | None = None
        self._events: Events | None = None
        self._lines = Lines(descriptor)
        self._lost = 0

    @property
    def descriptor(self) -> int | None:
        """Readable when a connection has ended; None if no service wants lines."""
        return self._events.descriptor if self._events else None

    @property
    def missing(self) -> tuple[int, int]:
        """How often the kernel dropped events, and how many lines were dropped."""
        return (self._lost + (self._events.lost if self._events else 0), self._lines.dropped)

    def follow(self, services: Iterable[KernelService], connections: ServiceConnections) -> None:
        """From now on write lines for these services. OSError if that is not possible."""
        self._connections = connections
        addresses = {service.address for service in services if service.log == "all"}
        if not addresses:
            self.close()
        elif self._events:
            self._events.watch(addresses)
        else:
            self._events = Events(addresses)

    def write(self) -> bool:
        """Write a line for each connection that has ended; whether that were all."""
        ends = self._events.read() if self._events else []
        for end in ends:
            service, backend = self._connections.names_of(end.entry) if self._connections else (None, None)
            if service and service.log == "all":
                self._lines.add(record(end, service, backend, self._clock()))
        return self._lines.flush() and len(ends) < MOST_EVENTS

    def close(self) -> None:
        if self._events:
            self._lost += self._events.lost
            self._events.close()
            self._events = None
