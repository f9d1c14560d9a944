# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP in a worker of this process, over the loopback: clients of 127.0.0.0/8 are hidden behind the own address."""

from __future__ import annotations

import json
import socket
import time

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
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.worker import Worker
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import takeover

PATIENCE = 20.0


class Host:
    """A worker with one UDP service on 127.0.0.1 and a backend at 127.0.0.1, turned by hand."""

    def __init__(self, directory, held=None, port=None, **options):
        self.backend = self.socket()
        self.port = port or free_port()
        backend = Backend(name="b", ipv4="127.0.0.1", port=self.backend.getsockname()[1])
        options = {"source_fallback": "own", "idle_timeout": 60.0, **options}
        listen = (Listener("127.0.0.1", self.port),)
        self.service = Service("dns", listen, (options.pop("backend", backend),), protocol="udp", **options)
        config = Config(proxy_id=1, services=(self.service,))
        self.held = held or listeners.bind_missing(config, 1, ())
        self.region = shared_memory.Region(shared_memory.describe(config, 1))
        self.log_path = directory / f"log{id(self)}"
        self.log_file = self.log_path.open("wb")
        _ours, theirs = channel.pair()
        log = Log(fd=self.log_file.fileno())
        self.worker = Worker(config, self.held, log, theirs, self.region, 0)
        self.udp = self.worker.udp
        self.udp.set_receiving(True)
        self.clients = []

    def socket(self):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        made.settimeout(0.1)
        return made

    def client(self):
        self.clients.append(self.socket())
        return self.clients[-1]

    def ask(self, client, data):
        client.sendto(data, ("127.0.0.1", self.port))

    def heard(self, sock):
        """(data, source) of the next datagram, while the worker turns."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.turn()
            try:
                return sock.recvfrom(65536)
            except OSError:  # its timeout
                pass
        raise AssertionError("nothing came")

    def turn(self):
        self.worker.loop.timers.add(self.worker.loop.now() + 0.05, int)  # so that a turn ends
        self.worker._turn()

    def sessions(self):
        return self.region.sessions(0)

    def events(self, name):
        self.worker.loop.log.flush()
        lines = map(json.loads, self.log_path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["event"] == name]

    def close(self):
        self.udp.end_all("test")
        for sock in (*self.clients, self.backend, self.log_file):
            sock.close()


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def own_sockets(host):
    """The upstream sockets of one session each."""
    return [lane for lane in host.udp.upstreams.all if not lane.shared]


@pytest.fixture
def make(tmp_path):
    """A function that makes a Host."""
    made = []

    def host(*arguments, **options):
        made.append(Host(tmp_path, *arguments, **options))
        return made[-1]

    yield host
    for one in made:
        one.close()


def test_a_datagram_there_and_back_is_a_session(make):
    host = make()
    client = host.client()
    host.ask(client, b"question")
    data, source = host.heard(host.backend)
    host.backend.sendto(b"answer", source)
    assert (data, host.heard(client)) == (b"question", (b"answer", ("127.0.0.1", host.port)))
    (flow,) = host.udp.table.flows
    assert host.sessions() == 1
    host.udp.end(flow, "over")
    (line,) = host.events("session")
    expected = {"service": "dns", "backend": "b", "client_port": client.getsockname()[1], "source_port": source[1]}
    expected |= {"bytes_to_backend": 8, "bytes_to_client": 6, "datagrams_to_backend": 1, "datagrams_to_client": 1}
    assert {key: line[key] for key in expected} == expected
    assert (host.sessions(), own_sockets(host)) == (0, [])  # the own socket went with its session


def test_a_stranger_on_the_upstream_socket_is_counted_and_nothing_else(make):
    host = make(source_fallback="own")
    client = host.client()
    host.ask(client, b"question")
    host.heard(host.backend)
    (flow,) = host.udp.table.flows
    flow.upstream.flows.clear()  # as if the session were over
    host.backend.sendto(b"late", ("127.0.0.1", flow.upstream.port))
    before = host.region.cells[host.region.cell(0, "worker", "datagrams_stray")]
    deadline = time.monotonic() + PATIENCE
    while host.region.cells[host.region.cell(0, "worker", "datagrams_stray")] == before:
        assert time.monotonic() < deadline
        host.turn()
    flow.upstream.flows[flow.reply_key] = flow
    assert flow.datagrams_to_client == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limits": Limits(connections=1)}, "connection limit of the service"),
        ({"limits": Limits(connections_per_client=1)}, "connection limit of the client"),
        ({"limits": Limits(rate_per_client=0.001)}, "rate limit of the client"),
    ],
)
def test_refusals_are_counted_each_and_logged_once(make, options, reason):
    host = make(**options)
    first, second = host.client(), host.client()
    host.ask(first, b"1")
    assert host.heard(host.backend)[0] == b"1"
    for _datagram in range(3):
        host.ask(second, b"2")
    host.ask(first, b"3")
    assert host.heard(host.backend)[0] == b"3"
    (line,) = host.events("datagram refused")
    assert (line["reason"], line["client"]) == (reason, "127.0.0.1")
    assert host.region.cells[host.region.cell(0, "service", "refused_limited", 0)] == 3
    assert len(host.udp.table) == 1


def test_a_client_that_leaves_makes_room(make):
    host = make(limits=Limits(connections_per_client=1))
    for data in (b"1", b"2"):
        host.ask(host.client(), data)
        assert host.heard(host.backend)[0] == data
        (flow,) = host.udp.table.flows
        host.udp.end(flow, "over")


def test_clients_that_cannot_be_spoofed_are_refused_where_the_own_address_may_not_stand_in(make):
    host = make(source_fallback="refuse", limits=Limits(connections_per_client=1))
    for _datagram in range(2):  # the first one is not counted by the limiter
        host.ask(host.client(), b"1")
    host.turn()
    reasons = {line["reason"] for line in host.events("datagram refused")}
    assert reasons == {"client address is loopback"}
    assert host.sessions() == 0


def test_beyond_the_bound_of_the_worker_a_session_makes_room(make):
    host = make(limits=Limits(connections_per_client=5))
    for number, sessions in enumerate((1, 2, 3, 4, 3, 2, 2)):
        host.udp.table.flows.most = 4 if number < 4 else 2  # as where more were taken over than a worker has
        host.ask(host.client(), b"%d" % number)
        assert host.heard(host.backend)[0] == b"%d" % number
        assert len(host.udp.table) == sessions
    assert [line["ended"] for line in host.events("session")] == ["made room for a new session"] * 5
    assert len(host.events("sessions make room")) == 1, "at most one line in ten seconds"
    assert host.events("datagram refused") == [], "each of them left the limits as well"
    assert host.region.cells[host.region.cell(0, "service", "made_room", 0)] == 5


def test_where_upstream_sockets_are_used_up_a_session_makes_room(make):
    """Clients that are hidden have a socket each."""
    host = make()
    host.udp.table.alone.most = 2
    for number in range(5):
        host.ask(host.client(), b"%d" % number)
        assert host.heard(host.backend)[0] == b"%d" % number
    assert (len(host.udp.table), host.sessions(), len(own_sockets(host))) == (2, 2, 2)


def test_an_idle_session_ends(make):
    host = make(idle_timeout=1.0)
    host.ask(host.client(), b"1")
    host.heard(host.backend)
    now = host.worker.loop.now()
    for seconds in (0.5, 1.0, 1.6):
        host.udp.check(now + seconds)
    (line,) = host.events("session")
    assert line["ended"] == "idle timeout"


def test_what_icmp_says_ends_the_session_and_the_next_one_tries_all_the_same(make):
    host = make()
    host.backend.close()
    client = host.client()
    for _session in range(2):
        host.ask(client, b"1")
        deadline = time.monotonic() + PATIENCE
        before = len(host.events("session"))
        while len(host.events("session")) == before:
            assert time.monotonic() < deadline
            host.turn()
    assert {line["ended"] for line in host.events("session")} == {"ECONNREFUSED: Connection refused"}
    assert len(host.events("backend skipped")) == 1


def hand_over(make, old, **options):
    """A host that has taken over what ``old`` left."""
    new = make(old.held, old.port, **options)
    left, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for host in (old, new):
        host.udp.set_receiving(False)
    for listener in old.udp.listeners.values():  # another process has a descriptor of its own
        listener.sock = listener.sock.dup()
    with left:
        old.udp.hand_over(left)
        takeover.Takeover(new.udp, [taken])
        deadline = time.monotonic() + PATIENCE
        while not new.udp.receiving:
            assert time.monotonic() < deadline
            new.turn()
    return new


def test_a_session_goes_on_in_the_next_generation(make):
    old = make()
    client = old.client()
    old.ask(client, b"1")
    _data, source = old.heard(old.backend)
    old.backend.sendto(b"while nobody reads", source)
    old.ask(client, b"2")
    old.udp.set_receiving(False)
    new = hand_over(make, old, backend=old.service.backends[0])
    assert new.heard(old.backend) == (b"2", source)
    assert new.heard(client)[0] == b"while nobody reads"
    assert (old.sessions(), new.sessions()) == (0, 1)
    (flow,) = new.udp.table.flows
    assert (flow.datagrams_to_backend, flow.datagrams_to_client) == (2, 1)
    assert old.events("session") == []


def test_a_session_without_a_place_in_the_next_generation_is_dropped(make):
    old = make(limits=Limits(connections_per_client=1))
    client = old.client()
    old.ask(client, b"1")
    old.heard(old.backend)
    new = hand_over(make, old)  # its backend has another port
    (line,) = new.events("sessions taken over")
    assert (line["sessions"], line["dropped"]) == (0, 1)
    assert (new.sessions(), own_sockets(new)) == (0, [])
    old.ask(client, b"2")
    assert new.heard(new.backend)[0] == b"2"
