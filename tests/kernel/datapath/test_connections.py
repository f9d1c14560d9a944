# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets of connections that conntrack does not know (any more), and ICMP errors."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.kernel.datapath.support import BACKEND, BACKENDS, EARLY_DEMUX, PORT
from tests.support import tcp, udp
from tests.support.addresses import AF, address_of
from tests.support.deployment import KINDS, spoofed
from tests.support.waiting import PATIENCE

HOSTS = ["client", "router", "a", *BACKENDS]
SIZE = 200_000
FRAGMENTED = 4000  # bytes of a datagram
SMALL = 20_000  # fits into a socket's buffer


@contextlib.contextmanager
def without(proxy, chain):
    """The table without the rules of a chain."""
    proxy.host.run(["nft", "flush", "chain", "inet", "l4proxy_datapath", chain])
    yield
    proxy.serve(*proxy.services)


@contextlib.contextmanager
def connection(lab, proxy, family):
    """A connection to backend b that conntrack has forgotten."""
    proxy.serve(proxy.service("tcp", family, ["b"]), strangers=frozenset({family}))
    with tcp.listen(lab, "b", BACKEND, family) as listener, tcp.connection(lab, listener, PORT) as (client, server):
        proxy.forget()
        yield client, server


def is_silent(sock):
    """Whether nothing comes for a moment."""
    sock.settimeout(udp.QUIET)
    with pytest.raises(TimeoutError):
        sock.recv(100)
    return True


def test_a_backend_sends_first_in_a_connection_that_conntrack_does_not_know(lab, proxy, family):
    """As after a take-over, in the middle of a download."""
    with connection(lab, proxy, family) as (client, server):
        server.sendall(b"x" * SIZE)
        server.shutdown(socket.SHUT_WR)
        assert len(tcp.receive_all(client)) == SIZE
        client.sendall(b"?")
        assert server.recv(1) == b"?"
        counts = proxy.counts()["backends"]["b"]
        assert counts["bytes_out"] > SIZE > counts["bytes_in"] > 0
        assert counts["connections"] == 1
    with connection(lab, proxy, family) as (client, server), without(proxy, "reverse"):
        server.sendall(b"x")
        assert is_silent(client)


def test_a_backend_ends_a_connection_that_conntrack_does_not_know(lab, proxy, family):
    """Conntrack finds FIN and RST invalid then."""
    with connection(lab, proxy, family) as (client, server), without(proxy, "single"):
        server.shutdown(socket.SHUT_WR)
        assert is_silent(client)
    with connection(lab, proxy, family) as (client, server):
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        client.sendall(b"?")
        assert server.recv(1) == b"?"
    with connection(lab, proxy, family) as (client, server):
        tcp.reset(server)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_ends_a_connection_that_conntrack_does_not_know(lab, proxy, family):
    """Its FIN is lost until the backend sends anything. Without the rule this host's RST would end the connection."""
    with connection(lab, proxy, family) as (client, server), without(proxy, "invalid"):
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connection(lab, proxy, family) as (client, server):
        client.shutdown(socket.SHUT_WR)
        assert is_silent(client)
        assert proxy.dropped()[f"invalid_{family}"]
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        assert server.recv(1) == b""


def test_a_udp_backend_sends_first(lab, proxy, family):
    proxy.serve(proxy.service("udp", family, ["b"]), strangers=frozenset({family}))
    with udp.serving(lab, BACKEND, ["b"]) as servers, udp.client(lab, proxy.address(family)) as sock:
        sock.connect((proxy.address(family), PORT))
        sock.send(udp.QUESTION)
        assert sock.recv(100)
        sock.send(b"x" * FRAGMENTED)
        assert len(sock.recv(2 * FRAGMENTED)) == FRAGMENTED
        proxy.forget()
        with lab["b"].inside():
            sender = socket.socket(AF[family], socket.SOCK_DGRAM)
        servers["b"].stop()
        # A socket of the proxy that has the client's port does not matter.
        with sender, udp.client(lab, proxy.address(family), sock.getsockname()[1], "a"):
            sender.bind((address_of(lab["b"], family), BACKEND))
            sender.sendto(b"news", (address_of(lab["client"], family), sock.getsockname()[1]))
            assert sock.recv(100) == b"news"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_forwarder_has_a_socket_with_the_address_and_port_of_a_client(lab, proxy, servers, protocol, family):
    """As after a change of the datapath. Conntrack gives the later connection another port at the backend, but packets
    for the client seem to be for the socket, over TCP also for a minute after its end.
    """
    client, target = lab["client"], address_of(lab["b"], family)
    proxy.serve(proxy.service(protocol, family, ["b"]))
    free = iter(range(20000 + 10 * AF[family], 20010 + 10 * AF[family]))
    for demux, ended in (("1", False), ("0", False), ("0", True)):
        proxy.host.sysctl(EARLY_DEMUX, demux)
        port = next(free)
        with spoofed(proxy.host, address_of(client, family), target, protocol, BACKEND, port) as sock:
            sock.send(udp.QUESTION)
            assert sock.recv(100)[:1] == b"b"
            if ended:
                sock.close()
            with client.inside():
                mine = socket.socket(AF[family], KINDS[protocol])
            with mine:
                mine.bind(("", port))
                mine.settimeout(udp.QUIET if demux == "1" else PATIENCE)
                with pytest.raises(TimeoutError) if demux == "1" else contextlib.nullcontext():
                    mine.connect((proxy.address(family), PORT))
                    mine.send(udp.QUESTION)
                    assert mine.recv(100)[:1] == b"b"


def test_icmp_errors_of_a_backend_reach_the_client(lab, proxy, family):
    """Also past the rules of local delivery."""
    proxy.serve(proxy.service("udp", family, ["b"]), strangers=frozenset({family}))
    with udp.client(lab, proxy.address(family)) as sock:
        sock.connect((proxy.address(family), PORT))
        sock.settimeout(udp.AGAIN)
        sock.send(udp.QUESTION)
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        proxy.bypass("delete")
        sock.send(udp.QUESTION)
        assert is_silent(sock)
        proxy.bypass("add")


@pytest.mark.parametrize("known", [True, False])
def test_icmp_errors_of_a_router_reach_the_backend(lab, proxy, family, known):
    """Without them a path with a smaller MTU would be a black hole."""
    wan = lab["router"].on("outside").dev
    lab["router"].run(["ip", "link", "set", wan, "mtu", "1300"])
    chain = "type filter hook prerouting priority 0; meta l4proto { icmp, ipv6-icmp } ct state related drop;"
    try:
        with connection(lab, proxy, family) as (client, server):
            if known:
                tcp.assert_open(client, server)
            lab["a"].run(["nft", f"table inet deaf {{ chain deaf {{ {chain} }}; }}"])
            server.sendall(b"x" * SMALL)
            assert is_silent(client)
            lab["a"].run(["nft", "delete", "table", "inet", "deaf"])
            server.shutdown(socket.SHUT_WR)
            client.settimeout(PATIENCE)
            assert len(tcp.receive_all(client)) == SMALL
    finally:
        lab["router"].run(["ip", "link", "set", wan, "mtu", "1500"])
        for name in BACKENDS:
            lab[name].run(["ip", "route", "flush", "cache"])
            lab[name].run(["ip", "-6", "route", "flush", "cache"])
