# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The upstream sockets of UDP: which one a new flow gets, and with it its source port.

The steps are those of TCP (admission/source_address.py): the client's own port, a port of this proxy's slice, this
host's own address. A shared socket is bound to a port of the slice on the wildcard address, and spoofs the address that
each datagram names; so a few of them serve any number of clients. More are opened for a client with many flows to one
backend. No two sockets of this host have the same port, so (client, port, backend) is unique across the workers.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from ..._shared.families import socket_family_of
from ..admission.source_address import ANY, KEPT, OWN, TAKEN
from ..loop.batch import Batch
from ..loop.poller import ERROR, READ
from . import ancillary, udp_sockets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..admission.source_address import SourcePorts
    from ..backends.service_runtime import ServiceRuntime
    from .flow_table import Flow
    from .server import UdpServer

FEW = 4  # shared sockets of a family that are opened in any case: services have receive queues of their own
MOST_READ = 64  # datagrams of one socket in a turn; then the other sockets get their turn

_NO_PORT = "no source port is left for this client and backend"


class UpstreamSocket:
    """A socket to backends. ``flows`` are those that use it, by their reply_key.

    A ``shared`` one may be used by flows of any client, one that is ``alone`` by those of one client; ``owner`` is the
    (address, port) of the client whose own port it has. One that is neither was shared, until its port left the slice:
    the flows that it has go on, and it is closed after the last.
    """

    def __init__(self, server: UdpServer, sock: socket.socket, shared: bool = True, owner: tuple | None = None) -> None:
        self.sock = sock
        self.family = sock.family
        self.port = sock.getsockname()[1]
        self.shared = shared
        self.alone = not shared
        self.owner = owner
        self.flows: dict[tuple, Flow] = {}
        self.send = sock.sendmsg
        self._server = server
        self._receive = sock.recvmsg_into
        self._destination = ancillary.DESTINATION[sock.family]
        self._batch = Batch(MOST_READ)

    def ready(self, mask: int) -> None:
        """The poller's callback: send a batch of replies to the clients."""
        if mask & ERROR:
            self.read_errors()
        server, flows, destination = self._server, self.flows, self._destination
        buffers, view = server.buffers, server.view
        batch = self._batch
        for turn in range(batch.size):
            try:
                size, messages, _flags, address = self._receive(buffers, ancillary.SPACE)
            except BlockingIOError:
                batch.came_to(turn)
                return
            except OSError:  # an ICMP error about an earlier datagram
                self.read_errors()
                continue
            flow = flows.get((messages[0][2][destination], address))
            if flow is None:
                server.count("datagrams_stray")  # too late, or not from a backend of this client
                continue
            if not flow.answered:
                server.answered(flow)
            flow.datagrams_to_client += 1
            flow.bytes_to_client += size
            try:
                if flow.to_client is None:
                    flow.listener.sendto(view[:size], flow.client)
                else:
                    flow.listener.send((view[:size],), flow.to_client, 0, flow.client)
            except OSError:
                server.count("datagrams_dropped")
        batch.was_full()

    def read_errors(self) -> None:
        """Report the ICMP errors about datagrams of this socket to the server."""
        while True:
            try:
                _data, messages, _flags, target = self.sock.recvmsg(0, ancillary.ERROR_SPACE, socket.MSG_ERRQUEUE)
            except OSError:  # EAGAIN: the queue is empty
                return
            number, source = ancillary.read_error(self.family, messages)
            if number and number != errno.EMSGSIZE:  # the kernel has noted the path's MTU and will fragment
                self._server.icmp_error(self.flows.get((source, target)), number)

    def abort(self, _reason: str) -> None:
        """A defect costs the datagram that met it, and nothing else (event_loop.py)."""


