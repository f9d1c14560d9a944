# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop of a worker, and what the supervisor asks it over the channel."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.poller import READ
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.relay import Relay

from ..worker_host import TcpHost


def test_a_defect_in_the_timer_of_a_session_ends_only_that_session(host, monkeypatch):
    def defect(_relay):
        raise ZeroDivisionError

    ran = []
    relay, other = host.relay(), host.relay()
    monkeypatch.setattr(Relay, "attempt_timed_out", defect)
    host.tcp.connecting[relay] = 0.0
    host.loop.timers.add(0.0, relay.attempt_timed_out)
    host.loop.timers.add(0.0, lambda: ran.append("the next timer of the same tick"))
    host.worker._turn()
    assert host.clients[0].recv(1) == b""
    assert host.tcp.sessions == {other}
    assert ran == ["the next timer of the same tick"]
    assert host.events("connection")[0]["ended"] == "internal error: ZeroDivisionError()"
    assert host.events("defect")[0]["trace"]


def test_the_log_of_a_timer_is_written_in_the_same_turn_and_a_defect_in_one_of_the_worker_itself_ends_it(host):
    host.loop.timers.add(0.0, lambda: host.loop.log.event("the clock"))
    host.worker._turn()
    assert not host.loop.log.waiting
    assert host.events("the clock")
    host.loop.timers.add(0.0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.worker._turn()


def tell(host, **message):
    """Send the worker a message of the supervisor and let it act; return its answers."""
    host.channel.send(message)
    host.worker._receive(0)
    return host.channel.receive()[0]


def served(host):
    """The slots whose listeners the worker polls."""
    return {acceptor.slot for acceptor in host.tcp.acceptors if acceptor._listening}


def test_a_worker_serves_its_own_slot_and_those_that_it_covers(host):
    host.tcp.set_accepting(True)
    assert served(host) == {0}
    tell(host, cover=[1])
    assert served(host) == {0, 1}
    host.tcp.set_accepting(False)
    assert served(host) == set()
    tell(host, cover=[])
    assert served(host) == set(), "not while it does not accept"
    host.tcp.set_accepting(True)
    assert served(host) == {0}


def test_the_oldest_sessions_are_listed_up_to_the_limit_and_the_size_of_a_message(host):
    for age in range(5):
        host.relay().started -= age
    (answer,) = tell(host, sessions=7, limit=2)
    assert (answer["answer"], answer["count"]) == (7, 5)
    assert [round(session["duration"]) for session in answer["sessions"]] == [4, 3]
    (answer,) = tell(host, sessions=8, limit=2, service="other")
    assert answer["count"] == 0
    host.tcp.abort_all("test")
    for number in range(100):
        host.relay().client_address = (str(number) * 2000, 4000)
    (answer,) = tell(host, sessions=7, limit=100)
    assert (answer["answer"], answer["count"], len(answer["sessions"])) == (7, 100, 12)


def test_the_clients_with_the_most_sessions_or_bytes_are_an_address_or_a_slash_64(host):
    for address, sent in (("203.0.113.7", 5), ("203.0.113.7", 6), ("203.0.113.8", 90), ("2001:db8::1", 1),
                          ("2001:db8::ff", 2), ("2001:db8:0:1::1", 3), ("fe80::1%eth0", 0)):  # fmt: skip
        relay = host.relay()
        relay.client_address, relay.client.sent = (address, 4000), sent
    relay.started -= 60
    (answer,) = tell(host, clients={"number": 7, "by": "sessions", "client": "::/0"})
    assert answer["count"] == 4
    found = {one["client"]: (one["sessions"], one["bytes_to_client"]) for one in answer["sessions"]}
    assert found == {"2001:db8::/64": (2, 3), "2001:db8:0:1::/64": (1, 3), "fe80::/64": (1, 0)}
    assert next(iter(found)) == "2001:db8::/64", "the most"
    assert max(one["duration"] for one in answer["sessions"]) == pytest.approx(60, abs=5)
    (answer,) = tell(host, clients={"number": 7, "by": "bytes"})
    assert [one["client"] for one in answer["sessions"]][:2] == ["203.0.113.8", "203.0.113.7"]


@pytest.mark.parametrize(("config", "messages", "timeout"), [
    ({}, [], 30.0),  # a supervisor of version 0.1.0, which kills it a little later
    ({}, [None], None),
    ({}, [None, 7], 7),
    ({"drain_timeout": 60.0}, [], 60.0),
    ({"drain_timeout": 60.0}, [None], None),
])  # fmt: skip
def test_the_supervisor_says_how_long_a_worker_may_drain(tmp_path, config, messages, timeout):
    host = TcpHost(tmp_path, config)
    for seconds in messages:
        tell(host, drain_deadline=seconds)
    host.relay()
    host.worker.drain("SIGTERM")
    assert host.events("draining")[0]["timeout"] == timeout
    waits = host.loop.timers.timeout(host.loop.now())
    assert waits is None if timeout is None else timeout - 5 < waits <= timeout + 5
    tell(host, drain_deadline=0.0)
    for callback in host.loop.timers.due(host.loop.now() + 1):
        callback()
    assert not host.tcp.sessions
    host.close()


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_without_a_supervisor_a_worker_drains_for_as_long_as_its_config_says(tmp_path, seconds):
    host = TcpHost(tmp_path, {"drain_timeout": seconds})
    host.loop.poller.register(host.worker._channel, READ, host.worker._receive)
    host.channel.close()
    host.turn()
    assert host.events("draining")[0]["timeout"] == seconds
    host.close()
