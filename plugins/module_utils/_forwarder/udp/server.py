# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All UDP of one worker: its listening sockets, its sessions and their upstream sockets.

A session begins with a client's first datagram and ends when nothing has moved for ``idle_timeout``. One buffer serves
all sockets, because a datagram is sent on before the next one is read. Nothing is queued here: a datagram that the
kernel does not take is dropped and counted, as a router would do.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from ..._shared.families import IPV4, socket_family_of
from ..admission.limits import PER_SERVICE
from ..admission.refusal import Refusal
from ..admission.source_address import OWN
from ..backends import open_log
from ..loop import sockets
from ..loop.log import Repeats
from . import ancillary, handover, timeouts
from .eviction import MADE_ROOM
from .flow_table import Flow, FlowTable
from .upstream import UpstreamSockets

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..admission.source_address import SourcePorts
    from ..loop.event_loop import EventLoop
    from .listener import UdpListener

LARGEST = 65536  # bytes; a datagram has at most 65,507 over IPv4 and 65,527 over IPv6


class Refused(Exception):
    """A client gets no session; ``refusal`` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class UdpServer:
    """``most_upstreams`` bounds the upstream sockets; ``slot`` is the worker's own slot, one of ``workers``."""

    def __init__(self, loop: EventLoop, ports: SourcePorts, most_upstreams: int, slot: int, workers: int = 1) -> None:
        self.loop = loop
        self.count = loop.count
        self.buffer = bytearray(LARGEST)
        self.buffers = (self.buffer,)
        self.view = memoryview(self.buffer)
        self.table = FlowTable(most_alone=most_upstreams - most_upstreams // 4)
        self.upstreams = UpstreamSockets(self, ports, most_upstreams, workers)
        self.listeners: dict[str, UdpListener] = {}  # by the supervisor's name
        self.leaving: list[UdpListener] = []  # those that left the config, while they have sessions
        self.in_kernel: Collection[str] = ()  # names of the services that the kernel forwards
        self.slots = {slot}  # worker slots whose listeners it serves
        self.receiving = False
        self.closed = False
        self._next_check, self._checked = 0.0, loop.now()
        self._logs_open: list[int] = []  # the log_every of services that have it
        self._interval = timeouts.interval([])
        self._logged = Repeats()

    def listen(self, listeners: dict[str, UdpListener], leaving: list[UdpListener]) -> None:
        """Serve these listeners, by name, from now on; they are read once set_receiving() says so.

        Those that are ``leaving`` serve the sessions that they have.
        """
        self.listeners, self.leaving = listeners, leaving
        for listener in listeners.values():
            self.table.add_service(listener.service)
        self.table.keep_services({listener.service for listener in listeners.values()})
        services = {one.runtime.service for one in (*listeners.values(), *leaving)}
        self._logs_open = [service.log_every for service in services if service.log_every]
        self._interval = timeouts.interval([*(service.idle_timeout for service in services), *self._logs_open])
        self._next_check = min(self._next_check, self.loop.now() + self._interval)
        self.set_receiving(self.receiving)

    def bound(self, ports: SourcePorts, most_upstreams: int) -> None:
        """Use these source ports for new sessions, and at most ``most_upstreams`` upstream sockets."""
        self.table.alone.most = most_upstreams - most_upstreams // 4
        self.upstreams.bound(ports, most_upstreams)

    def set_receiving(self, on: bool) -> None:
        """Start or stop reading what clients send; until it starts, datagrams wait in the sockets."""
        self.receiving = on
        if on:
            families = {family for listener in self.listeners.values() for family in listener.runtime.backends}
            self.upstreams.prepare(socket.AF_INET if family == IPV4 else socket.AF_INET6 for family in families)
        for listener in (*self.listeners.values(), *self.leaving):
            listener.update()

    def serve_slots(self, slots: set[int]) -> None:
        """Read the listeners of these worker slots."""
        self.slots = slots
        self.set_receiving(self.receiving)

    # -- a session begins ------------------------------------------------------------------------------------------

    def begin(self, listener: UdpListener, client_key: tuple) -> Flow | None:
        """Return a Flow for a client that is new at a listener; None when it is refused, which nothing answers."""
        runtime, client = listener.runtime, client_key[0] if listener.wildcard else client_key
        now = self.loop.now()
        try:
            self._admit(runtime, client[0], now)
        except Refused as refused:
            self._refuse(runtime, client, refused.refusal)
            return None
        try:
            flow = self._open(listener, client_key, client, now)
        except Refused as refused:
            if runtime.guarded and runtime.limiter is not None:
                runtime.limiter.release(client[0])
            self._refuse(runtime, client, refused.refusal)
            return None
        runtime.counters.began()
        return flow

    def begin_logged(self, listener: UdpListener, client_key: tuple) -> Flow | None:
        """The same for a service with ``log_start``."""
        flow = self.begin(listener, client_key)
        if flow is not None:
            open_log.log_start(self.loop.log, "session", flow, self.loop.now())
        return flow

    def _admit(self, runtime, address, now):
        """Raise Refused if the service does not admit the client."""
        if not runtime.guarded:
            return
        if runtime.limiter is not None and runtime.limiter.full:
            raise Refused(PER_SERVICE)
        refusal = runtime.admit(address, now)
        if refusal:
            raise Refused(refusal)

    def _open(self, listener, client_key, client, now):
        """Return the new Flow of a client that was admitted, with a backend and an upstream socket; raise Refused."""
        runtime = listener.runtime
        backends, index, unspoofable = self._choose_backend(runtime, client[0], now)
        backend = backends.backends[index]
        target = address_tuple(backend.address(backends.family), backend.port_of(listener.listener))
        reply_key = packed(client[0].partition("%")[0]), target
        flow = Flow(client, client_key, reply_key, backends, index, runtime.service.idle_timeout, now)
        service = runtime.service.name
        self._evict_if_full(service, now)
        try:
            if unspoofable:
                upstream, flow.step = self.upstreams.with_own_address(flow, service, now), OWN
            else:
                upstream, flow.step = self.upstreams.find(runtime, flow, client, now)
        except OSError as error:
            backends.release(index)
            backends.failed(client[0], index, error.errno, now, False)
            raise Refused(Refusal("connect_failed", error.strerror or sockets.describe(error))) from None
        runtime.counters.count(flow.step)
        flow.limiter = runtime.limiter
        self.enter(flow, listener, upstream)
        return flow

    def _choose_backend(self, runtime, address, now):
        """Return (Backends, index, Refusal that says why the client cannot be spoofed, or None); raise Refused."""
        backends, unspoofable, own_backends = runtime.backends_for(address, self.loop.own_addresses)
        if unspoofable and not runtime.source.allows_own:
            runtime.counters.count("refused")
            raise Refused(unspoofable)
        index = backends.next(address, own_backends, now)
        if index is None:
            index, unspoofable = runtime.last_resort(backends, own_backends, address, own_backends, now)
            if index is None:
                raise Refused(unspoofable)
        return backends, index, unspoofable

    def enter(self, flow: Flow, listener: UdpListener, upstream) -> None:
        """Enter a flow in the table, with the ancillary data of its datagrams, which is made only here."""
        flow.to_backend = ancillary.leaving_from(flow.reply_key[0]) if not upstream.alone else ()
        flow.to_client = ancillary.leaving_from(flow.client_key[1]) if listener.wildcard else None
        self.table.enter(flow, listener, upstream)

    def _refuse(self, runtime, client, refusal):
        """Count a datagram that begins no session, and log it unless the same line was written a moment ago."""
        runtime.counters.refused(refusal.cause)
        service = runtime.service
        if service.log != "none" and self._logged.due((service.name, refusal.text), self.loop.now()):
            self.loop.log.event(
                "datagram refused", level="warning", service=service.name, client=client[0], reason=refusal.text
            )

    # -- a session makes room for another one ----------------------------------------------------------------------

    def _evict_if_full(self, service, now):
        """End sessions where the worker has all it may have: up to two, for it may have taken over more than that."""
        flows = self.table.flows
        for _time in range(min(2, len(flows) - flows.most + 1)):
            flow = flows.flow_to_evict(service, now)
            if flow is not None:
                self.evict(flow)

    def evict(self, flow: Flow) -> None:
        """End a session to make room for a new one."""
        service, now = flow.service, self.loop.now()
        flow.listener.runtime.counters.made_room()
        if service.log != "none" and self._logged.due((service.name, MADE_ROOM), now):
            self.loop.log.event("sessions evicted", level="warning", service=service.name)
        self.end(flow, MADE_ROOM)

    # -- what the network says -------------------------------------------------------------------------------------

    def answered(self, flow: Flow) -> None:
        """Note the first reply of a session: its backend works."""
        flow.answered = True
        now = self.loop.now()
        if flow.backends.connected(flow.client[0], flow.index, now - flow.started, now):
            flow.listener.runtime.log_health("backend answers again", flow.backends, flow.index)

    def icmp_error(self, flow: Flow | None, number: int) -> None:
        """End a session whose datagram did not arrive, so that the client's next one goes to another backend.

        ``number`` is the errno that ICMP stands for; ``flow`` None: the session has ended already.
        """
        if flow is None:
            return
        reason, client, now = sockets.describe_errno(number), flow.client[0], self.loop.now()
        is_served = partial(self.table.serves_others, flow, now)
        flow.listener.runtime.failed(flow.backends, flow.index, client, number, reason, now, is_served=is_served)
        self.end(flow, reason)

    def not_sent(self, flow: Flow, data: memoryview, error: OSError) -> None:
        """Send a datagram again: the ``error`` of sending it may belong to an earlier one, of any session."""
        if not isinstance(error, BlockingIOError):
            flow.upstream.read_errors()
            if flow.listener.flows.get(flow.client_key) is not flow:
                return  # the earlier one was of this session, which icmp_error() has ended
            try:
                flow.upstream.send((data,), flow.to_backend, 0, flow.target)
                return
            except OSError:
                pass
        self.count("datagrams_dropped")

    # -- a session ends --------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """When it is time: end the sessions in which nothing moves, count the others, and close unused sockets."""
        if self.table.uncounted:
            self.table.count_some()
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        for flow in timeouts.expired(self.table, now):
            # A backend that only receives never answers; a whole session without an ICMP error speaks for it.
            if not flow.answered and flow.backends.health.succeeded(flow.client[0], flow.index):
                flow.listener.runtime.log_health("backend usable again", flow.backends, flow.index)
            self.end(flow, timeouts.IDLE)
        if self._logs_open:
            open_log.log_open(self.loop, "session", self.table.flows, self._checked, now)
        self._checked = now
        self.upstreams.tidy()

    def seconds_to_check(self, now: float) -> float:
        """Return the seconds until check() has something to do."""
        if self.table.uncounted:
            return 0.0
        return max(0.0, self._next_check - now) if len(self.table) else float("inf")

    def end(self, flow: Flow, reason: str) -> None:
        """End a session: log it and forget it."""
        service = flow.service
        if service.log == "all" or (service.log == "errors" and reason not in (timeouts.IDLE, MADE_ROOM)):
            self.loop.log.event("session", **{**flow.summary(self.loop.now()), "ended": reason})
        self._forget(flow)

    def _forget(self, flow):
        flow.count_traffic()
        runtime = flow.listener.runtime
        runtime.counters.finished()
        flow.backends.release(flow.index)
        if flow.limiter is not None:
            flow.limiter.release(flow.client[0])
        self.table.leave(flow)
        if not flow.upstream.shared and not flow.upstream.flows:
            self.upstreams.close(flow.upstream)

    def end_all(self, reason: str) -> None:
        """End every session, and close all sockets for good."""
        self.closed = True
        self.set_receiving(False)
        for flow in list(self.table.flows):
            self.end(flow, reason)
        for upstream in list(self.upstreams.all):
            self.upstreams.close(upstream)
        for listener in (*self.listeners.values(), *self.leaving):
            listener.close()

    def hand_over(self, sock: socket.socket) -> None:
        """Send all sessions and their upstream sockets to the successor at the other end of ``sock``; raise OSError.

        Afterwards this worker has none. What clients and backends send waits in the sockets until the successor reads.
        """
        self.set_receiving(False)
        handover.send(sock, self.upstreams.all, self.table.flows)
        self.loop.log.event("sessions handed over", sessions=len(self.table))
        for flow in list(self.table.flows):
            self._forget(flow)


def packed(address: str) -> bytes:
    """Return an address of either family as the kernel has it."""
    return socket.inet_pton(socket_family_of(address), address)


def address_tuple(address: str, port: int) -> tuple:
    """Return what recvmsg() returns as the source of a datagram from this address and port, spelled the same way."""
    family = socket_family_of(address)
    if family == socket.AF_INET:
        return address, port
    return socket.inet_ntop(family, packed(address)), port, 0, 0
