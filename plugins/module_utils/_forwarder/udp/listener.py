# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP in a worker: sessions begin with a client's first datagram and end when nothing moves for ``idle_timeout``.

One buffer serves all sockets, for a datagram is passed on before the next one is read. What a session needs for that,
the ancillary data among it, is made once when it begins. Nothing is queued here: a datagram the kernel does not take
is dropped and counted, as a router would do.
"""

from __future__ import annotations

import socket
from functools import partial

from ..._shared.families import IPV4, IPV6, socket_family_of
from ..admission.limits import PER_SERVICE
from ..admission.refusal import Refusal
from ..admission.source_address import OWN
from ..backends.balancer import SKIPPED, SKIPPED_ALONE
from ..loop import sockets
from ..loop.poller import READ
from . import ancillary, handover
from .batch import Batch
from .eviction import MADE_ROOM
from .flow_table import IDLE, Door, Flow, Table, interval
from .upstream import Upstreams

LARGEST = 65536  # bytes; a datagram has at most 65,507 over IPv4 and 65,527 over IPv6
REFUSALS_LOGGED = 10.0  # seconds between two lines about refusals for one reason; each is counted


class Refused(Exception):
    """A client is not served; ``refusal`` says why."""

    def __init__(self, refusal):
        super().__init__(refusal.text)
        self.refusal = refusal


class Inlet(Door):
    """A listening socket: ``name`` is the supervisor's for it, ``slot`` the worker slot it is of."""

    def __init__(self, udp, sock, name, slot, serving, listener):
        super().__init__(serving.service.name)
        self.sock = sock
        self.name = name
        self.slot = slot
        self.serving = serving
        self.listener = listener
        self.wide = listener.wildcard
        self.send = sock.sendmsg
        self.sendto = sock.sendto
        self._udp = udp
        self._listening = False
        self._batch = Batch()
        self._destination = ancillary.DESTINATION[sock.family]
        self._next = self._next_with_destination if self.wide else partial(sock.recvfrom_into, udp.buffer)

    def update(self):
        """Have the poller report datagrams exactly while they are wanted."""
        wanted = self._udp.receiving and self.slot in self._udp.worker.slots
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            self._udp.selector.register(self.sock, READ, self.ready)
        else:
            self._udp.selector.unregister(self.sock)

    def _next_with_destination(self):
        """Return (size, (client, address it wrote to)) of the next datagram."""
        size, messages, _flags, client = self.sock.recvmsg_into(self._udp.buffers, ancillary.SPACE)
        return size, (client, messages[0][2][self._destination])

    def ready(self, _mask):
        """The poller's callback: pass a batch of datagrams on."""
        udp, flows, view, following = self._udp, self.flows, self._udp.view, self._next
        batch = self._batch
        for turn in range(batch.size):
            try:
                size, origin = following()
            except BlockingIOError:
                batch.came_to(turn)
                return
            except OSError:  # short of memory: this datagram is lost
                continue
            flow = flows.get(origin)
            if flow is None:
                flow = udp.begin(self, origin)
                if flow is None:
                    continue
            flow.datagrams_to_backend += 1
            flow.bytes_to_backend += size
            try:
                flow.lane.send((view[:size],), flow.to_backend, 0, flow.target)
            except OSError as error:
                udp.not_sent(flow, view[:size], error)
        batch.was_full()


