# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker in the process of the test, which turns its loop and reads its log and its counters."""

from __future__ import annotations

import json
import socket
from random import SystemRandom

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import Log
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.worker import Worker
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.relay import Relay

from tests.support.waiting import eventually


def free_ports(count):
    """Ports that nobody uses in either family or protocol.

    They lie below the range from which the kernel gives ports to clients: none is taken meanwhile, or is in TIME_WAIT.
    """
    ports = set()
    while len(ports) < count:
        port = SystemRandom().randrange(10000, 32768)  # tests of other processes may have the same seed
        if all(is_free(port, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            ports.add(port)
    return list(ports)


def is_free(port, kind):
    with socket.socket(socket.AF_INET6, kind) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind(("::", port))  # conflicts with every address of both families
        except OSError:
            return False
    return True


class WorkerHost:
    """A worker of slot 0 with one service."""

    def __init__(self, directory, service, slots=1, held=None, settings=()):
        config = Config(proxy_id=1, services=(service,), **dict(settings))
        self.service = service
        self.held = held or listeners.bind_missing(config, slots, ())
        self.region = shared_memory.Region(shared_memory.describe(config, slots))
        self.log_path = directory / f"log{id(self)}"
        self.log_file = self.log_path.open("wb")
        self.channel, theirs = channel.pair()
        self.worker = Worker(config, self.held, Log(fd=self.log_file.fileno()), theirs, self.region, 0)
        self.loop, self.tcp, self.udp = self.worker.loop, self.worker.tcp, self.worker.udp

    def turn(self):
        """Turn the loop once, and wait for an event for at most about 0.1 s."""
        self.loop.timers.add(self.loop.now() + 0.05, int)
        self.worker._turn()

    def turn_until(self, condition):
        """Turn the loop until ``condition()`` is true; return its value."""
        return eventually(lambda: self.turn() or condition(), interval=0)

    def events(self, name):
        """The lines of an event in the log."""
        self.loop.log.flush()
        lines = map(json.loads, self.log_path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["event"] == name]

    def counted(self, field, kind="service"):
        """A counter of this worker."""
        return self.region.cells[self.region.cell(0, kind, field)]

    def close(self):
        listeners.close_all(self.held)
        self.loop.poller.close()
        self.log_file.close()
        self.channel.close()


class TcpHost(WorkerHost):
    """A worker of slot 0 with one TCP service on two ports; the worker of slot 1 is missing."""

    def __init__(self, directory, settings=(), **options):
        self.ports = free_ports(2)
        listen = tuple(Listener("127.0.0.1", port) for port in self.ports)
        backend = Backend(name="b", ipv4="198.18.0.21", port=80)
        super().__init__(directory, Service("web", listen, (backend,), **options), slots=2, settings=settings)
        self.clients = []

    def relay(self):
        """A session that has not chosen a backend yet; its client's socket is the last of ``clients``."""
        client, accepted = socket.socketpair()
        self.clients.append(client)
        acceptor = self.tcp.acceptors[0]
        relay = Relay(self.tcp, acceptor, accepted, ("203.0.113.7", 4000))
        self.tcp.sessions.add(relay)
        acceptor.runtime.counters.began()
        return relay

    def close(self):
        self.tcp.abort_all("test")
        for client in self.clients:
            client.close()
        super().close()
