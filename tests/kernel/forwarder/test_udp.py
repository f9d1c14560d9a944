# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forwarding UDP: what backends see, which clients are answered, and how sessions end."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from tests.support import udp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import PROXY_ID, TABLE, Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("udp_servers")
ONE, SHORT, FEW, FOREIGN, SPECIFIC = range(5300, 5305)
BACKEND = 9000
SLICE = range(40000, 40100)
SECOND = {"ipv4": "198.18.0.111", "ipv6": "2001:db8::111"}  # another address of a


@pytest.fixture(scope="module")
def lab(lab):
    for family, address in SECOND.items():
        extra = ["nodad"] if family == "ipv6" else []
        length = 24 if family == "ipv4" else 64
        lab["a"].run(["ip", "address", "add", f"{address}/{length}", "dev", lab["a"].dev, *extra])
    return lab


def udp_service(lab, name, port, backends=("b",), **options):
    return make_service(lab, name, port, BACKEND, backends=backends, protocol="udp", **options)


def document(lab):
    foreign = udp_service(lab, "foreign", FOREIGN, source_fallback="own")
    del foreign["backends"][0]["ipv6"]
    specific = udp_service(lab, "specific", SPECIFIC)
    specific["listen"] = [{"address": getattr(lab["a"], family), "port": SPECIFIC} for family in FAMILIES]
    return make_config(
        udp_service(lab, "one", ONE),
        udp_service(lab, "short", SHORT, idle_timeout=1),
        udp_service(lab, "few", FEW, limits={"connections": 3, "connections_per_client": 2}, idle_timeout=2),
        foreign,
        specific,
        source_ports={"first": SLICE[0], "last": SLICE[-1]},
    )


def target(lab, family, port):
    return getattr(lab["a"], family), port


def sessions(forwarder, service, port):
    """The log lines of sessions of a client's port, once there is one."""

    def found():
        lines = forwarder.log("session")
        return [line for line in lines if (line["service"], line["client_port"]) == (service, port)]

    return eventually(found, f"a session of port {port} in the log", forwarder.show)


@pytest.mark.parametrize("port", [ONE, SPECIFIC])
def test_the_backend_sees_the_clients_address_and_a_port_of_the_slice(lab, forwarder, family, port):
    to = target(lab, family, port)
    with udp.client(lab, to[0]) as sock:
        name, address, source_port = udp.who(sock, to)
        assert (name, address) == ("b", getattr(lab["client"], family))
        assert source_port in SLICE
        assert udp.who(sock, to)[2] == source_port  # it is the same session


def test_replies_come_from_the_address_the_client_sent_to(lab, forwarder, family):
    """Also alternately from one client's port: these are two sessions."""
    with udp.client(lab, SECOND[family]) as sock:
        seen = set()
        for _turn in range(2):
            for address in (SECOND[family], getattr(lab["a"], family)):
                answer, source = udp.exchange(sock, udp.QUESTION, (address, ONE))
                assert source == (address, ONE)
                seen.add(answer)
        assert len(seen) == 2


@pytest.mark.parametrize("port", [ONE, SPECIFIC])
@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_datagrams_of_every_size_pass_intact(lab, forwarder, udp_servers, family, port, size):
    to = target(lab, family, port)
    data = os.urandom(size).replace(udp.QUESTION, b"!")
    with udp.client(lab, to[0]) as sock:
        assert udp.exchange(sock, data, to) == (data, to)
    assert any(size in sizes for sizes in udp_servers["b"].seen.values())


def test_source_fallback_own_serves_ipv6_clients_of_ipv4_backends(lab, forwarder):
    with udp.client(lab, lab["a"].ipv6) as sock:
        assert udp.who(sock, target(lab, "ipv6", FOREIGN))[:2] == ("b", lab["a"].ipv4)


def test_an_idle_session_ends_and_is_logged(lab, forwarder, family):
    to = target(lab, family, SHORT)
    with udp.client(lab, to[0]) as sock:
        _name, address, source_port = udp.who(sock, to)
        udp.exchange(sock, b"1234", to)
        (line,) = sessions(forwarder, "short", sock.getsockname()[1])
        assert udp.who(sock, to)[:2] == ("b", address)  # a new session
    expected = {"client": address, "backend": "b", "source": address, "source_port": source_port}
    expected |= {"source_step": "any", "ended": "idle timeout", "listener": f"[::]:{SHORT}"}
    if family == "ipv4":
        expected["listener"] = f"0.0.0.0:{SHORT}"
    assert {key: line[key] for key in expected} == expected
    assert line["datagrams_to_backend"] >= line["datagrams_to_client"] >= 2
    assert line["bytes_to_client"] >= 4 + len(f"b {address} {source_port}")
    assert 1 <= line["duration"] < PATIENCE


