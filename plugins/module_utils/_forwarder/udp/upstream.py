# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The upstream sockets of UDP: which one a new flow gets, and with it its source port.

The same ladder as for TCP (source_address.py): the client's own port, a port of this proxy's slice, this host's own.
A shared lane is bound to a port of the slice on the wildcard address and spoofs whatever address it is told to, so a
few of them serve any number of clients; more are opened when one client has many flows to one backend. No two sockets
of this host have the same port: that is what makes (client, port, backend) unique among worker slots.
"""

from __future__ import annotations

import errno
import socket

from ..._shared.families import socket_family_of
from ..admission.source_address import ANY, KEPT, OWN
from ..loop.poller import ERROR, READ
from . import ancillary, udp_sockets
from .batch import Batch
from .flow_table import Lane

FEW = 4  # shared lanes that are opened in any case: each is a receive queue of its own

_TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
_NO_PORT = "no source port is left for this client and backend"


class Upstream(Lane):
    """A lane with its socket; ``owner`` is the (client, port) whose own port it has. ``udp`` is the udp.Udp."""

    def __init__(self, udp, sock, shared=True, owner=None):
        super().__init__(sock.family, sock.getsockname()[1], shared)
        self.sock = sock
        self.owner = owner
        self.send = sock.sendmsg
        self._udp = udp
        self._receive = sock.recvmsg_into
        self._destination = ancillary.DESTINATION[sock.family]
        self._batch = Batch()

    def ready(self, mask):
        """The poller's callback: pass a batch of replies on, as Inlet.ready() does with what clients send."""
        if mask & ERROR:
            self.read_errors()
        udp, flows, destination = self._udp, self.flows, self._destination
        buffers, view = udp.buffers, udp.view
        batch = self._batch
        for turn in range(batch.size):
            try:
                size, messages, _flags, address = self._receive(buffers, ancillary.SPACE)
            except BlockingIOError:
                batch.came_to(turn)
                return
            except OSError:  # what ICMP said about an earlier datagram
                self.read_errors()
                continue
            flow = flows.get((messages[0][2][destination], address))
            if flow is None:
                udp.count("datagrams_stray")  # too late, or from somebody who was not asked
                continue
            if not flow.answered:
                udp.answered(flow)
            flow.datagrams_to_client += 1
            flow.bytes_to_client += size
            try:
                if flow.to_client is None:
                    flow.door.sendto(view[:size], flow.client)
                else:
                    flow.door.send((view[:size],), flow.to_client, 0, flow.client)
            except OSError:
                udp.count("datagrams_dropped")
        batch.was_full()

    def read_errors(self):
        """Hand on what ICMP has said about datagrams of this socket."""
        while True:
            try:
                _data, messages, _flags, target = self.sock.recvmsg(0, ancillary.ERROR_SPACE, socket.MSG_ERRQUEUE)
            except OSError:  # EAGAIN: that was all
                return
            number, source = ancillary.read_error(self.family, messages)
            if number and number != errno.EMSGSIZE:  # the kernel has learned the path's MTU and will fragment
                self._udp.complained(self.flows.get((source, target)), number)


