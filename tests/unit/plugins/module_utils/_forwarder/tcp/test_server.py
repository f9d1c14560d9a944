# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP of a worker: when it accepts, how attempts and sessions end, what is counted and logged."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import acl, source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State


def test_a_full_worker_logs_one_pause_and_accepts_again_when_a_session_ends(host):
    relay = host.relay()
    host.tcp.most_sessions = 1
    host.tcp.serve_slots({0, 1})  # a client may meet either socket of its address
    host.tcp.set_accepting(True)
    host.clients += [socket.create_connection(("127.0.0.1", port)) for port in host.ports]
    host.turn()
    (line,) = host.events("accept paused")
    assert line["sessions"] == 1
    assert "RLIMIT_NOFILE" in line["reason"]
    assert not host.tcp.accepting
    relay.abort("over")
    assert host.tcp.accepting


@pytest.fixture
def attempt(host, monkeypatch):
    """A function that begins an attempt at a server which has ``room`` in its backlog, or leaves the SYN unanswered."""
    socks = []

    def begin(room):
        server = socket.create_server(("127.0.0.1", 0), backlog=0)
        socks.append(server)
        if not room:
            socks.append(socket.create_connection(server.getsockname()))  # the backlog is one more than it says
        relay = host.relay()
        connecting = sockets.begin_connect(socket.AF_INET, (), None, server.getsockname())
        monkeypatch.setattr(relay.runtime.source, "connect", lambda *_arguments: (connecting, "any"))
        relay.start()
        assert relay.state is State.CONNECTING
        return relay

    yield begin
    for sock in socks:
        sock.close()


def test_only_a_backend_that_did_not_answer_a_busy_worker_in_time_is_blamed(attempt, host):
    relay = attempt(room=True)
    relay.attempt_timed_out()
    assert relay.state is State.OPEN
    assert relay.backends.health.failed_for == {}
    relay = attempt(room=False)
    relay.attempt_timed_out()
    assert relay.ended == "no answer within 1 s"
    assert host.counted("refused_connect_failed") == 1
    assert relay.client_address[0] in relay.backends.health.failed_for


@pytest.fixture
def others(host, monkeypatch):
    """Servers to which the next connects from other ports go, as if that were the same backend; none: no port."""
    servers = []

    def connect(*_arguments):
        if not servers:
            raise OSError(errno.EADDRNOTAVAIL, "")
        return sockets.begin_connect(socket.AF_INET, (), None, servers.pop(0).getsockname())

    monkeypatch.setattr(source_address.SourceAddress, "connect_from_other_port", connect)
    with socket.create_server(("127.0.0.1", 0)) as server:
        servers.append(server)
        yield servers


def full(host):
    """A server that answers nobody."""
    server = socket.create_server(("127.0.0.1", 0), backlog=0)
    host.clients += [server, socket.create_connection(server.getsockname())]
    return server


def after(host, relay, seconds):
    """Check an attempt when it has lasted for so long; return its sockets."""
    host.tcp.other_ports.check(host.tcp.connecting, relay.attempted + seconds)
    return host.tcp.other_ports.streams(relay)


def outcome(host):
    counters = ("source_any", "source_port_silent")
    return [host.counted(counter) for counter in counters], host.tcp.other_ports.open


@pytest.mark.parametrize("answers", ["first", "other"])
def test_a_connect_without_an_answer_is_repeated_from_another_port_and_the_first_answer_wins(
    attempt, others, host, answers
):
    if answers == "first":
        others[:] = [full(host)]
    relay = attempt(room=answers == "first")
    first = relay.upstream
    assert after(host, relay, 0.2) == [first]
    _first, other = after(host, relay, 0.3)
    host.turn_until(lambda: relay.state is State.OPEN)
    winner, loser = (first, other) if answers == "first" else (other, first)
    assert host.tcp.other_ports.streams(relay) == [relay.upstream] == [winner]
    assert loser.sock is None
    assert outcome(host) == ([1, int(answers == "other")], 0)
    assert relay.backends.health.failed_for == {}


def test_every_socket_of_an_attempt_is_closed_when_it_ends(attempt, others, host):
    for end in ("abort", "attempt_timed_out"):
        others[:] = [full(host)]
        relay = attempt(room=False)
        streams = after(host, relay, 0.3)
        assert len(streams) == 2
        relay.abort("over") if end == "abort" else relay.attempt_timed_out()
        assert [stream.sock for stream in streams] == [None, None]
        assert outcome(host) == ([0, 0], 0)


def test_a_backend_that_is_usually_slow_or_has_failed_for_the_client_is_not_tried_from_other_ports(
    attempt, others, host
):
    relay = attempt(room=False)
    client, backends = relay.client_address[0], relay.backends
    relay.step = source_address.OWN
    assert len(after(host, relay, 0.3)) == 1, "no other proxy has this address"
    relay.step = source_address.ANY
    backends.connected("203.0.113.8", relay.index, 0.2, 1.0)
    assert len(after(host, relay, 0.3)) == 1
    backends.connected("203.0.113.8", relay.index, 0.01, 1.0)
    backends.health.failed(client, relay.index, 1.0)
    assert len(after(host, relay, 0.5)) == 1
    backends.health.succeeded(client, relay.index)
    assert len(after(host, relay, 0.5)) == 2


def test_a_session_is_counted_in_the_row_of_its_worker_while_it_lasts(host):
    relay = host.relay()
    assert host.region.sessions(0) == host.region.total("service", "sessions") == 1
    relay.refuse(acl.DENIED._replace(text="any sentence: the counter does not depend on it"))
    assert host.region.total("service", "connections") == 1
    assert host.region.sessions(0) == host.region.total("service", "sessions") == 0
    assert host.counted("refused_denied") == host.region.total("service", "refused_denied") == 1


@pytest.mark.parametrize(("mode", "lines"), [("all", 1), ("errors", 1), ("none", 0)])
def test_the_option_log_of_a_service_selects_the_sessions_that_are_logged(host, mode, lines):
    relay = host.relay()
    relay.runtime.service = replace(host.service, log=mode)
    relay.abort("over")
    assert len(host.events("connection")) == lines
