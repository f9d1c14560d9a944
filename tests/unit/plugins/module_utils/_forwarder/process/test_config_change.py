# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker takes a config in place: which sessions move, what counts them, and when the others end.

Over the loopback, so clients are hidden behind the proxy's own address.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace

import pytest
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
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State

from ..worker_host import WorkerHost, free_ports

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


class Host(WorkerHost):
    """A worker of slot 0 of two, whose configs change."""

    def __init__(self, directory, *services, **options):
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
        self.worker.cover([1])  # a client may meet either socket of its address
        self.tcp.set_accepting(True)
        self.udp.set_receiving(True)

    def new_region(self, config):
        """The memory of the next generation, as the supervisor maps it."""
        self.number += 1
        self.region = self.numbers[self.number] = shared_memory.Region(shared_memory.describe(config, 2))
        return self.theirs(self.region)

    @staticmethod
    def theirs(region):
        """The same memory, as another process maps it."""
        return shared_memory.Region(region.record, os.dup(region.fd))

    def bind(self, config):
        """Bind what the config needs as the supervisor does; return what is new."""
        new = listeners.bind_missing(config, 2, self.held)
        self.held.update(new)
        return new

    @staticmethod
    def copies(socks):
        return {name: sock.dup() for name, sock in socks.items()}

    def prepare(self, *services, **options):
        config = Config(proxy_id=1, services=services, **options)
        region, new = self.new_region(config), self.copies(self.bind(config))
        listeners.settle(config, 2, self.held)
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
        for sock in self.opened:
            sock.close()
        super().close()


@pytest.fixture
def make(tmp_path):
    """A function that makes a Host."""
    hosts = []

    def host(*services, **options):
        hosts.append(Host(tmp_path, *services, **options))
        return hosts[-1]

    yield host
    for each in hosts:
        each.close()


@pytest.fixture
def serve():
    """A function that makes a Server."""
    servers = []

    def server(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield server
    for each in servers:
        each.close()


def service(*backends, family="ipv4", protocol="tcp", name="web", port=None, **options):
    listener = Listener(ADDRESSES[family], port or free_ports(1, STREAM if protocol == "tcp" else DATAGRAM)[0])
    options = {"source_fallback": "own", "retries": 3, "connect_timeout": 5.0, **options}
    return Service(name, (listener,), backends, protocol=protocol, **options)


# -- TCP: the state of a session, and what has changed ---------------------------------------------------------------


def waiting(host, web):
    """A session that waits for its PROXY header."""
    return host.client(web.listen[0])


def connecting(host, web):
    return host.client(web.listen[0], b"hello")


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
    "the listener": (lambda web, _server: (replace(web, listen=(free(web),)),), "listener removed"),
    "the service's name": (lambda web, _server: (replace(web, name="new"),), "service removed"),
    "the service": (lambda web, _server: (replace(web, name="new", listen=(free(web),)),), "service removed"),
}


def free(web):
    return Listener(web.listen[0].address, free_ports(1)[0])


@pytest.fixture(params=ADDRESSES)
def family(request):
    return request.param


@pytest.fixture(params=CHANGES)
def change(request):
    return CHANGES[request.param]


def check_move(host, relay, moves):
    """The session and all that counts it are in the new generation, or all are in the old one."""
    assert host.open() == host.active() == {2 if moves else 1: 1}
    assert (relay.runtime in host.worker.serving.runtimes.values()) == moves
    assert relay.backends in relay.runtime.backends.values()
    assert relay.limiter is relay.runtime.limiter
    assert (relay.acceptor in host.tcp.acceptors) == moves
    assert relay.acceptor.targets[relay.backends.family][relay.index][1] == relay.backend.port
    assert host.released() == ([1] if moves else [])


def check_end(host, reason):
    assert host.turn_until(lambda: host.released() or not host.worker.earlier._generations)
    assert host.open() == host.active() == {}
    (line,) = host.events("connection")
    assert line["ended"] == reason


