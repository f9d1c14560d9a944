# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A listening UDP socket of a worker: it reads datagrams of clients in batches and sends them to the backends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..loop.batch import Batch
from ..loop.poller import READ
from . import ancillary

if TYPE_CHECKING:
    import socket

    from ..backends.service_runtime import ServiceRuntime
    from ..config.service import Listener
    from .flow_table import Flow
    from .server import UdpServer

MOST_READ = 64  # datagrams of one socket in a turn; then the other sockets get their turn


class UdpListener:
    """One listening socket of ``runtime``, the supervisor's ``name`` for it, and the worker slot it belongs to.

    A config that is taken in place makes another one for the same socket, with the same ``flows``; those that cannot
    move keep this one.
    """

    def __init__(
        self, server: UdpServer, sock: socket.socket, name: str, slot: int, runtime: ServiceRuntime, listener: Listener
    ) -> None:
        self.sock = sock
        self.name = name
        self.slot = slot
        self.runtime = runtime
        self.listener = listener
        self.service = runtime.service.name
        #: Sessions of its clients. The key is the client's address tuple; on a wildcard address, where one client may
        #: write to several addresses of this host, it is (address tuple, packed address that the client wrote to).
        self.flows: dict[tuple, Flow] = {}
        self.wildcard = listener.wildcard
        self.send = sock.sendmsg
        self.sendto = sock.sendto
        self._server = server
        self._begin = server.begin_logged if runtime.service.log_start else server.begin
        self._listening = False
        self._batch = Batch(MOST_READ)
        self._destination = ancillary.DESTINATION[sock.family]
        self._receive = self._receive_with_destination if self.wildcard else partial(sock.recvfrom_into, server.buffer)

    def follow(self, other: UdpListener) -> None:
        """Take the socket and the flows of ``other``, of an earlier config."""
        self.flows, self._batch = other.flows, other._batch
        self._listening, other._listening = other._listening, False
        if self._listening:
            self._server.loop.poller.replace(self.sock.fileno(), self.ready)

    def close(self) -> None:
        """Read no more, and close the socket."""
        if self._listening:
            self._listening = False
            self._server.loop.poller.unregister(self.sock)
        self.sock.close()

    def update(self) -> None:
        """Register with the poller, or leave it, as the server wants it now."""
        server = self._server
        wanted = server.receiving and self.slot in server.slots
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            server.loop.poller.register(self.sock, READ, self.ready)
        else:
            server.loop.poller.unregister(self.sock)

    def _receive_with_destination(self):
        """Read the next datagram; return (bytes, key of its client in ``flows``)."""
        size, messages, _flags, client = self.sock.recvmsg_into(self._server.buffers, ancillary.SPACE)
        return size, (client, messages[0][2][self._destination])

    def ready(self, _mask: int) -> None:
        """The poller's callback: forward a batch of datagrams."""
        server, flows, view, receive = self._server, self.flows, self._server.view, self._receive
        batch = self._batch
        for turn in range(batch.size):
            try:
                size, client_key = receive()
            except BlockingIOError:
                batch.came_to(turn)
                return
            except OSError:  # out of memory: this datagram is lost
                continue
            flow = flows.get(client_key)
            if flow is None:
                flow = self._begin(self, client_key)
                if flow is None:
                    continue
            flow.datagrams_to_backend += 1
            flow.bytes_to_backend += size
            try:
                flow.upstream.send((view[:size],), flow.to_backend, 0, flow.target)
            except OSError as error:
                server.not_sent(flow, view[:size], error)
        batch.was_full()

    def abort(self, _reason: str) -> None:
        """A defect costs the datagram that met it, and nothing else (event_loop.py)."""