class Upstreams:
    """Opens and closes the lanes of ``udp``, a udp.Udp, at most ``most`` of them; ``ports`` is a source_address.Ports.

    ``workers`` share the ports. Lanes that are shared and those of one flow are sure of a quarter of all each.
    """

    def __init__(self, udp, ports, most, workers=1):
        self._udp = udp
        self._table = udp.table
        self._selector = udp.selector
        self._ports = ports
        self._most = most
        self._most_shared = most - most // 4
        self._most_ports = max(FEW, ports.count // workers)  # in each family
        self._by_owner = {}
        self.all = set()

    def prepare(self, families):
        """Have a shared lane in each of ``families``, so that others may not take all the ports before it is needed."""
        for family in families:
            if not self._table.lanes.get(family):
                try:
                    self.adopt(self._open_shared(family))
                except OSError:  # a session that needs one tries again, and its refusal says why there is none
                    pass

    def find(self, serving, flow, client, now):
        """Return (lane, step) for a new flow of ``client``, an address tuple, at ``serving``, an acceptor.Serving.

        Raise OSError.
        """
        family, source, count = _family_of_reply(flow), serving.source, serving.counters.count
        if source.keep and client[1]:  # 0 is no port to keep
            try:
                return self._kept(family, flow.reply, client, serving.service.name, now), KEPT
            except OSError as error:
                if error.errno not in _TAKEN and error.errno != errno.EACCES:
                    raise
                count("port not permitted" if error.errno == errno.EACCES else "port taken")
        try:
            return self._shared(family, flow.reply), ANY
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            count("no port left")
            if not source.may_be_own:
                return self._freed(family, flow.reply, now), ANY
        return self.own(flow, serving.service.name, now), OWN

    def own(self, flow, service, now):
        """Return a lane of the flow's own that sends from this host's address; the flow's ``reply`` is set to that."""
        self._room(service, now, of_itself=True)
        family = _family_of_reply(flow)
        sock = udp_sockets.lane(family, spoofing=False)
        try:
            sock.connect(flow.target)
            flow.reply = (socket.inet_pton(family, sock.getsockname()[0]), flow.target)
        except OSError:
            sock.close()
            raise
        return self.adopt(Upstream(self._udp, sock, shared=False))

    def _kept(self, family, reply, client, service, now):
        owner = client[:2]
        lane = self._by_owner.get(owner)
        if lane is not None:
            if reply in lane.flows:
                raise OSError(errno.EADDRINUSE, _NO_PORT)
            return lane
        self._room(service, now, of_itself=False)  # without a socket of its own there is still another port
        return self.adopt(Upstream(self._udp, udp_sockets.lane(family, *owner), shared=False, owner=owner))

    def _room(self, service, now, of_itself):
        """Have room for a lane of one flow of ``service``; raise OSError.

        A service that has its share ends a flow ``of_itself`` or gets none.
        """
        alone = self._table.alone
        if self._has_room(alone):
            return
        if of_itself or alone.payer(service) != service:
            flow = alone.next(service, now)
            if flow is not None:
                self._udp.make_room(flow)
        if not self._has_room(alone):
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)

    def _has_room(self, alone):
        return len(alone) < alone.most and len(self.all) < self._most

    def _shared(self, family, reply):
        table = self._table
        grow = self._may_grow(family)
        lane = table.place(family, reply, grow)
        if lane is not None and not (grow and len(table.lanes[family]) < FEW):
            return lane
        if grow:
            try:
                return self.adopt(self._open_shared(family))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            lane = lane or table.place(family, reply, False)
        if lane is None:
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)
        return lane

    def _may_grow(self, family):
        """Whether another shared lane may be opened."""
        lanes = self._table.lanes
        if len(self.all) >= self._most or len(lanes.get(family, ())) >= self._most_ports:
            return False
        return sum(map(len, lanes.values())) < self._most_shared

    def _freed(self, family, reply, now):
        """Return a shared lane of which another flow of this client to this backend has made room; raise OSError."""
        flow = self._table.quietest(family, reply, now)
        if flow is None:
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORT)
        lane = flow.lane
        self._udp.make_room(flow)
        return lane

    def _open_shared(self, family):
        taken = None
        for port in self._ports.candidates():
            try:
                return Upstream(self._udp, udp_sockets.lane(family, "", port, self._ports.option))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                taken = error
        raise taken

    def adopt(self, lane):
        """Take in a lane, opened here or handed over; returns it."""
        self.all.add(lane)
        if lane.shared:
            self._table.offer(lane)
        elif lane.owner:
            self._by_owner[lane.owner] = lane
        self._selector.register(lane.sock, READ, lane.ready)
        return lane

    def take_over(self, sock, record):
        """Return the lane of a socket another worker had; ``record`` as in handover.py."""
        sock.setblocking(False)
        owner = tuple(record["owner"]) if record["owner"] else None
        return self.adopt(Upstream(self._udp, sock, shared=record["shared"], owner=owner))

    def close(self, lane):
        """Close a lane without flows."""
        self.all.remove(lane)
        if lane.shared:
            self._table.withdraw(lane)
        elif lane.owner:
            del self._by_owner[lane.owner]
        self._selector.unregister(lane.sock)
        lane.sock.close()

    def tidy(self):
        """Close shared lanes that nobody uses beyond the FEW that are kept."""
        for lanes in self._table.lanes.values():
            for lane in [lane for lane in lanes[FEW:] if not lane.flows]:
                self.close(lane)


def _family_of_reply(flow):
    return socket_family_of(flow.target[0])