@pytest.mark.parametrize("state", [State.OPEN, State.CLIENT_ENDED, State.BACKEND_ENDED])
def test_an_established_session_moves_exactly_if_its_place_is_still_there(make, serve, family, change, state):
    server = serve(family)
    web = service(server.backend(), family=family)
    host = make(web)
    client, peer = opened(host, web, server)
    relay = only_relay(host)
    end, other = (client, peer) if state is State.CLIENT_ENDED else (peer, client)
    if state is not State.OPEN:
        end.shutdown(socket.SHUT_WR)
        assert host.received(other)[0] == b""
    assert relay.state is state
    services, expected = change
    host.change(*services(web, server))
    check_move(host, relay, expected is True)
    if state is not State.CLIENT_ENDED:
        client.sendall(b"more")
        assert host.received(peer)[0] == b"more"
    if state is not State.BACKEND_ENDED:
        peer.sendall(b"answer")
        assert host.received(client)[0] == b"answer"
    if expected is not True:
        host.at_deadline(29.0)
        assert relay.state is state, "not before its deadline"
        host.at_deadline()
        for sock in (client, peer):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNRESET, errno.EPIPE), "RST"
        check_end(host, expected)
        return
    host.at_deadline()
    for sock in (client, peer):
        sock.close()
    host.turn_until(lambda: not host.tcp.sessions)
    check_end(host, relay.ended)
    assert relay.ended in ("closed", "client reset", "backend reset")


def test_a_session_that_waits_for_its_proxy_header_goes_on_as_the_new_config_says(make, serve, family, change):
    server, new = serve(family), serve(family)
    web = service(server.backend(), family=family, accept_proxy=("127.0.0.0/8", "::1/128"))
    host = make(web)
    client = host.client(web.listen[0])
    relay = only_relay(host)
    services, expected = change
    changed = [
        replace(one, backends=(new.backend("z"),)) if one.name == "web" and web.listen[0] in one.listen else one
        for one in services(web, server)
    ]
    host.change(*changed)
    moves = expected is True or expected == "backend removed"
    assert host.open() == {2 if moves else 1: 1}
    assert host.released() == ([1] if moves else [])
    client.sendall(b"PROXY UNKNOWN\r\nhello")
    peer = host.turn_until((new if moves else server).accepted)
    assert host.received(peer)[0] == b"hello"
    if not moves:
        check_move(host, relay, moves)
    host.at_deadline()
    assert bool(host.tcp.sessions) == moves


@pytest.mark.parametrize("from_proxy", [False, True])
def test_an_attempt_at_a_backend_that_stays_goes_on_and_one_at_a_backend_that_left_blames_nobody(
    make, serve, family, change, from_proxy
):
    full, new = serve(family, full=True), serve(family)
    trusted = ("127.0.0.0/8", "::1/128") if from_proxy else ()
    web = service(full.backend(), family=family, retries=0, accept_proxy=trusted)
    host = make(web)
    client = host.client(web.listen[0], b"PROXY UNKNOWN\r\n" * from_proxy + b"hello")
    relay = only_relay(host)
    host.turn_until(lambda: relay.state is State.CONNECTING)
    services, expected = change
    changed = list(services(web, full))
    if expected == "backend removed":
        changed = [replace(web, backends=(new.backend("z"),))]
    host.change(*changed)
    if expected != "backend removed":
        check_move(host, relay, expected is True)
        assert relay.state is State.CONNECTING
        full.sock.accept()
        host.turn_until(lambda: relay.state is State.OPEN)
        assert relay.attempts == 1
        return
    peer = host.turn_until(new.accepted)
    assert host.received(peer)[0] == b"hello"
    check_move(host, relay, True)
    assert relay.attempts == 1, "the attempt at the backend that left was no retry"
    assert relay.backends.health.failed_for == {}
    assert host.region.total("target", "failed_local") == host.region.total("target", "failed_timeout") == 0
    client.close()
    host.turn_until(lambda: peer.recv(1, socket.MSG_DONTWAIT) == b"")


def test_an_attempt_passes_over_the_backends_that_failed_it_before_the_change(make, serve):
    full, new = serve(full=True), serve()
    refusing = Backend("a", free_ports(1)[0], ipv4="127.0.0.1")
    web = service(refusing, full.backend(), backup := replace(new.backend("z"), backup=True))
    host = make(web)
    host.client(web.listen[0], b"hello")
    relay = only_relay(host)
    host.turn_until(lambda: relay.state is State.CONNECTING and relay.attempts == 2)
    host.change(replace(web, backends=(backup, full.backend(), refusing)))
    assert [relay.backends.backends[index].name for index in relay.tried] == ["a", "b"]
    relay.attempt_timed_out()
    host.turn_until(new.accepted)
    assert relay.attempts == 3
    assert host.open() == host.active() == {2: 1}


