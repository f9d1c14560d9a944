# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors of a worker: its listening sockets, and whom they let in."""

from __future__ import annotations

import os

from ..._shared.families import IPV4, IPV6, socket_family_of
from ..admission import never_spoofed
from ..admission.acl import AccessList, Networks
from ..admission.limits import PER_SERVICE, Gate
from ..admission.source_address import Source
from ..config.service import Limits
from ..loop import sockets
from ..loop.poller import READ
from .relay import FACTS, Relay

ACCEPTS_IN_A_ROW = 32  # a batch: then the sessions that are already there get their turn
CLIENTS_KNOWN = 8192  # addresses a service remembers the family and the refusal of
PAUSE = 0.2  # seconds without accepting after the kernel ran out of something, or while a service is full


class Serving:
    """What the listeners of one service share: backends by family, the source, and who is admitted.

    ``groups`` is {family: balancer.Backends}, only families that have backends; ``ports`` is a source_address.Ports,
    ``counters`` the ServiceCounters of the service.
    """

    def __init__(self, service, groups, ports, counters):
        self.service = service
        self.groups = groups
        self.counters = counters
        self.source = Source(service, ports, counters.count)
        self.trusted = Networks(service.accept_proxy) if service.accept_proxy else None
        self.access = AccessList(service.allow, service.deny) if service.allow or service.deny else None
        self.gate = (
            Gate(service.limits, counters.total, counters.client_numbers) if service.limits != Limits() else None
        )
        #: Whether a client has anything to pass before it is given a backend.
        self.guarded = self.trusted is not None or self.access is not None or self.gate is not None
        self.acceptors = []
        self.paused = False
        self._ranges = any(backend.last_port for backend in service.backends)
        self._targets = {}  # place of a listener in its range -> what targets() says
        self._known = {}  # client address -> what group_of() says
        self._known_for = None  # the own addresses it was said for

    def refusal(self, address, now):
        """Return the Refusal of a client; None when it is admitted, and then it has to leave() again."""
        refusal = self.access.refusal(address) if self.access else None
        if refusal is None and self.gate is not None:
            refusal = self.gate.enter(address, now)
        return refusal

    def group_of(self, address, own_addresses, introduced=False):
        """Return what an address means for the client that has it, or that a PROXY header has ``introduced``.

        (the Backends it is for, a Refusal where the address cannot be their source, the indexes of those that have it)
        """
        if own_addresses is not self._known_for or len(self._known) >= CLIENTS_KNOWN:
            self._known, self._known_for = {}, own_addresses
        known = self._known.get(address)
        if known is None:
            known = self._known[address] = self._look_at(address, own_addresses, introduced)
        return known

    def _look_at(self, address, own_addresses, introduced):
        hidden = never_spoofed.refusal(address, own_addresses)
        if hidden is None and introduced and sockets.is_broadcast(address):
            hidden = never_spoofed.BROADCAST  # of other clients the kernel takes no packet with such a source
        backends = self.groups.get(IPV6 if ":" in address else IPV4)
        if backends is None:
            return next(iter(self.groups.values())), hidden or never_spoofed.FOREIGN_FAMILY, ()
        return backends, hidden, () if hidden else backends.at(address)

    def targets(self, listener):
        """Return where the backends of each family are for a client of a listener: (address, port) by index."""
        place = listener.offset if self._ranges else None  # else it is the same for all listeners
        if place not in self._targets:
            self._targets[place] = {
                family: tuple((one.address(family), one.port_of(listener)) for one in backends.backends)
                for family, backends in self.groups.items()
            }
        return self._targets[place]

    def last_resort(self, backends, itself, client, tried, now):
        """Return (index, why the client is hidden) of a backend that the client is itself, when no other is left.

        ``itself`` are the indexes of those, ``tried`` those that were given or passed over. Without one the index is
        None, and the Refusal says why, if nobody was tried at all.
        """
        index = backends.next(client, tuple(one for one in tried if one not in itself), now) if itself else None
        if index is None:
            return None, backends.nobody() if tried == itself else None
        if not self.source.may_be_own:
            backends.release(index)
            self.counters.count("refused")
            index = None
        return index, never_spoofed.BACKENDS_OWN

    def pause(self, on):
        """Stop or start accepting for this service."""
        self.paused = on
        for acceptor in self.acceptors:
            acceptor.update()


class Acceptor:
    """One listening socket, and the worker slot it is of."""

    def __init__(self, worker, sock, slot, serving, listener):
        self.worker = worker
        self.sock = sock
        self.slot = slot
        self.serving = serving
        self.listener = listener
        self._family = socket_family_of(listener.address)
        self._accept_one = sock._accept
        #: Where the backends of each family are, for a client of this listener: (address, port) by index.
        self.targets = serving.targets(listener)
        #: Logs the values of tcp.FACTS.
        self.log = worker.log.kind("connection", FACTS, service=serving.service.name, listener=str(listener))
        self._listening = False
        self._batch = 1
        serving.acceptors.append(self)

    def update(self):
        """Have the poller report connections exactly while worker and service want them."""
        worker = self.worker
        wanted = worker.accepting and self.slot in worker.slots and not self.serving.paused
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            self.worker.selector.register(self.sock, READ, self.ready)
        else:
            self.worker.selector.unregister(self.sock)

    def ready(self, _mask):
        """The poller's callback: accept a batch, which grows while more are waiting than it takes.

        One connection a turn is what an unhurried worker finds, and it need not ask whether there is a second.
        """
        if self.accept(self._batch):
            self._batch = min(self._batch * 2, ACCEPTS_IN_A_ROW)
        else:
            self._batch = max(self._batch // 2, 1)

    def accept(self, limit):
        """Accept up to ``limit`` connections that are waiting; returns whether it came to that many."""
        worker, serving = self.worker, self.serving
        gate = serving.gate
        room = worker.room
        if not room:
            worker.pause_accepting("as many sessions as RLIMIT_NOFILE has descriptors for")
            return False
        for _turn in range(min(limit, room)):
            full = gate is not None and gate.full
            if full and gate.pauses:
                worker.pause_service(serving)
                return False
            try:
                sock, address = sockets.accept(self._accept_one, self._family)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in sockets.OUT_OF:
                    worker.pause_accepting(os.strerror(error.errno), PAUSE)
                    return False
                continue  # this one connection went away before it was accepted (accept(2), "Error handling")
            relay = Relay(worker, self, sock, address)
            worker.sessions.add(relay)
            serving.counters.began()
            try:
                if full:
                    relay.refuse(PER_SERVICE)
                else:
                    relay.start()
            except Exception as error:  # noqa: BLE001
                worker.contain(relay, error)
        return True
