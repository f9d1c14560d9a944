# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the supervisor asks a worker about its sessions, and which of them it makes it end.

A question may have a service, a backend (without a port: all ports of that host) and a client (a network); a session
must match all of them. An answer is {"count": sessions that match, "sessions": a list}.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any

from ..admin import top_clients
from ..admission.acl import Networks
from ..admission.limits import client_key
from ..config.backend_names import matches
from ..tcp.server import TcpServer
from ..udp.server import UdpServer

KILLED = "killed"  # the reason in the log
MOST_CLIENTS = 300  # in one answer, which has to fit into a message of the channel


class SessionRequests:
    """Answers for all sessions of a worker."""

    def __init__(self, tcp: TcpServer, udp: UdpServer) -> None:
        self._tcp = tcp
        self._udp = udp

    def oldest(self, question: dict) -> dict:
        """Answer with the oldest sessions, at most ``limit``."""
        found = self._matching(question)
        oldest = heapq.nsmallest(question["limit"], found, key=lambda session: session.started)
        now = self._tcp.loop.now()
        return {"count": len(found), "sessions": [session.summary(now) for session in oldest]}

    def clients(self, question: dict) -> dict:
        """Answer with the clients that have the most sessions or bytes (``by``): entries of admin/top_clients.py."""
        found = self._matching(question)
        entries = top_clients.greatest(_by_client(found, self._tcp.loop.now()), question["by"], MOST_CLIENTS)
        return {"count": len(found), "sessions": [{**one, "client": _shown(one["client"])} for one in entries]}

    def kill(self, question: dict) -> dict:
        """End the sessions that match, TCP with a reset."""
        relays = _select(self._tcp.sessions, question)
        flows = _select(self._udp.table.flows, question)
        for relay in relays:
            relay.abort(KILLED)
        for flow in flows:
            self._udp.end(flow, KILLED)
        return {"count": len(relays) + len(flows), "sessions": []}

    def _matching(self, question):
        return _select((*self._tcp.sessions, *self._udp.table.flows), question)


def _select(sessions: Iterable[Any], question: dict) -> list[Any]:
    """Return those of ``sessions``, relays or flows, that match a question."""
    service, backend = question.get("service"), question.get("backend")
    clients = Networks([question["client"]]) if question.get("client") is not None else None
    return [
        session
        for session in sessions
        if service in (None, session.service.name)
        and (backend is None or (session.backend is not None and matches(backend, session.backend.name)))
        and (clients is None or session.client_address[0] in clients)
    ]


def _by_client(sessions: Iterable[Any], now: float) -> Iterator[top_clients.Entry]:
    """Yield an entry for each client in each service; its ``client`` is one of its addresses."""
    found: dict[tuple, list] = {}
    for session in sessions:
        address = session.client_address[0]
        key = session.service.name, ":" in address, client_key(address)
        numbers = found.get(key)
        if numbers is None:
            numbers = found[key] = [address, now, 0, 0, 0]
        to_backend, to_client = session.bytes_so_far()
        numbers[1] = min(numbers[1], session.started)
        numbers[2] += 1
        numbers[3] += to_backend
        numbers[4] += to_client
    for (service, _is_ipv6, _key), (address, started, *sums) in found.items():
        duration = round(now - started, 6)
        yield {"service": service, "client": address, **dict(zip(top_clients.SUMS, sums)), "duration": duration}


def _shown(address: str) -> str:
    """Return an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
