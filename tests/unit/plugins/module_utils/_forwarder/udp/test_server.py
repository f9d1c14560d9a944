# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP of a worker over the loopback: clients of 127.0.0.0/8 are hidden behind the proxy's own address."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import settings
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import (
    Backend,
    Limits,
    Listener,
    Service,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import takeover

from ..worker_host import WorkerHost, free_ports


class Host(WorkerHost):
    """A worker with one UDP service and its backend, both on 127.0.0.1."""

    def __init__(self, directory, held=None, port=None, **options):
        self.sockets = []
        self.backend = self.client()
        self.port = port or free_ports(1)[0]
        backend = options.pop("backend", None) or Backend("b", self.backend.getsockname()[1], ipv4="127.0.0.1")
        options = {"source_fallback": "own", "idle_timeout": 60.0, **options}
        listen = (Listener("127.0.0.1", self.port),)
        super().__init__(directory, Service("dns", listen, (backend,), protocol="udp", **options), held=held)
        self.udp.set_receiving(True)

    def client(self):
        """A socket of a client."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        self.sockets.append(sock)
        return sock

    def ask(self, client, data):
        client.sendto(data, ("127.0.0.1", self.port))

    def received(self, sock):
        """(data, source) of the next datagram, while the worker turns."""

        def receive():
            try:
                return sock.recvfrom(65536)
            except BlockingIOError:
                return None

        return self.turn_until(receive)

    def pass_on(self, data, client=None):
        """Send a datagram from a client, a new one by default, to the backend; return the source that it sees."""
        self.ask(client or self.client(), data)
        seen, source = self.received(self.backend)
        assert seen == data
        return source

    @property
    def flow(self):
        """The only flow."""
        (flow,) = self.udp.table.flows
        return flow

    def sessions(self):
        return self.region.sessions(0)

    def own_sockets(self):
        """The upstream sockets of one session each."""
        return [upstream for upstream in self.udp.upstreams.all if not upstream.shared]

    def close(self):
        self.udp.end_all("test")
        for sock in self.sockets:
            sock.close()
        super().close()


@pytest.fixture
def make(tmp_path):
    """A function that makes a Host."""
    hosts = []

    def host(*arguments, **options):
        hosts.append(Host(tmp_path, *arguments, **options))
        return hosts[-1]

    yield host
    for each in reversed(hosts):
        each.close()


def test_a_datagram_and_its_reply_are_a_session(make):
    host = make()
    client = host.client()
    source = host.pass_on(b"question", client)
    host.backend.sendto(b"answer", source)
    assert host.received(client) == (b"answer", ("127.0.0.1", host.port))
    assert host.sessions() == 1
    host.udp.end(host.flow, "over")
    (line,) = host.events("session")
    expected = {"service": "dns", "backend": "b", "client_port": client.getsockname()[1], "source_port": source[1]}
    expected |= {"bytes_to_backend": 8, "bytes_to_client": 6, "datagrams_to_backend": 1, "datagrams_to_client": 1}
    assert {key: line[key] for key in expected} == expected
    assert (host.sessions(), host.own_sockets()) == (0, [])


def test_a_reply_without_a_session_is_only_counted(make):
    host = make()
    host.pass_on(b"question")
    flow = host.flow
    flow.upstream.flows.clear()  # as if the session had ended
    host.backend.sendto(b"late", ("127.0.0.1", flow.upstream.port))
    before = host.counted("datagrams_stray", "worker")
    host.turn_until(lambda: host.counted("datagrams_stray", "worker") > before)
    flow.upstream.flows[flow.reply_key] = flow
    assert flow.datagrams_to_client == 0


@pytest.mark.parametrize(("limits", "reason"), [
    (Limits(connections=1), "connection limit of the service"),
    (Limits(connections_per_client=1), "connection limit of the client"),
    (Limits(rate_per_client=0.001), "rate limit of the client"),
])  # fmt: skip
def test_each_refusal_is_counted_and_one_is_logged(make, limits, reason):
    host = make(limits=limits)
    first, second = host.client(), host.client()
    host.pass_on(b"1", first)
    for _datagram in range(3):
        host.ask(second, b"2")
    host.pass_on(b"3", first)
    (line,) = host.events("datagram refused")
    assert (line["reason"], line["client"]) == (reason, "127.0.0.1")
    assert host.counted("refused_limited") == 3
    assert len(host.udp.table) == 1


def test_the_limits_count_a_client_only_while_it_has_a_session_and_one_without_its_backend_is_not_taken_over(make):
    old = make(limits=Limits(connections_per_client=1))
    old.pass_on(b"0")
    old.udp.end(old.flow, "over")
    client = old.client()
    old.pass_on(b"1", client)
    new = hand_over(make, old)  # its backend has another port
    (line,) = new.events("sessions taken over")
    assert (line["sessions"], line["dropped"]) == (0, 1)
    assert (new.sessions(), new.own_sockets()) == (0, [])
    new.pass_on(b"2", client)


def test_without_fallback_a_client_that_cannot_be_spoofed_is_refused_and_not_counted_by_the_limits(make):
    host = make(source_fallback="refuse", limits=Limits(connections_per_client=1))
    for _datagram in range(2):
        host.ask(host.client(), b"1")
    host.turn()
    assert {line["reason"] for line in host.events("datagram refused")} == {"client address is loopback"}
    assert host.sessions() == 0


def test_in_a_full_worker_a_new_session_ends_old_ones(make):
    host = make(limits=Limits(connections_per_client=5))
    for number, sessions in enumerate((1, 2, 3, 4, 3, 2, 2)):
        host.udp.table.flows.most = 4 if number < 4 else 2  # as if it had taken over more than it may have
        host.pass_on(b"%d" % number)
        assert len(host.udp.table) == sessions
    assert [line["ended"] for line in host.events("session")] == ["made room for a new session"] * 5
    assert len(host.events("sessions evicted")) == 1, "at most one line in ten seconds"
    assert host.events("datagram refused") == [], "each of them left the limits as well"
    assert host.counted("made_room") == 5


def test_without_free_upstream_sockets_a_new_session_ends_an_old_one(make):
    host = make()
    host.udp.table.alone.most = 2  # hidden clients need a socket each
    for number in range(5):
        host.pass_on(b"%d" % number)
    assert (len(host.udp.table), host.sessions(), len(host.own_sockets())) == (2, 2, 2)


def test_an_idle_session_ends(make):
    host = make(idle_timeout=1.0)
    host.pass_on(b"1")
    now = host.loop.now()
    for seconds in (0.5, 1.0, 1.6):
        host.udp.check(now + seconds)
    (line,) = host.events("session")
    assert line["ended"] == "idle timeout"


def test_an_icmp_error_ends_the_session_and_the_only_backend_is_tried_again(make):
    host = make()
    host.backend.close()
    client = host.client()
    for sessions in (1, 2):
        host.ask(client, b"1")
        host.turn_until(lambda sessions=sessions: len(host.events("session")) == sessions)
    assert {line["ended"] for line in host.events("session")} == {"ECONNREFUSED: Connection refused"}
    assert len(host.events("backend skipped")) == 1


def hand_over(make, old, **options):
    """A host that has taken over what ``old`` handed over."""
    new = make(old.held, old.port, **options)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for host in (old, new):
        host.udp.set_receiving(False)
    for listener in old.udp.listeners.values():  # another process would have a descriptor of its own
        listener.sock = listener.sock.dup()
    with ours:
        old.udp.hand_over(ours)
        takeover.Takeover(new.udp, [theirs])
        new.turn_until(lambda: new.udp.receiving)
    return new


def test_a_session_goes_on_in_the_next_generation(make):
    old = make()
    client = old.client()
    source = old.pass_on(b"1", client)
    old.backend.sendto(b"while nobody reads", source)
    old.ask(client, b"2")
    old.udp.set_receiving(False)
    new = hand_over(make, old, backend=old.service.backends[0])
    assert new.received(old.backend) == (b"2", source)
    assert new.received(client)[0] == b"while nobody reads"
    assert (old.sessions(), new.sessions()) == (0, 1)
    assert (new.flow.datagrams_to_backend, new.flow.datagrams_to_client) == (2, 1)
    assert old.events("session") == []


@pytest.mark.parametrize(("first", "shared"), [(0, True), (1, False)])
def test_new_sessions_do_not_use_a_socket_of_a_predecessor_whose_port_is_not_in_the_slice(tmp_path, first, shared):
    host = Host(tmp_path)
    sock = host.client()
    port = sock.getsockname()[1] + first
    host.udp.bound(source_address.SourcePorts(settings.PortRange(port, port + 63)), 64)
    upstream = host.udp.upstreams.take_over(sock, {"shared": True, "owner": None})
    assert (upstream in host.udp.table.shared.get(upstream.family, ())) is shared
    host.udp.upstreams.close(upstream)
    host.close()