class UpstreamSockets:
    """Opens and closes the upstream sockets of a server, at most ``most`` of them.

    ``workers`` share the ``ports``. A quarter of ``most`` is reserved for shared sockets, and a quarter for sockets of
    one flow.
    """

    def __init__(self, server: UdpServer, ports: SourcePorts, most: int, workers: int = 1) -> None:
        self._server = server
        self._table = server.table
        self._workers = workers
        self._most = 0
        self._by_owner: dict[tuple, UpstreamSocket] = {}
        self.all: set[UpstreamSocket] = set()
        self.bound(ports, most)

    def bound(self, ports: SourcePorts, most: int) -> None:
        """Open the next sockets on these ports, and at most ``most`` sockets; new flows use no other ports."""
        self._ports = ports
        self._most = most
        self._most_shared = most - most // 4
        self._most_ports = max(FEW, ports.count // self._workers)  # shared sockets in each family
        for upstream in [one for shared in self._table.shared.values() for one in shared if one.port not in ports]:
            self._table.remove_shared(upstream)
            upstream.shared = False
            if not upstream.flows:
                self.close(upstream)

    def prepare(self, families: Iterable[int]) -> None:
        """Open a shared socket in each family, so that one is there once other programs have taken all ports."""
        for family in families:
            if not self._table.shared.get(family):
                try:
                    self.adopt(self._open_shared(family))
                except OSError:  # a session that needs one tries again, and its refusal says why there is none
                    pass

    def find(self, runtime: ServiceRuntime, flow: Flow, client: tuple, now: float) -> tuple[UpstreamSocket, str]:
        """Return (upstream socket, step) for a new flow of ``client``, an address tuple; raise OSError."""
        family, source, service = _family(flow), runtime.source, runtime.service.name
        if source.keep and client[1]:  # port 0 cannot be kept
            try:
                return self._with_kept_port(family, flow.reply_key, client, service, now), KEPT
            except OSError as error:
                source.after_kept(error)
        try:
            return self._shared_socket(family, flow.reply_key, hash(service)), ANY
        except OSError as error:
            source.after_any(error)
            if not source.allows_own:
                return self._evict_for_shared(family, flow.reply_key, now), ANY
        return self.with_own_address(flow, service, now), OWN

    def with_own_address(self, flow: Flow, service: str, now: float) -> UpstreamSocket:
        """Return a new socket for this flow alone that sends from this host's address; raise OSError.

        The flow's reply_key changes to that address.
        """
        self._make_room(service, now, may_evict_own=True)
        family = _family(flow)
        sock = udp_sockets.upstream(family, spoofing=False)
        try:
            sock.connect(flow.target)
            flow.reply_key = (socket.inet_pton(family, sock.getsockname()[0]), flow.target)
        except OSError:
            sock.close()
            raise
        return self.adopt(UpstreamSocket(self._server, sock, shared=False))

    def _with_kept_port(self, family, reply_key, client, service, now):
        """Return a socket with the client's own port."""
        owner = client[:2]
        upstream = self._by_owner.get(owner)
        if upstream is not None:
            if reply_key in upstream.flows:
                raise OSError(errno.EADDRINUSE, _NO_PORT)
            return upstream
        self._make_room(service, now, may_evict_own=False)  # this flow can have another port
        sock = udp_sockets.upstream(family, *owner)
        return self.adopt(UpstreamSocket(self._server, sock, shared=False, owner=owner))

    def _make_room(self, service, now, may_evict_own):
        """Make room for a socket of one flow of ``service``; raise OSError.

        A service that has its share gets room only if one of its own flows may be ended (``may_evict_own``).
        """
        alone = self._table.alone
        if self._has_room(alone):
            return
        if may_evict_own or alone.loser(service) != service:
            flow = alone.flow_to_evict(service, now)
            if flow is not None:
                self._server.evict(flow)
        if not self._has_room(alone):
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)

    def _has_room(self, alone):
        return len(alone) < alone.most and len(self.all) < self._most

    def _shared_socket(self, family, reply_key, place):
        table = self._table
        may_open = self._may_open(family)
        upstream = table.find_shared(family, reply_key, may_open, place)
        if upstream is not None and not (may_open and len(table.shared[family]) < FEW):
            return upstream
        if may_open:
            try:
                return self.adopt(self._open_shared(family))
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            upstream = upstream or table.find_shared(family, reply_key, False, place)
        if upstream is None:
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)
        return upstream

    def _may_open(self, family):
        """Whether another shared socket may be opened."""
        shared = self._table.shared
        if len(self.all) >= self._most or len(shared.get(family, ())) >= self._most_ports:
            return False
        return sum(map(len, shared.values())) < self._most_shared

    def _evict_for_shared(self, family, reply_key, now):
        """End a flow of this client to this backend, and return its shared socket; raise OSError."""
        flow = self._table.flow_to_evict(family, reply_key, now)
        if flow is None:
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)
        upstream = flow.upstream
        self._server.evict(flow)
        return upstream

    def _open_shared(self, family):
        taken = OSError(errno.EADDRNOTAVAIL, _NO_PORT)
        for port in self._ports.candidates():
            try:
                return UpstreamSocket(self._server, udp_sockets.upstream(family, "", port, self._ports.option))
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                taken = error
        raise taken or OSError(errno.EADDRNOTAVAIL, _NO_PORT)

    def adopt(self, upstream: UpstreamSocket) -> UpstreamSocket:
        """Register a socket that was opened here or handed over; return it."""
        self.all.add(upstream)
        if upstream.shared:
            self._table.add_shared(upstream)
        elif upstream.owner:
            self._by_owner[upstream.owner] = upstream
        self._server.loop.poller.register(upstream.sock, READ, upstream.ready)
        return upstream

    def take_over(self, sock: socket.socket, record: dict) -> UpstreamSocket:
        """Return the UpstreamSocket of a socket that another worker had; ``record`` as in handover.py.

        New flows do not use it if its port is not in the slice: it may be in that of another proxy by now.
        """
        sock.setblocking(False)
        owner = tuple(record["owner"]) if record["owner"] else None
        upstream = UpstreamSocket(self._server, sock, shared=record["shared"], owner=owner)
        upstream.shared = upstream.shared and upstream.port in self._ports
        return self.adopt(upstream)

    def close(self, upstream: UpstreamSocket) -> None:
        """Close a socket that has no flows."""
        self.all.remove(upstream)
        if upstream.shared:
            self._table.remove_shared(upstream)
        elif upstream.owner:
            del self._by_owner[upstream.owner]
        self._server.loop.poller.unregister(upstream.sock)
        upstream.sock.close()

    def tidy(self) -> None:
        """Close shared sockets that no flow uses, but for FEW in each family."""
        for upstreams in self._table.shared.values():
            for upstream in [upstream for upstream in upstreams[FEW:] if not upstream.flows]:
                self.close(upstream)


def _family(flow):
    return socket_family_of(flow.target[0])
