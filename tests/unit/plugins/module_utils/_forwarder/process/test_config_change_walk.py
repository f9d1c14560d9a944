# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker takes many random configs in place, while it has TCP and UDP sessions of both families in every state."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission.limits import client_key
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Limits, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.settings import PortRange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State

from tests.support import processes

from ..changing_host import ADDRESSES, DATAGRAM, STREAM
from ..worker_host import free_ports

CHANGES = 40
TRUSTED = ("127.0.0.0/8", "::1/128")
SLICES = (PortRange(20480, 20543), PortRange(20544, 20607))
LIMITS = (
    Limits(),
    Limits(connections=4, at_limit="pause"),
    Limits(connections=4, at_limit="refuse"),
    Limits(connections_per_client=3),
    Limits(connections_per_client=50, rate_per_client=10000),
)


class Walk:
    """Random configs, clients, answers and ends."""

    def __init__(self, make, serve, seed):
        self.random = random.Random(seed)
        self.servers = {
            kind: [serve(family, kind) for family in ADDRESSES for _number in range(2)] for kind in (STREAM, DATAGRAM)
        }
        self.listeners = [Listener(address, port) for address in ADDRESSES.values() for port in free_ports(4)]
        self.host = make(*map(self.service, ("web", "dns")))
        self.worker = self.host.worker

    def service(self, name):
        protocol = self.random.choice(("tcp", "tcp", "udp"))
        servers = self.random.sample(self.servers[STREAM if protocol == "tcp" else DATAGRAM], 3)
        limit = self.random.choice((None, 3))
        return Service(
            name,
            tuple(self.random.sample(self.listeners, 2)),
            tuple(server.backend(f"b{self.random.randrange(2)}{one}", max_connections=limit)
                  for one, server in enumerate(servers)),
            protocol=protocol,
            source_fallback="own",
            retries=2,
            limits=self.random.choice(LIMITS),
            balance=self.random.choice(("round_robin", "least_connections", "source_hash", "random")),
            accept_proxy=self.random.choice(((), TRUSTED)) if protocol == "tcp" else (),
        )  # fmt: skip

    def services(self):
        """The services of the next config, which has most of what this one has."""
        services = {one.name: one for one in self.worker.config.services}
        for new in map(self.service, self.random.sample(("web", "dns", "mail"), 2)):
            old = services.get(new.name)
            if old is None or self.random.random() < 0.1:
                services[new.name] = new
            elif old.protocol == new.protocol:
                keys = self.random.sample(("limits", "accept_proxy", "balance", "backends", "listen"), 2)
                services[new.name] = replace(old, **{key: getattr(new, key) for key in keys})
        first, second, *rest = self.random.sample([*services.values()], len(services))
        if self.random.random() < 0.2:
            key = self.random.choice(("listen", "name"))
            first, second = replace(first, **{key: getattr(second, key)}), replace(second, **{key: getattr(first, key)})
        taken, found = set(), []
        for one in (first, second, *rest[: self.random.randint(0, 1)]):
            listen = tuple(place for place in one.listen if (one.protocol, place) not in taken)
            taken |= {(one.protocol, place) for place in listen}
            found += [replace(one, listen=listen)] if listen else []
        return found

    def step(self):
        for _client in range(self.random.randint(0, 4)):
            self.begin()
        for _turn in range(3):
            self.turn()
            self.answer()
        for _end in range(self.random.randint(0, 2)):
            if self.host.opened:
                self.host.opened.pop(self.random.randrange(len(self.host.opened))).close()
        places = [(session, self.place(session)) for session in self.sessions()]
        change = self.host.prepare(*self.services(), source_ports=self.random.choice(SLICES))
        if self.random.random() < 0.1:
            change.discard()
            self.host.numbers.pop(self.host.number).close()
            self.host.number -= 1
            listeners.close_others(self.worker.config, self.host.slots, self.host.held)
            return
        self.host.region.carry(self.worker.region)  # as the supervisor does
        change.use()
        self.check_counts()
        alive = set(self.sessions())
        lost = [place for session, place in places if place in self.places() and session not in alive]
        assert lost == []
        if self.random.random() < 0.2:
            self.host.at_deadline()
            self.check_counts()
            assert all(runtime_of(session) in self.worker.serving.runtimes.values() for session in self.sessions())

    def begin(self):
        service = self.random.choice(self.worker.config.services)
        listener = self.random.choice(service.listen)
        if service.protocol == "udp":
            self.host.datagram_client(listener, b"question")
        else:
            header = b"PROXY UNKNOWN\r\n" if service.accept_proxy else b""
            self.host.client(listener, self.random.choice((b"", header, header + b"question")))

    def turn(self):
        self.worker._poll_timeout = 0
        self.worker._turn()

    def answer(self):
        for server in self.servers[STREAM]:
            while server.accepted():
                server.others[-1].send(b"answer")
        for server in self.servers[DATAGRAM]:
            with contextlib.suppress(BlockingIOError):
                while self.random.random() < 0.8:
                    server.sock.sendto(b"answer", server.sock.recvfrom(100)[1])
        for sock in self.host.opened:
            if sock.type == DATAGRAM and self.random.random() < 0.5:
                with contextlib.suppress(OSError):
                    sock.sendto(b"question", sock.getpeername())

    def sessions(self):
        return [*self.host.tcp.sessions, *self.host.udp.table.flows]

    def place(self, session):
        """Where an established session is, as in places()."""
        if getattr(session, "state", State.OPEN) is not State.OPEN:
            return None
        listener = session.acceptor.listener if hasattr(session, "acceptor") else session.listener.listener
        backend, family = session.backend, session.backends.family
        return session.service.protocol, session.service.name, listener, backend.name, backend.port, family

    def places(self):
        return {
            (service.protocol, service.name, listener, backend.name, backend.port, family)
            for service in self.worker.config.services
            for listener in service.listen
            for family in ADDRESSES
            for backend in service.backends_of(family)
        }

    def check_counts(self):
        """Each session is counted once, in the memory of its runtime, for its service, its backend and its client."""
        regions = {
            id(one.cells): one
            for one in [self.worker.region, *(one.region for one in self.worker.earlier._generations)]
        }
        services, targets, clients = Counter(), Counter(), Counter()
        for session in self.sessions():
            runtime = runtime_of(session)
            where, name = id(runtime.counters._cells), runtime.service.name
            services[where, name] += 1
            assert session.limiter in (None, runtime.limiter)
            if session.index is not None:
                assert session.backends is runtime.backends[session.backends.family]
                targets[(where, name, session.backend.name, session.backends.family)] += 1
            if session.limiter is not None and session.limiter._held:
                clients[where, name, client_key(session.client_address[0])] += 1
        for where, region in regions.items():
            for index, name in enumerate(region.services):
                assert region.total("service", "sessions", index) == services.pop((where, name), 0)
                for key, number in region.held(name, [0]):
                    assert number == clients.pop((where, name, key))
            for index, target in enumerate(region.targets):
                assert region.total("target", "active", index) == targets.pop((where, *target), 0)
        assert not services
        assert not targets
        assert not clients


def runtime_of(session):
    return session.runtime if hasattr(session, "runtime") else session.listener.runtime


@pytest.mark.parametrize("seed", range(4))
def test_every_session_of_what_is_still_there_lives_and_counts_once(make, serve, seed):
    before = sum(name.startswith("socket:") for name in processes.open_files(os.getpid()))
    walk = Walk(make, serve, seed)
    host = walk.host
    for _change in range(CHANGES):
        walk.step()
    assert host.events("defect") == []
    while host.worker.earlier._generations:
        host.at_deadline()
    for session in host.tcp.sessions.copy():
        session.abort("over")
    for flow in list(host.udp.table.flows):
        host.udp.end(flow, "over")
    assert host.open() == host.active() == {}
    assert sorted(host.released()) == [number for number in host.numbers if number != host.worker.generation]
    assert host.udp.leaving == []
    for sock in (*host.opened, *walk.servers[STREAM], *walk.servers[DATAGRAM]):
        sock.close()
    known = 2 * len(host.worker.serving.listening) + len(host.udp.upstreams.all) + 2  # both ends of the channel
    assert sum(name.startswith("socket:") for name in processes.open_files(os.getpid())) - before <= known