def test_sessions_of_a_service_that_has_no_more_backends_of_their_family_are_refused_or_stay(make, serve):
    full, server = serve("ipv6", full=True), serve("ipv6")
    web = service(full.backend(), family="ipv6")
    other = service(server.backend(), family="ipv6", name="other")
    host = make(web, other)
    host.client(web.listen[0])
    connecting = only_relay(host)
    host.turn_until(lambda: connecting.state is State.CONNECTING)
    opened(host, other, server)
    only_ipv4 = (Backend("b", free_ports(1)[0], ipv4="127.0.0.1"),)
    host.change(*(replace(one, backends=only_ipv4, source_fallback="refuse") for one in (web, other)))
    assert connecting.ended == "client address is loopback"
    assert host.open() == host.active() == {1: 1}
    host.at_deadline()
    assert host.open() == host.active() == {}
    assert [line["ended"] for line in host.events("connection")] == ["client address is loopback", "backend removed"]


# -- TCP: what comes back, limits, listeners ---------------------------------------------------------------------------


def test_a_backend_a_listener_or_a_service_that_comes_back_takes_its_sessions_back(make, serve, family, change):
    server = serve(family)
    web = service(server.backend(), family=family, limits=Limits(connections_per_client=1))
    host = make(web)
    client, peer = opened(host, web, server)
    relay = only_relay(host)
    services, _expected = change
    host.change(*services(web, server))
    host.change(web)
    assert host.open() == host.active() == {3: 1}
    assert host.released() == [1, 2]
    host.at_deadline()
    client.sendall(b"more")
    assert host.received(peer)[0] == b"more"
    assert relay.limiter is host.worker.serving.runtimes["web"].limiter
    host.client(web.listen[0])
    host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
    end(client, peer)
    host.turn_until(lambda: not host.tcp.sessions)
    assert host.open() == host.active() == {}
    opened(host, web, server)


def test_the_deadline_of_a_removal_is_that_of_the_config_that_still_had_it(make, serve):
    server = serve()
    web = service(server.backend())
    host = make(web, drain_timeout=7.0)
    opened(host, web, server)
    host.change(service(server.backend(), name="new"), drain_timeout=100.0)
    host.at_deadline(6.0)
    assert host.open() == {1: 1}
    host.change(service(server.backend(), name="newer"), drain_timeout=200.0)
    assert host.open() == {1: 1}, "a later change does not prolong it"
    host.at_deadline(7.0)
    assert host.open() == {}
    assert sorted(host.released()) == [1, 2]
    (line,) = host.events("sessions of a removal ended")
    assert (line["service"], line["sessions"]) == ("web", 1)


def test_limits_hold_over_a_change(make, serve):
    server = serve()
    web = service(server.backend(max_connections=2), limits=Limits(connections_per_client=2))
    host = make(web)
    opened(host, web, server)
    host.change(web)
    opened(host, web, server)
    third = host.client(web.listen[0])
    host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
    assert third.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    host.change(replace(web, limits=Limits()))
    assert {relay.limiter for relay in host.tcp.sessions} == {None}
    host.client(web.listen[0])
    host.turn_until(lambda: host.region.total("service", "refused_no_backend") == 1)
    host.change(replace(web, limits=Limits(connections_per_client=2), backends=(server.backend(),)))
    host.client(web.listen[0])
    host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
    host.change(replace(web, limits=Limits(connections=3, at_limit="refuse"), backends=(server.backend(),)))
    opened(host, web, server)
    host.client(web.listen[0])
    host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
    assert host.open() == host.active() == {5: 3}
    assert host.released() == [1, 2, 3, 4]