def test_limits_of_sessions_per_client_and_per_service(lab, forwarder, family):
    """Two sessions per client and three in all; others are not answered until one has ended."""

    def few():
        return next(service for service in forwarder.status()["services"] if service["name"] == "few")

    to = target(lab, family, FEW)
    eventually(lambda: few()["sessions"] == 0, "nobody is there", forwarder.show)
    before = few()["refused_limited"]
    with contextlib.ExitStack() as stack:
        one, two, three = (stack.enter_context(udp.client(lab, to[0])) for _client in range(3))
        other, last = (stack.enter_context(udp.client(lab, to[0], host="router")) for _client in range(2))
        udp.who(one, to)
        udp.who(two, to)
        assert udp.silent(three, udp.QUESTION, to)
        udp.who(one, to)
        udp.who(other, to)
        assert udp.silent(last, udp.QUESTION, to)
        reasons = {line["reason"] for line in forwarder.log("datagram refused") if line["service"] == "few"}
        assert reasons == {"connection limit of the client", "connection limit of the service"}
        assert (few()["sessions"], few()["refused_limited"] - before) == (3, 2)
        udp.who(last, to)  # repeats until another session has timed out


def test_only_datagrams_of_the_backend_are_forwarded(lab, forwarder, family):
    """Datagrams to the upstream port from another host, or from another port of b, are not forwarded."""
    to = target(lab, family, ONE)
    before = forwarder.status()["totals"]["datagrams_stray"]
    with udp.client(lab, to[0]) as sock:
        _name, address, port = udp.who(sock, to)
        for host, destination in (("c", getattr(lab["a"], family)), ("b", getattr(lab["a"], family)), ("b", address)):
            with udp.client(lab, to[0], host=host) as stranger:
                if destination == address:  # as b's kernel marks the proxy's connections
                    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROXY_ID)
                stranger.sendto(b"not me", (destination, port))
        eventually(
            lambda: forwarder.status()["totals"]["datagrams_stray"] == before + 3, "three strays", forwarder.show
        )
        assert udp.exchange(sock, b"me", to)[0] == b"me"


@pytest.mark.parametrize("data", [b"", b"?"])
def test_a_closed_backend_port_moves_the_client_to_another_backend(lab, udp_servers, family, data):
    """The ICMP error reaches the upstream socket, also for an empty datagram."""
    service = udp_service(lab, "closed", 5400, ("b", "c"))
    service["backends"][0]["port"] = 9999  # nobody is there
    with Forwarder(lab, make_config(service)) as forwarder:
        to = target(lab, family, 5400)
        for _session in range(2):  # one of them goes to b first
            with udp.client(lab, to[0]) as sock:
                udp.exchange(sock, data, to)
        (skipped,) = forwarder.log("backend skipped")
        assert (skipped["backend"], skipped["reason"]) == ("b", "ECONNREFUSED: Connection refused")
        (line,) = forwarder.log("session")
        assert (line["backend"], line["ended"]) == ("b", "ECONNREFUSED: Connection refused")
        backends = {backend["name"]: backend for backend in forwarder.status()["services"][0]["backends"]}
        assert backends["b"]["failed_refused"] == 1


def test_without_the_return_path_nothing_comes_back(lab, forwarder, udp_servers, family):
    """The negative control of all tests above: b sees the client, and its reply bypasses the proxy."""
    to = target(lab, family, ONE)
    mark = ["fwmark", f"{PROXY_ID}/0xff", "lookup", str(TABLE), "pref", "1100"]
    command = ["ip", "-6" if family == "ipv6" else "-4", "rule"]
    data = b"x" * (777 + FAMILIES.index(family))  # no other test sends this size
    with udp.client(lab, to[0]) as sock:
        lab["b"].run([*command, "del", *mark])
        try:
            assert udp.silent(sock, data, to)
        finally:
            lab["b"].run([*command, "add", *mark])
        seen = [peer for peer, sizes in udp_servers["b"].seen.items() if len(data) in sizes]
        assert [address for address, _port in seen] == [getattr(lab["client"], family)]
        assert udp.exchange(sock, data, to)[0] == data
