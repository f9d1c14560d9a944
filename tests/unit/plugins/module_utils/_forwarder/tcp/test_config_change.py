# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker takes a config in place: what becomes of each TCP session, by its state and by what has changed."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Limits
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State

from ..changing_host import end, free, only_relay, opened, other_backend, service
from ..worker_host import free_ports


def check_move(host, relay, moves):
    """The session and all that counts it are in the new generation, or all are in the old one."""
    assert host.open() == host.active() == {2 if moves else 1: 1}
    assert (relay.runtime in host.worker.serving.runtimes.values()) == moves
    assert relay.backends in relay.runtime.backends.values()
    assert relay.limiter is relay.runtime.limiter
    assert relay.acceptor.runtime is relay.runtime
    assert set(host.tcp.acceptors) == {
        acceptor for one in host.worker.serving.runtimes.values() for acceptor in one.acceptors
    }
    assert relay.acceptor.targets[relay.backends.family][relay.index][1] == relay.backend.port
    assert host.released() == ([1] if moves else [])


def check_end(host, reason):
    assert host.turn_until(lambda: host.released() or not host.worker.earlier._generations)
    assert host.open() == host.active() == {}
    (line,) = host.events("connection")
    assert line["ended"] == reason


@pytest.mark.parametrize(("family", "state"), [
    ("ipv4", State.OPEN), ("ipv6", State.OPEN), ("ipv4", State.CLIENT_ENDED), ("ipv6", State.BACKEND_ENDED),
])  # fmt: skip
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
    ended = ("worker", "removal_ended")
    if expected is not True:
        host.at_deadline(29.0)
        assert relay.state is state, "not before its deadline"
        host.at_deadline()
        for sock in (client, peer):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNRESET, errno.EPIPE), "RST"
        check_end(host, expected)
        assert host.region.total(*ended) == 1
        return
    host.at_deadline()
    for sock in (client, peer):
        sock.close()
    host.turn_until(lambda: not host.tcp.sessions)
    check_end(host, relay.ended)
    assert host.region.total(*ended) == 0
    assert relay.ended in ("closed", "client reset", "backend reset")


@pytest.mark.parametrize("family", ["ipv4"])
def test_a_session_that_waits_for_its_proxy_header_goes_on_as_the_new_config_says(make, serve, family, change):
    server, new = serve(family), serve(family)
    web = service(server.backend(), family=family, accept_proxy=("127.0.0.0/8", "::1/128"))
    host = make(web)
    client = host.client(web.listen[0])
    relay = only_relay(host)
    services, expected = change
    changed = [
        replace(one, backends=(new.backend("z"),)) if one.name == "web" else one for one in services(web, server)
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


@pytest.mark.parametrize("family", ["ipv6"])
def test_an_attempt_goes_on_unless_only_its_backend_left(make, serve, family, change):
    full = serve(family, full=True)
    web = service(full.backend(), family=family, connect_timeout=60.0, connect_deadline=120.0)
    host = make(web)
    host.client(web.listen[0], b"hello")
    relay = only_relay(host)
    host.turn_until(lambda: relay.state is State.CONNECTING)
    services, expected = change
    changed = services(web, full)
    host.change(*changed)
    check_move(host, relay, expected in (True, "backend removed"))
    assert relay.state is State.CONNECTING
    assert relay.attempts == 1
    host.at_deadline()
    assert bool(host.tcp.sessions) == (expected in (True, "backend removed"))


@pytest.mark.parametrize("from_proxy", [False, True])
def test_an_attempt_at_a_backend_that_left_goes_on_at_another_one_and_blames_nobody(make, serve, family, from_proxy):
    full, new = serve(family, full=True), serve(family)
    trusted = ("127.0.0.0/8", "::1/128") if from_proxy else ()
    web = service(full.backend(), family=family, retries=0, connect_timeout=60.0, accept_proxy=trusted)
    web = replace(web, connect_deadline=120.0)
    host = make(web)
    client = host.client(web.listen[0], b"PROXY UNKNOWN\r\n" * from_proxy + b"hello")
    relay = only_relay(host)
    host.turn_until(lambda: relay.state is State.CONNECTING)
    host.change(replace(web, backends=(new.backend("z"),)))
    peer = host.turn_until(new.accepted)
    assert host.received(peer)[0] == b"hello"
    check_move(host, relay, True)
    assert relay.attempts == 1, "the attempt at the backend that left was no retry"
    assert relay.backends.health.failed_for == {}
    assert host.region.total("target", "failed_local") == host.region.total("target", "failed_timeout") == 0
    end(client, peer)
    host.turn_until(lambda: not host.tcp.sessions)
    assert host.open() == host.active() == {}


@pytest.mark.parametrize("stays", [True, False])
def test_the_other_source_ports_of_an_attempt_go_on_if_its_backend_is_still_there(make, serve, monkeypatch, stays):
    full, new = serve(full=True), serve()
    web = service(full.backend(), connect_timeout=60.0, connect_deadline=120.0)
    host = make(web)
    client = host.client(web.listen[0], b"hello")
    relay = only_relay(host)
    host.turn_until(lambda: relay.state is State.CONNECTING)
    target = ("127.0.0.1", (new if stays else full).backend().port)
    monkeypatch.setattr(
        source_address.SourceAddress,
        "connect_from_other_port",
        lambda *_arguments: sockets.begin_connect(socket.AF_INET, (), None, target),
    )
    relay.step = source_address.ANY
    host.tcp.other_ports.check(host.tcp.connecting, relay.attempted + 0.3)
    streams = host.tcp.other_ports.streams(relay)
    assert len(streams) == 2
    host.change(web if stays else replace(web, backends=(new.backend("z"),)))
    peer = host.turn_until(new.accepted)
    assert host.received(peer)[0] == b"hello"
    check_move(host, relay, True)
    assert host.region.total("service", "source_port_silent") == int(stays)
    assert host.tcp.other_ports.open == 0
    assert [stream.sock is None for stream in streams] == [True, not stays]
    end(client, peer)


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


@pytest.mark.parametrize("family", ["ipv6"])
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


def test_each_connection_of_a_client_counts_once_whether_it_moves_or_stays(make, serve):
    stays, goes = serve(), serve()
    limits = Limits(connections_per_client=9)
    web = service(stays.backend("a"), goes.backend("b"), limits=limits)
    host = make(web)
    pairs = []
    for server in (stays, goes) * 2:
        client = host.client(web.listen[0], b"hello")
        pairs.append((client, host.turn_until(server.accepted)))
    host.change(replace(web, backends=(stays.backend("a"),)))
    assert host.open() == host.active() == {1: 2, 2: 2}
    assert [dict(region.held("web", [0])) for region in host.numbers.values()] == [{0x7F000001: 2}] * 2
    end(*pairs[1])
    host.turn_until(lambda: host.open() == {1: 1, 2: 2})
    assert [dict(region.held("web", [0])) for region in host.numbers.values()] == [{0x7F000001: 1}, {0x7F000001: 2}]
    host.change(web)
    assert host.open() == host.active() == {3: 3}
    assert dict(host.region.held("web", [0])) == {0x7F000001: 3}


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
    assert host.open() == {2: 1}
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
