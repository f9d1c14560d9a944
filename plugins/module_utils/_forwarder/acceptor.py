# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors of a worker: its listening sockets, and whom they let in."""

from __future__ import annotations

import errno
import os

from . import config, sockets, spoof
from .acl import AccessList, Networks
from .limits import PER_SERVICE, Gate
from .poller import READ
from .source import Source
from .tcp import Relay

ACCEPTS_IN_A_ROW = 32  # a batch: then the sessions that are already there get their turn
PAUSE = 0.2  # seconds without accepting after the kernel ran out of something, or while a service is full
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Serving:
    """What the listeners of one service share: backends by family, the source, and who is admitted.

    ``groups`` is {family: balancer.Backends}, only families that have backends; ``ports`` a source.Ports, ``tally`` the
    tally.Tally of the service.
    """

    def __init__(self, service, groups, ports, tally):
        self.service = service
        self.groups = groups
        self.tally = tally
        self.source = Source(service, ports, tally.count)
        self.trusted = Networks(service.accept_proxy) if service.accept_proxy else None
        self.access = AccessList(service.allow, service.deny) if service.allow or service.deny else None
        self.gate = Gate(service.limits, tally.total, tally.book) if service.limits != config.Limits() else None
        self.guarded = self.access is not None or self.gate is not None
        self.acceptors = []
        self.paused = False

    def refusal(self, address, now):
        """Return why a client is not admitted; None when it is, and then it has to leave() again."""
        refusal = self.access.refusal(address) if self.access else None
        if refusal is None and self.gate is not None:
            refusal = self.gate.enter(address, now)
        return refusal

    def group_of(self, address, own_addresses):
        """Return (family of the backends a client is for, why its address cannot be their source or None)."""
        family = config.IPV6 if ":" in address else config.IPV4
        hidden = spoof.refusal(address, own_addresses)
        if family in self.groups:
            return family, hidden
        return next(iter(self.groups)), hidden or spoof.FOREIGN_FAMILY

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
        self._family = sockets.family_of(listener.address)
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
        worker, gate = self.worker, self.serving.gate
        for _turn in range(limit):
            if worker.full:
                worker.pause_accepting("as many sessions as RLIMIT_NOFILE has descriptors for")
                return False
            full = gate is not None and gate.full
            if full and gate.pauses:
                worker.pause_service(self.serving)
                return False
            try:
                sock, address = sockets.accept(self.sock, self._family)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _OUT_OF:
                    worker.pause_accepting(os.strerror(error.errno), PAUSE)
                    return False
                continue  # this one connection went away before it was accepted (accept(2), "Error handling")
            relay = Relay(worker, self.serving, self.listener, sock, address)
            worker.began(relay)
            try:
                if full:
                    relay.refuse(PER_SERVICE)
                else:
                    relay.start()
            except Exception as error:  # noqa: BLE001
                worker.contain(relay, error)
        return True
