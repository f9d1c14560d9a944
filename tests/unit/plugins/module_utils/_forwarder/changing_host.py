# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker in the process of the test whose configs change, with backends, over the loopback.

Clients are hidden behind the proxy's own address there.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import (
    Backend,
    Limits,
    Listener,
    Service,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import Log
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, config_change, listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.worker import Worker

from .worker_host import WorkerHost, free_ports

ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


class Server:
    """A backend; a ``full`` one leaves the next SYN unanswered."""

    def __init__(self, family="ipv4", kind=STREAM, full=False):
        number = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        self.family = family
        self.sock = socket.socket(number, kind)
        self.sock.bind((ADDRESSES[family], 0))
        self.sock.setblocking(False)
        self.others = []
        if kind == STREAM:
            self.sock.listen(0 if full else 16)
        if full:
            self.others.append(socket.create_connection(self.sock.getsockname()[:2]))

    def backend(self, name="b", **options):
        """Its entry in the config."""
        return Backend(name, self.sock.getsockname()[1], **{self.family: ADDRESSES[self.family]}, **options)

    def accepted(self):
        """The next connection, None where there is none yet."""
        try:
            self.others.append(self.sock.accept()[0])
        except BlockingIOError:
            return None
        return self.others[-1]

    def close(self):
        for sock in (self.sock, *self.others):
            sock.close()


class ChangingHost(WorkerHost):
    """A worker of slot 0, whose configs change; it covers the other ``slots``."""

    def __init__(self, directory, *services, slots=2, **options):
        self.slots = slots
        config = Config(proxy_id=1, services=services, **options)
        self.held = {}
        self.numbers, self.opened = {}, []
        self.number = 0
        self.log_path = directory / "log"
        self.log_file = self.log_path.open("wb")
        self.channel, theirs = channel.pair()
        self.region = self.new_region(config)
        listening = self.copies(self.bind(config))
        log = Log(fd=self.log_file.fileno(), generation=1)
        self.worker = Worker(config, listening, log, theirs, self.region, 0, generation=1)
        self.loop, self.tcp, self.udp = self.worker.loop, self.worker.tcp, self.worker.udp
        self.worker.cover(range(slots))  # a client may meet either of the sockets of its address
        self.tcp.set_accepting(True)
        self.udp.set_receiving(True)

    def new_region(self, config):
        """The memory of the next generation, as the supervisor maps it."""
        self.number += 1
        self.region = self.numbers[self.number] = shared_memory.Region(shared_memory.describe(config, self.slots))
        return self.theirs(self.region)

    @staticmethod
    def theirs(region):
        """The same memory, as another process maps it."""
        return shared_memory.Region(region.record, os.dup(region.fd))

    def bind(self, config):
        """Bind what the config needs as the supervisor does; return what is new."""
        new = listeners.bind_missing(config, self.slots, self.held)
        self.held.update(new)
        return new

    @staticmethod
    def copies(socks):
        return {name: sock.dup() for name, sock in socks.items()}

    def prepare(self, *services, **options):
        config = Config(proxy_id=1, services=services, **options)
        region, new = self.new_region(config), self.copies(self.bind(config))
        listeners.settle(config, self.slots, self.held)
        return config_change.prepare(self.worker, self.number, config, region, new)

    def change(self, *services, **options):
        """Let the worker take a config in place."""
        self.prepare(*services, **options).use()

    def released(self):
        """The generations that the worker has reported as released."""
        return [message["released"] for message in self.channel.receive()[0] if "released" in message]

    def open(self, kind="service", field="sessions"):
        """{generation: number} of what is open, without zeros."""
        sums = {}
        for number, region in self.numbers.items():
            count = len(region.services if kind == "service" else region.targets)
            sums[number] = sum(region.total(kind, field, index) for index in range(count))
        assert all(value >= 0 for value in sums.values())
        return {number: value for number, value in sums.items() if value}

    def active(self):
        return self.open("target", "active")

    def client(self, listener, data=b""):
        """A client that has connected and sent ``data``."""
        sock = socket.create_connection((listener.address, listener.port))
        sock.settimeout(5)
        self.opened.append(sock)
        sock.sendall(data)
        return sock

    def datagram_client(self, listener, data):
        sock = socket.socket(socket.AF_INET6 if ":" in listener.address else socket.AF_INET, DATAGRAM)
        sock.setblocking(False)
        self.opened.append(sock)
        sock.sendto(data, (listener.address, listener.port))
        return sock

    def received(self, sock, size=65536):
        """(data, address) that a socket receives while the worker turns."""

        def receive():
            try:
                return sock.recvfrom(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None

        return self.turn_until(receive)

    def at_deadline(self, seconds=30.0):
        """Let the worker look at its earlier generations when that many seconds have passed."""
        now = self.loop.now
        self.loop.now = lambda: now() + seconds
        try:
            self.worker.earlier.look()
        finally:
            self.loop.now = now

    def close(self):
        self.tcp.abort_all("test")
        self.udp.end_all("test")
        listeners.close_all(self.worker.serving.listening)
        for sock in self.opened:
            sock.close()
        self.worker._channel.close()
        super().close()


def service(*backends, family="ipv4", protocol="tcp", name="web", port=None, **options):
    listener = Listener(ADDRESSES[family], port or free_ports(1)[0])
    options = {"source_fallback": "own", "retries": 3, "connect_timeout": 5.0, **options}
    return Service(name, (listener,), backends, protocol=protocol, **options)


def opened(host, web, server):
    client = host.client(web.listen[0], b"hello")
    peer = host.turn_until(server.accepted)
    assert host.received(peer)[0] == b"hello"
    return client, peer


def end(*socks):
    for sock in socks:
        sock.close()


def only_relay(host):
    (relay,) = host.turn_until(lambda: host.tcp.sessions)
    return relay


def other_backend(web, server):
    return replace(web, backends=(Backend("new", 9, **{server.family: ADDRESSES[server.family]}), *web.backends))


# What is done to a service and, for TCP, whether its sessions stay, or why they end. UDP sessions need their listener.
CHANGES = {
    "nothing": (lambda web, _server: (web,), True),
    "another backend comes first": (lambda web, server: (other_backend(web, server),), True),
    "its weight": (lambda web, _server: (replace(web, backends=(replace(web.backends[0], weight=9),)),), True),
    "its service's settings": (
        lambda web, _server: (replace(web, balance="source_hash", idle_timeout=9.0, limits=Limits(connections=5)),),
        True,
    ),
    "another listener": (lambda web, _server: (replace(web, listen=(free(web), *web.listen)),), True),
    "another service": (lambda web, _server: (replace(web, name="new", listen=(free(web),)), web), True),
    "the backend's name": (lambda web, server: (replace(web, backends=(server.backend("c"),)),), "backend removed"),
    "the backend's port": (
        lambda web, _server: (replace(web, backends=(replace(web.backends[0], port=9),)),),
        "backend removed",
    ),
    "the listener": (lambda web, _server: (replace(web, listen=(free(web),)),), True),
    "the service's name": (lambda web, _server: (replace(web, name="new"),), "service removed"),
    "the service": (lambda web, _server: (replace(web, name="new", listen=(free(web),)),), "service removed"),
}


def free(web):
    return Listener(web.listen[0].address, free_ports(1)[0])
