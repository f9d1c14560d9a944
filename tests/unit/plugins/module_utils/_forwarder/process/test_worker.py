# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop of a worker: what ends one session only, and what is said when it accepts no more."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import acl
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import Log
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.worker import Worker
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.relay import Relay
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.session import State


class Host:
    """A worker with two listeners in this process, and its log."""

    def __init__(self, directory):
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self.ports = [sock.getsockname()[1] for sock in (one, two)]
        backend = Backend(name="b", ipv4="198.18.0.21", port=80)
        self.listen = tuple(Listener("127.0.0.1", port) for port in self.ports)
        self.service = Service("web", self.listen, (backend,))
        config = Config(proxy_id=1, services=(self.service,))
        self.held = listeners.bind_missing(config, 2, ())
        self.region = shared_memory.Region(shared_memory.describe(config, 2))
        self.log_path = directory / "log"
        self.log_file = self.log_path.open("wb")
        self.line, theirs = channel.pair()
        self.worker = Worker(config, self.held, Log(fd=self.log_file.fileno()), theirs, self.region, 0)

    def relay(self):
        """Return a session of a client that has not chosen a backend yet, and the client's end."""
        client, accepted = socket.socketpair()
        acceptor = self.worker.tcp.acceptors[0]
        relay = Relay(self.worker.tcp, acceptor, accepted, ("203.0.113.7", 4000))
        self.worker.tcp.sessions.add(relay)
        acceptor.runtime.counters.began()
        return relay, client

    def lines(self, event):
        """Return the log's lines of an event."""
        self.worker.loop.log.flush()
        lines = [json.loads(line) for line in self.log_path.read_text(encoding="ascii").splitlines()]
        return [line for line in lines if line["event"] == event]

    def close(self):
        listeners.close_all(self.held)
        self.worker.loop.poller.close()
        self.log_file.close()
        self.line.close()


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.close()


def test_a_defect_in_the_timer_of_a_session_ends_that_session_only(host, monkeypatch):
    def defect(_relay):
        raise ZeroDivisionError

    ran = []
    relay, client = host.relay()
    other, other_client = host.relay()
    monkeypatch.setattr(Relay, "attempt_timed_out", defect)
    host.worker.tcp.connecting[relay] = 0.0
    host.worker.loop.timers.add(0.0, relay.attempt_timed_out)
    host.worker.loop.timers.add(0.0, lambda: ran.append("the next timer of the same tick"))
    with client, other_client:
        host.worker._turn()
        assert client.recv(1) == b""
        assert host.worker.tcp.sessions == {other}
        assert ran == ["the next timer of the same tick"]
        assert host.lines("connection")[0]["ended"] == "internal error: ZeroDivisionError()"
        assert host.lines("defect")[0]["trace"]
        other.abort("over")


def test_a_line_about_what_the_clock_brought_is_written_in_the_same_turn(host):
    host.worker.loop.timers.add(0.0, lambda: host.worker.loop.log.event("the clock"))
    host.worker._turn()
    assert not host.worker.loop.log.waiting
    assert host.lines("the clock")


