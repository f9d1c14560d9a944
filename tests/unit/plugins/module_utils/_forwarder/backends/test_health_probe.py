# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One probe to a server on loopback: its result for an answer, a refusal and silence."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_exchange import (
    Beginning,
    Exchange,
    any_answer,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_probe import (
    ExchangeProbe,
    TcpProbe,
    UdpProbe,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.probe_results import (
    CLOSED,
    NO_ANSWER,
    UNEXPECTED,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.families import socket_family_of

from tests.unit.tables import rows

ADDRESSES = ["127.0.0.1", "::1"]
PATIENCE = 5.0  # seconds; loopback answers within microseconds


def answer(probe):
    """Poll until there is a result, as the checker does."""
    deadline = time.monotonic() + PATIENCE
    while (number := probe.poll()) is None:
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.001)
    return number


@pytest.fixture(params=ADDRESSES)
def tcp(request):
    with socket.create_server((request.param, 0), family=socket_family_of(request.param)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.fixture(params=ADDRESSES)
def udp(request):
    with socket.socket(socket_family_of(request.param), socket.SOCK_DGRAM) as server:
        server.bind((request.param, 0))
        server.settimeout(PATIENCE)
        yield server


@pytest.fixture(autouse=True)
def all_sockets_are_closed():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_a_handshake_succeeds_and_the_connection_is_reset(tcp):
    probe = TcpProbe(*tcp.getsockname()[:2], None)
    assert answer(probe) == 0
    assert probe.poll() == 0, "an answer stays"
    accepted, _peer = tcp.accept()
    probe.close()
    with accepted, pytest.raises(ConnectionResetError):
        accepted.recv(1)


def exchange_with(tcp):
    """A probe that sends "PING" and expects "PONG", its result so far, and the server's connection."""
    probe = ExchangeProbe(*tcp.getsockname()[:2], None, Exchange(b"PING", Beginning(b"PONG")))
    accepted, _peer = tcp.accept()
    assert (probe.poll(), probe.established, probe.expired()) == (None, True, NO_ANSWER)
    accepted.settimeout(PATIENCE)
    return probe, accepted


# What the server sends, whether it then closes, the result, and whether the probe ends the connection by RST.
TEST_EXCHANGES = [
    ("expected", b"PONG", False, 0, False),
    ("unexpected", b"-ERR", False, UNEXPECTED, False),
    ("closed", b"", True, CLOSED, False),
    ("a part", b"PO", False, None, True),
    ("nothing", b"", False, None, True),
]


@pytest.mark.parametrize(("says", "closes", "number", "reset"), **rows(TEST_EXCHANGES))
def test_an_exchange_that_has_ended_is_closed_by_fin_and_any_other_by_rst(tcp, says, closes, number, reset):
    probe, accepted = exchange_with(tcp)
    with accepted:
        assert accepted.recv(100) == b"PING"
        accepted.send(says)
        if closes:
            accepted.shutdown(socket.SHUT_WR)
        if number is None:
            assert probe.poll() is None
        else:
            assert answer(probe) == number
            assert probe.poll() == number, "an answer stays"
        probe.close()
        if reset:
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
        else:
            assert accepted.recv(1) == b""


def test_a_reset_after_the_handshake(tcp):
    probe, accepted = exchange_with(tcp)
    sockets.reset(accepted)
    assert answer(probe) == errno.ECONNRESET
    assert probe.established
    probe.close()


def test_a_closed_tcp_port_refuses(tcp):
    address = tcp.getsockname()[:2]
    tcp.close()
    probe = TcpProbe(*address, None)
    assert answer(probe) == errno.ECONNREFUSED
    assert probe.poll() == errno.ECONNREFUSED
    probe.close()


def test_an_unanswered_handshake_stays_pending(tcp):
    """A server whose accept queue is full drops what comes (tcp(7), listen(2))."""
    tcp.listen(0)
    others = [TcpProbe(*tcp.getsockname()[:2], None) for _place in range(4)]
    probe = TcpProbe(*tcp.getsockname()[:2], None)
    time.sleep(0.05)
    assert probe.poll() is None
    for one in (*others, probe):
        one.close()


@pytest.mark.parametrize(("data", "expect", "number"), [
    (b"PONG", b"PONG", 0),
    (b"PONG and more", b"PONG", 0),
    (b"", b"", 0),
    (b"anything", b"", 0),
    (b"PON", b"PONG", UNEXPECTED),
    (b"", b"PONG", UNEXPECTED),
    (b"xPONG", b"PONG", UNEXPECTED),
])  # fmt: skip
def test_a_udp_response_has_to_begin_as_expected(udp, data, expect, number):
    probe = UdpProbe(*udp.getsockname()[:2], None, b"\x00PING\xff", Beginning(expect))
    request, peer = udp.recvfrom(100)
    assert request == b"\x00PING\xff"
    assert probe.poll() is None, "nothing has come yet"
    udp.sendto(data, peer)
    assert answer(probe) == number
    probe.close()


def test_a_datagram_from_another_address_is_ignored(udp):
    probe = UdpProbe(*udp.getsockname()[:2], None, b"PING", Beginning(b"PONG"))
    _request, peer = udp.recvfrom(100)
    with socket.socket(udp.family, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"PONG", peer)
    assert probe.poll() is None
    probe.close()


def test_a_closed_udp_port_refuses_by_icmp(udp):
    address = udp.getsockname()[:2]
    udp.close()
    probe = UdpProbe(*address, None, b"PING", any_answer)
    assert answer(probe) == errno.ECONNREFUSED
    probe.close()


def test_a_broadcast_address_is_a_result_over_tcp_and_an_error_over_udp():
    """A broadcast address takes no connection, and no datagram without SO_BROADCAST."""
    probe = TcpProbe("255.255.255.255", 80, None)
    assert probe.poll() == errno.ENETUNREACH
    probe.close()
    with pytest.raises(OSError, match=r"Permission denied|unreachable"):
        UdpProbe("255.255.255.255", 53, None, b"x", any_answer)
