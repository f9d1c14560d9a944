# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends that health checks have found down: a worker ends their open sessions, if the service has on_down: reset.

{"down": [[service, backend, family, address]]}: the checker sends it to the supervisor (backends/health_checker.py),
and the supervisor to all workers, also to those of old generations. Only the checker knows that a state has changed, so
nothing else can end sessions: neither a reload nor a checker that is replaced or hangs. An attempt to connect is not
ended: it goes on to the next backend. Sessions go on at the old address of a backend that has got another one: what is
known of one address does not count for those at the other.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from ..admission.refusal import BACKEND_DOWN
from ..tcp.state_table import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..tcp.server import TcpServer
    from ..udp.server import UdpServer


def end_sessions(tcp: TcpServer, udp: UdpServer, down: Iterable) -> None:
    """End all sessions of the backends in ``down``: TCP with a reset to both ends, UDP so that another one follows."""
    targets = defaultdict(set)
    for *backend, address in down:
        targets[tuple(backend)].add(address)
    relays = [
        relay
        for relay in tcp.sessions
        if relay.upstream is not None
        and relay.state is not State.CONNECTING
        and _address(relay) in targets.get(_backend(relay), ())
    ]
    flows = [flow for flow in udp.table.flows if flow.target[0] in targets.get(_backend(flow), ())]
    for relay in relays:
        relay.runtime.counters.ended("backend_down")
        tcp.loop.call(partial(relay.abort, BACKEND_DOWN))
    for flow in flows:
        flow.listener.runtime.counters.ended("backend_down")
        udp.end(flow, BACKEND_DOWN)
    if relays or flows:
        tcp.loop.log.event("sessions of a backend that is down ended", level="warning", sessions=len(relays + flows))


def _backend(session):
    return session.service.name, session.backend.name, session.backends.family


def _address(relay):
    """Return the address of the backend, None if the connection to it has just ended."""
    try:
        return relay.upstream.sock.getpeername()[0]
    except OSError:
        return None