def test_a_defect_in_the_workers_own_timer_is_not_hidden(host):
    host.worker.loop.timers.add(0.0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.worker._turn()


def test_a_worker_that_is_full_says_so_once_and_goes_on_when_a_session_ends(host):
    relay, client = host.relay()
    host.worker.tcp.most_sessions = 1
    host.worker.cover([1])  # a client may meet either socket of its address
    host.worker.tcp.set_accepting(True)
    clients = [socket.create_connection(("127.0.0.1", port)) for port in host.ports]
    try:
        host.worker._turn()
        (line,) = host.lines("accept paused")
        assert line["sessions"] == 1
        assert "RLIMIT_NOFILE" in line["reason"]
        assert not host.worker.tcp.accepting
        relay.abort("over")
        assert host.worker.tcp.accepting
    finally:
        for sock in (client, *clients):
            sock.close()


def served(host):
    """Return the slots whose listeners the worker polls."""
    return {acceptor.slot for acceptor in host.worker.tcp.acceptors if acceptor._listening}


def test_a_worker_serves_its_slot_and_covers_others_when_told(host):
    host.worker.tcp.set_accepting(True)
    assert served(host) == {0}
    host.line.send({"cover": [1]})
    host.worker._hear(0)
    assert served(host) == {0, 1}
    host.worker.tcp.set_accepting(False)
    assert served(host) == set()
    host.line.send({"cover": []})
    host.worker._hear(0)
    assert served(host) == set(), "not while it does not accept"
    host.worker.tcp.set_accepting(True)
    assert served(host) == {0}


def test_sessions_are_told_oldest_first_and_bounded(host):
    relays = [host.relay() for _session in range(5)]
    for age, (relay, _client) in enumerate(relays):
        relay.started -= age
    host.line.send({"sessions": 7, "limit": 2})
    host.worker._hear(0)
    ((reply,), _gone) = host.line.receive()
    assert (reply["answer"], reply["count"]) == (7, 5)
    assert [round(one["duration"]) for one in reply["sessions"]] == [4, 3]
    host.line.send({"sessions": 8, "limit": 2, "service": "other"})
    host.worker._hear(0)
    assert host.line.receive()[0][0]["count"] == 0
    for relay, client in relays:
        relay.abort("over")
        client.close()


@pytest.fixture
def attempt(host, monkeypatch):
    """Begin an attempt at a server of this process, which has ``room`` for it or leaves the SYN unanswered."""
    socks = []

    def begin(room):
        server = socket.create_server(("127.0.0.1", 0), backlog=0)
        socks.append(server)
        if not room:
            socks.append(socket.create_connection(server.getsockname()))  # the backlog is one more than it says
        relay, client = host.relay()
        socks.append(client)
        connected = sockets.begin_connect(socket.AF_INET, (), None, server.getsockname())
        monkeypatch.setattr(relay.runtime.source, "connect", lambda *_arguments: (connected, "any"))
        relay.start()
        assert relay.state is State.CONNECTING
        return relay

    yield begin
    for sock in socks:
        sock.close()


def test_a_backend_that_answered_a_busy_worker_is_not_to_blame(attempt):
    relay = attempt(room=True)
    relay.attempt_timed_out()
    assert relay.state is State.OPEN
    assert relay.backends.health.failed_for == {}
    relay.abort("over")


def test_a_backend_that_did_not_answer_is(attempt, host):
    relay = attempt(room=False)
    relay.attempt_timed_out()
    assert relay.ended == "no answer within 1 s"
    assert host.region.total("service", "refused_connect_failed") == 1
    assert relay.client_address[0] in relay.backends.health.failed_for


def test_a_worker_counts_in_its_row(host):
    relay, client = host.relay()
    assert host.region.sessions(0) == host.region.total("service", "sessions") == 1
    relay.refuse(acl.DENIED._replace(text="go away, or any other sentence"))
    client.close()
    assert host.region.total("service", "connections") == 1
    assert host.region.sessions(0) == host.region.total("service", "sessions") == 0
    assert host.region.cells[host.region.cell(0, "service", "refused_denied")] == 1
    assert host.region.cells[host.region.cell(1, "service", "refused_denied")] == 0


@pytest.mark.parametrize(("mode", "lines"), [("all", 1), ("errors", 1), ("none", 0)])
def test_what_a_service_logs(host, mode, lines):
    relay, client = host.relay()
    relay.runtime.service = replace(host.service, log=mode)
    relay.abort("over")
    client.close()
    assert len(host.lines("connection")) == lines


def test_of_sessions_as_many_are_told_as_the_line_carries(host):
    """What a session is told by has no bound of its own, a message has."""
    pairs = [host.relay() for _session in range(100)]
    for number, (relay, _client) in enumerate(pairs):
        relay.client_address = (str(number) * 2000, 4000)
    host.line.send({"sessions": 7, "limit": 100})
    host.worker._hear(0)
    (answer,), _gone = host.line.receive()
    assert (answer["answer"], answer["count"], len(answer["sessions"])) == (7, 100, 12)
    for relay, client in pairs:
        relay.abort("over")
        client.close()
