# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP of a worker: when it accepts, how attempts and sessions end, what is counted and logged."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import acl
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