@pytest.mark.parametrize(("limits", "paused"), [
    (Limits(connections=1, at_limit="pause"), True),
    (Limits(connections=2, at_limit="pause"), False),
    (Limits(connections=1, at_limit="refuse"), False),
    (Limits(), False),
])  # fmt: skip
def test_a_service_stays_paused_exactly_while_the_new_limits_ask_for_it(make, serve, limits, paused):
    server = serve()
    web = service(server.backend(), limits=Limits(connections=1, at_limit="pause"))
    host = make(web)
    client, peer = opened(host, web, server)
    waiting = host.client(web.listen[0], b"hello")
    runtime = host.worker.serving.runtimes["web"]
    host.turn_until(lambda: runtime.paused)
    host.change(replace(web, limits=limits))
    assert host.worker.serving.runtimes["web"].paused == paused
    assert not runtime.paused
    if limits.at_limit == "refuse":
        host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
        return
    if paused:
        host.turn()
        assert host.open() == {2: 1}
        end(client, peer)
    host.received(host.turn_until(server.accepted))
    waiting.close()


def test_what_is_queued_at_a_listener_that_leaves_is_served_and_then_nothing_listens(make, serve):
    server = serve()
    web = service(server.backend())
    listener = free(web)
    host = make(web)
    host.tcp.set_accepting(False)
    client = host.client(web.listen[0], b"hello")
    host.change(replace(web, listen=(listener,)))
    assert host.open() == {1: 1}
    host.tcp.set_accepting(True)
    peer = host.turn_until(server.accepted)
    assert host.received(peer)[0] == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((web.listen[0].address, web.listen[0].port))
    host.client(listener, b"new")
    assert host.received(host.turn_until(server.accepted))[0] == b"new"
    end(client, peer)
    host.turn_until(lambda: host.open() == host.active() == {2: 1})


def test_a_new_socket_is_covered_like_the_others(make, serve):
    server = serve()
    web = service(server.backend())
    host = make(web)
    host.worker.cover([])
    host.change(replace(web, listen=(free(web), *web.listen)))

    def served():
        return {(one.listener.port, one.slot) for one in host.tcp.acceptors if one._listening}

    new, old = (one.port for one in host.worker.config.services[0].listen)
    assert served() == {(new, 0), (old, 0)}
    host.worker.cover([1])
    assert served() == {(new, 0), (old, 0), (new, 1), (old, 1)}
    assert [one._listening for one in host.tcp.acceptors] == [True] * 4


def test_a_change_that_is_discarded_or_refused_has_no_effect(make, serve):
    server = serve()
    web = service(server.backend())
    host = make(web)
    client, peer = opened(host, web, server)
    before = {number: region.row(0) for number, region in host.numbers.items()}
    descriptors = len(os.listdir("/proc/self/fd"))
    listener = free(web)
    change = host.prepare(service(server.backend("c"), name="new", port=listener.port))
    change.discard()
    for name in [name for name in host.held if str(listener) in name]:
        host.held.pop(name).close()
    host.numbers.pop(2).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 2, "the sockets of web, which settle() closed"
    assert {number: region.row(0) for number, region in host.numbers.items()} == before
    client.sendall(b"more")
    assert host.received(peer)[0] == b"more"
    config = Config(proxy_id=1, services=(web,))
    region = shared_memory.Region(shared_memory.describe(config, 3))
    with pytest.raises(config_change.Refused, match="3 workers instead of 2"):
        config_change.prepare(host.worker, 3, config, region, {})
    region.close()
    region = shared_memory.Region(shared_memory.describe(config, 2))
    config = Config(proxy_id=1, services=(replace(web, listen=(listener,)),))
    with pytest.raises(config_change.Refused, match=f"the worker has no socket for tcp:{listener}#0, tcp:{listener}#1"):
        config_change.prepare(host.worker, 3, config, region, {})
    region.close()


def test_what_a_worker_knows_of_a_backend_stays_known(make, serve):
    server = serve()
    bad = Backend("bad", free_ports(1)[0], ipv4="127.0.0.1")
    web = service(bad, server.backend(), retries=1)
    host = make(web)
    opened(host, web, server)
    backends = host.worker.serving.runtimes["web"].backends["ipv4"]
    known = backends.health.failed_for["127.0.0.1"][0]
    host.change(other_backend(web, server))
    after = host.worker.serving.runtimes["web"].backends["ipv4"]
    assert after.health.failed_for == {"127.0.0.1": {1: known}}
    assert after._algorithm._credit == [0, *backends._algorithm._credit]
    host.change(replace(web, backends=(replace(bad, port=1), server.backend()), balance="random"))
    assert host.worker.serving.runtimes["web"].backends["ipv4"].health.failed_for == {}