class Udp:
    """All UDP of a worker.Worker; ``ports`` is a source_address.Ports, ``most_lanes`` bounds the upstream sockets."""

    def __init__(self, worker, ports, most_lanes, workers=1):
        self.worker = worker
        self.selector = worker.selector
        self.count = worker.count
        self.buffer = bytearray(LARGEST)
        self.buffers = (self.buffer,)
        self.view = memoryview(self.buffer)
        self.table = Table(most_alone=most_lanes - most_lanes // 4)
        self.upstreams = Upstreams(self, ports, most_lanes, workers)
        self.inlets = {}  # by name
        self.receiving = False
        self.next_look = 0.0
        self._interval = interval([])
        self._refusals_logged = {}  # (service, reason) -> when

    def listen(self, sock, name, slot, serving, listener):
        """Have a socket for clients of ``serving``, an acceptor.Serving; datagrams are read once set_receiving()."""
        self.table.serve(serving.service.name)
        self.inlets[name] = Inlet(self, sock, name, slot, serving, listener)
        self._interval = min(self._interval, interval([serving.service.idle_timeout]))

    def set_receiving(self, on):
        """Start or stop reading what clients send; it waits in the sockets meanwhile."""
        self.receiving = on
        if on:
            families = {family for inlet in self.inlets.values() for family in inlet.serving.groups}
            self.upstreams.prepare(socket.AF_INET if family == IPV4 else socket.AF_INET6 for family in families)
        self.update()

    def update(self):
        """The slots this worker serves may have changed."""
        for inlet in self.inlets.values():
            inlet.update()

    # -- the beginning of a session --------------------------------------------------------------------------------

    def begin(self, door, origin):
        """Return the Flow of a client that is new at a door, None when it is refused: nothing is answered then."""
        serving, client = door.serving, origin[0] if door.wide else origin
        now = self.worker.now()
        try:
            self._admit(serving, client[0], now)
        except Refused as refused:
            self._refuse(serving, client, refused)
            return None
        try:
            flow = self._open(door, origin, client, now)
        except Refused as refused:
            if serving.guarded and serving.gate is not None:
                serving.gate.leave(client[0])
            self._refuse(serving, client, refused)
            return None
        serving.counters.began()
        return flow

    def _admit(self, serving, address, now):
        if not serving.guarded:
            return
        if serving.gate is not None and serving.gate.full:
            raise Refused(PER_SERVICE)
        refusal = serving.refusal(address, now)
        if refusal:
            raise Refused(refusal)

    def _open(self, door, origin, client, now):
        """Choose a backend and a source for a client that was admitted."""
        serving = door.serving
        backends, hidden, itself = serving.group_of(client[0], self.worker.own_addresses)
        if hidden and not serving.source.may_be_own:
            serving.counters.count("refused")
            raise Refused(hidden)
        index = backends.next(client[0], itself, now)
        if index is None:
            index, hidden = serving.last_resort(backends, itself, client[0], itself, now)
            if index is None:
                raise Refused(hidden)
        backend = backends.backends[index]
        target = address_tuple(backend.address(backends.family), backend.port_of(door.listener))
        reply = packed(client[0].partition("%")[0]), target
        flow = Flow(client, origin, reply, backends, index, serving.service.idle_timeout, now)
        name = serving.service.name
        self._keep_within_bound(name, now)
        try:
            if hidden:
                lane, flow.step = self.upstreams.own(flow, name, now), OWN
            else:
                lane, flow.step = self.upstreams.find(serving, flow, client, now)
        except OSError as error:
            backends.release(index)
            backends.failed(client[0], index, error.errno, now, False)
            raise Refused(Refusal("connect_failed", error.strerror or sockets.describe(error))) from None
        serving.counters.count(flow.step)
        flow.admitted = serving.gate is not None
        self._enter(flow, door, lane)
        return flow

    def _keep_within_bound(self, service, now):
        """Have sessions make room where a worker has all it may have: up to two, for it may have taken over more."""
        flows = self.table.flows
        for _flow in range(min(2, len(flows) - flows.most + 1)):
            self.make_room(flows.next(service, now))

    def make_room(self, flow):
        """End a session so that a new one has a place."""
        service, now = flow.service, self.worker.now()
        flow.door.serving.counters.made_room()
        key = service.name, MADE_ROOM
        if service.log != "none" and self._may_log(key, now):
            self.worker.log.event("sessions make room", level="warning", service=service.name)
        self.end(flow, MADE_ROOM)

    def _may_log(self, key, now):
        """Whether a line about ``key`` may be written: the last one was not a moment ago."""
        due = now - self._refusals_logged.get(key, -REFUSALS_LOGGED) >= REFUSALS_LOGGED
        if due:
            self._refusals_logged[key] = now
        return due

    def _enter(self, flow, door, lane):
        flow.to_backend = ancillary.leaving_from(flow.reply[0]) if lane.shared else ()
        flow.to_client = ancillary.leaving_from(flow.origin[1]) if door.wide else None
        self.table.enter(flow, door, lane)

    def _refuse(self, serving, client, refused):
        """Count a datagram that begins no session, and say so unless the same was said a moment ago."""
        serving.counters.refused(refused.refusal.cause)
        if serving.service.log == "none":
            return
        key = serving.service.name, refused.refusal.text
        if self._may_log(key, self.worker.now()):
            fields = {"service": key[0], "client": client[0], "reason": key[1]}
            self.worker.log.event("datagram refused", level="warning", **fields)

    # -- its course ------------------------------------------------------------------------------------------------

    def answered(self, flow):
        """The first reply of a session has come: its backend is well."""
        flow.answered = True
        now = self.worker.now()
        if flow.backends.connected(flow.client[0], flow.index, now - flow.started, now):
            self._log_health(flow, "backend answers again")

    def complained(self, flow, number):
        """ICMP says that a datagram of ``flow`` (None: it is over) did not arrive: the next one goes elsewhere."""
        if flow is None:
            return
        reason, client, now = sockets.describe_errno(number), flow.client[0], self.worker.now()
        is_served = partial(self.table.serves_others, flow, now)
        event = flow.backends.failed(client, flow.index, number, now, True, is_served)
        if event == SKIPPED_ALONE and flow.service.log != "none":
            self._log_health(flow, event, level="warning", client=client, reason=reason)
        elif event == SKIPPED:
            self._log_health(flow, event, level="warning", reason=reason)
        self.end(flow, reason)

    def not_sent(self, flow, data, error):
        """The kernel did not take a datagram; ``error`` may be what ICMP said about an earlier one, of any session."""
        if not isinstance(error, BlockingIOError):
            flow.lane.read_errors()
            if flow.door.flows.get(flow.origin) is not flow:
                return  # the earlier one was its own
            try:
                flow.lane.send((data,), flow.to_backend, 0, flow.target)
                return
            except OSError:
                pass
        self.count("datagrams_dropped")

    def _log_health(self, flow, event, **fields):
        family = IPV6 if ":" in flow.target[0] else IPV4
        self.worker.log.event(event, service=flow.service.name, backend=flow.backend.name, family=family, **fields)

    # -- its end ---------------------------------------------------------------------------------------------------

    def look(self, now):
        """End the sessions in which nothing moves, and close upstream sockets nobody needs."""
        self.next_look = now + self._interval
        for flow in self.table.idle(now):
            # A backend that only listens never answers; that nothing came back of a whole session speaks for it.
            if not flow.answered and flow.backends.health.succeeded(flow.client[0], flow.index):
                self._log_health(flow, "backend complains no more")
            self.end(flow, IDLE)
        self.upstreams.tidy()

    def end(self, flow, reason):
        """A session is over: one line in the log."""
        service = flow.service
        if service.log == "all" or (service.log == "errors" and reason not in (IDLE, MADE_ROOM)):
            self.worker.log.event("session", **{**flow.summary(self.worker.now()), "ended": reason})
        flow.backends.carried(flow.index, flow.bytes_to_backend, flow.bytes_to_client)
        self._forget(flow)

    def end_all(self, reason):
        """End every session and stop reading, for good."""
        self.set_receiving(False)
        for flow in list(self.table.flows):
            self.end(flow, reason)
        self._close()

    def _close(self):
        for lane in list(self.upstreams.all):
            self.upstreams.close(lane)
        for inlet in self.inlets.values():
            inlet.sock.close()

    def _forget(self, flow):
        serving = flow.door.serving
        serving.counters.finished()
        flow.backends.release(flow.index)
        if flow.admitted:
            serving.gate.leave(flow.client[0])
        self.table.leave(flow)
        if not flow.lane.shared and not flow.lane.flows:
            self.upstreams.close(flow.lane)

    # -- the next generation ---------------------------------------------------------------------------------------

    def hand_over(self, estate):
        """Give all sessions and their sockets to the successor at the other end of ``estate``; raise OSError.

        From here on this worker has none. What clients and backends send meanwhile waits in the sockets.
        """
        self.set_receiving(False)
        handover.leave(estate, self.upstreams.all, self.table.flows)
        self.worker.log.event("sessions handed over", sessions=len(self.table))
        for flow in list(self.table.flows):
            self._forget(flow)

    def take_over(self, document, socks):
        """Go on with what a predecessor had; its sockets of sessions that have no place here are closed."""
        lanes, known, taken = [], {}, 0
        for record, sock in zip(document["lanes"], socks):
            lanes.append(self.upstreams.take_over(sock, record))
        for record in document["flows"]:
            key = record["door"], record["service"], record["backend"], tuple(record["target"])
            if key not in known:
                known[key] = self._same_backend(*key)
            if known[key] is not None:
                taken += self._continue(record, lanes[record["lane"]], *known[key])
        for lane in lanes:
            if not lane.shared and not lane.flows:
                self.upstreams.close(lane)
        self.worker.log.event("sessions taken over", sessions=taken, dropped=len(document["flows"]) - taken)

    def _continue(self, record, lane, door, backends, index):
        """Enter a session of a predecessor; returns whether its place is free."""
        client, origin = handover.origin_of(record)
        reply = bytes.fromhex(record["source"]), tuple(record["target"])
        if reply in lane.flows or origin in door.flows:
            return False
        now = self.worker.now()
        flow = Flow(client, origin, reply, backends, index, door.serving.service.idle_timeout, now)
        handover.restore(flow, record)
        flow.admitted = door.serving.gate is not None
        if flow.admitted:
            door.serving.gate.readmit(client[0])
        flow.backends.take(flow.index)
        self._enter(flow, door, lane)
        door.serving.counters.taken_over()
        return True

    def _same_backend(self, name, service, backend, target):
        """Return (door, Backends, index) for sessions of a predecessor, None when this config has no such place.

        ``name`` is the door's; ``target`` the backend's address tuple.
        """
        door = self.inlets.get(name)
        if door is None or door.serving.service.name != service:
            return None
        for family, backends in door.serving.groups.items():
            for index, one in enumerate(backends.backends):
                address = address_tuple(one.address(family), one.port_of(door.listener))
                if one.name == backend and address == target:
                    return door, backends, index
        return None


def packed(address):
    """Return an address of either family as the kernel has it."""
    return socket.inet_pton(socket_family_of(address), address)


def address_tuple(address, port):
    """Return what recvmsg() gives for a datagram from there, spelled in the same way."""
    family = socket_family_of(address)
    if family == socket.AF_INET:
        return address, port
    return socket.inet_ntop(family, packed(address)), port, 0, 0
