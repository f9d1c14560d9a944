# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new worker does with the UDP sessions of its predecessors: it goes on with those that still have a place.

handover.py says how they are transferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._shared.families import family_of
from ..loop.poller import READ
from . import handover
from .flow_table import Flow

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from .server import UdpServer

LONGEST = 20.0  # seconds to wait for predecessors, which serve until all workers of the new generation have started


class Takeover:
    """Waits for what all ``predecessors`` (sockets) hand over, and then lets ``server`` read datagrams."""

    def __init__(self, server: UdpServer, predecessors: Iterable[socket.socket]) -> None:
        self._server = server
        self._waiting = {handover.Receiver(sock, self._received) for sock in predecessors}
        loop = server.loop
        for receiver in self._waiting:
            loop.poller.register(receiver.sock, READ, receiver.ready)
        if self._waiting:
            loop.timers.add(loop.now() + LONGEST, self._waited_too_long)
        else:
            server.set_receiving(True)

    def _received(self, receiver, document, socks):
        server = self._server
        server.loop.poller.unregister(receiver.sock)
        receiver.sock.close()
        self._waiting.discard(receiver)
        if document is not None:
            take_over(server, document, socks)
        if not self._waiting and not server.closed:
            server.set_receiving(True)

    def _waited_too_long(self):
        if self._waiting:
            self._server.loop.log.event("no sessions taken over", level="error", reason=f"no message for {LONGEST:g} s")
        for receiver in list(self._waiting):
            receiver.finish()


def take_over(server: UdpServer, document: dict, socks: Iterable[socket.socket]) -> None:
    """Go on with the sessions of a predecessor; close its upstream sockets whose sessions have no place here."""
    upstreams, places, taken = [], {}, 0
    for record, sock in zip(document["lanes"], socks):
        upstreams.append(server.upstreams.take_over(sock, record))
    for record in document["flows"]:
        key = record["door"], record["service"], record["backend"], tuple(record["target"])
        if key not in places:
            places[key] = find_place(server, *key)
        if places[key] is not None:
            taken += _continue_session(server, record, upstreams[record["lane"]], *places[key])
    for upstream in upstreams:
        if not upstream.shared and not upstream.flows:
            server.upstreams.close(upstream)
    server.loop.log.event("sessions taken over", sessions=taken, dropped=len(document["flows"]) - taken)


def find_place(server, name, service, backend_name, target):
    """Return (listener, Backends, index) for sessions of a predecessor; None where this config has no such place.

    ``name`` is the listener's, ``target`` the backend's address tuple; its address may have changed since.
    """
    listener = server.listeners.get(name)
    if listener is None or listener.service != service:
        return None
    backends = listener.runtime.backends.get(family_of(target[0]))
    for index, backend in enumerate(backends.backends if backends else ()):
        if (backend.name, backend.port_of(listener.listener)) == (backend_name, target[1]):
            return listener, backends, index
    return None


def _continue_session(server, record, upstream, listener, backends, index):
    """Enter a session of a predecessor; return whether its place was free."""
    client, client_key = handover.client_of(record)
    reply_key = bytes.fromhex(record["source"]), tuple(record["target"])
    if reply_key in upstream.flows or client_key in listener.flows:
        return False
    runtime = listener.runtime
    timeout = runtime.service.idle_timeout
    flow = Flow(client, client_key, reply_key, backends, index, timeout, server.loop.now())
    handover.restore(flow, record)
    flow.limiter = runtime.limiter
    if flow.limiter is not None:
        flow.limiter.adopt(client[0])
    backends.adopt(index)
    server.enter(flow, listener, upstream)
    runtime.counters.taken_over()
    return True
