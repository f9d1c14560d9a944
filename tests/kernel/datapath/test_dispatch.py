# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend a client reaches, and what a change of the table leaves as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath import buckets
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import NAME
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import client_hash

from tests.kernel.datapath.support import BACKEND, BACKENDS, PORT, SRC_VALID_MARK, Client
from tests.kernel.forwarder.sessions import each_once
from tests.support import tcp, udp
from tests.support.addresses import AF
from tests.support.routing import handshake
from tests.support.waiting import PATIENCE

HOSTS = ["client", "router", "a", *BACKENDS]
COUNT = 60


def hash_of(address: str, port: int) -> int:
    """The kernel's jhash of an address and a port: of 32-bit words, the last one with the two bytes of the port."""
    family = AF["ipv6" if ":" in address else "ipv4"]
    (*words, last) = struct.unpack(
        "<5I" if ":" in address else "<2I", socket.inet_pton(family, address) + struct.pack(">HH", port, 0)
    )
    a = b = c = (0xDEADBEEF + 4 * (len(words) + 1) + client_hash.SEED) & 0xFFFFFFFF
    if len(words) == 4:
        a, b, c = client_hash._mix(
            (a + words[0]) & 0xFFFFFFFF, (b + words[1]) & 0xFFFFFFFF, (c + words[2]) & 0xFFFFFFFF
        )
    return client_hash._final((a + words[-1]) & 0xFFFFFFFF, (b + last) & 0xFFFFFFFF, c)


def expected(service, client, serving):
    number = client_hash.client_hash(client[0]) if service.balance == "source_hash" else hash_of(*client)
    return buckets.owners(service, serving)[client_hash.scale(number, buckets.size(service))]


@pytest.mark.parametrize("balance", ["hash", "source_hash"])
def test_clients_are_spread_by_the_table_of_buckets(lab, proxy, servers, protocol, family, balance):
    client = Client(lab, protocol, family)
    service = proxy.service(protocol, family, balance=balance, weights={"b": 1, "c": 2, "d": 3})
    proxy.serve(service)
    first = client.backends(COUNT)
    assert first == {address: expected(service, address, BACKENDS) for address in first}
    assert set(first.values()) == set(BACKENDS)
    assert proxy.connections() == Counter(first.values())
    # Other seeds would choose others.
    wrong = {address: buckets.owners(service, BACKENDS)[sum(address[0].encode()) % 4093] for address in first}
    assert wrong != first
    proxy.serve(service, states={"c": "down"})
    proxy.forget()  # or a UDP client that has the same port again would continue its session
    without = client.backends(COUNT)
    assert without == {address: expected(service, address, ("b", "d")) for address in without}
    if balance == "source_hash":
        moved = {address for (address, _port), name in first.items() if name == "c"}
        before, after = ({address: name for (address, _port), name in found.items()} for found in (first, without))
        assert {address for address in before if before[address] != after[address]} == moved


def test_a_change_of_state_moves_no_connection_and_no_count(lab, proxy, servers, protocol, family):
    client = Client(lab, protocol, family)
    service = proxy.service(protocol, family)
    proxy.serve(service)
    sessions = [client.session() for _number in range(30)]  # so that each backend has one
    counts = proxy.connections()
    assert counts == Counter(session.name for session in sessions)
    assert len(counts) == 3
    for states in ({"b": "out"}, {"b": "down", "c": "down"}, {}):
        proxy.serve(service, states=states)
        for session in sessions:
            session.go_on()
        others = {client.session().name for _number in range(12)}
        assert others == set(BACKENDS) - set(states)
    assert all(proxy.connections()[name] > counts[name] for name in BACKENDS)
    proxy.serve(service, states=dict.fromkeys(BACKENDS, "down"))
    assert client.is_refused()
    assert proxy.refused() == {"no_backend": 1 if protocol == "tcp" else proxy.refused()["no_backend"]}
    for session in sessions:
        session.go_on()
    proxy.serve(dataclasses.replace(service, on_all_down="try_all"), states=dict.fromkeys(BACKENDS, "down"))
    assert not client.is_refused()
    proxy.serve(service, states=dict.fromkeys(BACKENDS, "out"))
    assert client.is_refused()


@each_once
def test_tiers_and_backends_that_are_not_enabled(lab, proxy, servers, protocol, family):
    client = Client(lab, protocol, family)
    service = proxy.service(protocol, family, b={"enabled": False}, d={"tier": 1})
    for states, name in (({}, "c"), ({"c": "down"}, "d")):
        proxy.serve(service, states=states)
        assert {client.session().name for _number in range(8)} == {name}
    proxy.serve(service, states={"c": "down", "d": "down"})
    assert client.is_refused()


def listening(lab, protocol, address, port):
    """A socket of proxy a."""
    with lab["a"].inside():
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        sock = socket.socket(AF["ipv6" if ":" in address else "ipv4"], kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if protocol == "tcp":
        sock.listen()
    return contextlib.closing(sock)


def test_a_socket_of_that_very_address_comes_first(lab, proxy, servers, protocol, family):
    """So a service can change its datapath without a gap."""
    client = Client(lab, protocol, family)
    proxy.serve(proxy.service(protocol, family))
    through = client.session()
    with listening(lab, protocol, client.to[0], PORT) as own:
        if protocol == "tcp":
            with tcp.connect(lab, *client.to) as sock:
                accepted = own.accept()[0]
                own.close()
                assert not client.is_refused(), "its listener is closed"
                with accepted:
                    tcp.assert_open(sock, accepted)
        else:
            assert client.is_refused(), "that socket does not answer"
            assert own.recv(100)
        through.go_on()
    assert not client.is_refused()
    with listening(lab, protocol, "::" if family == "ipv6" else "0.0.0.0", PORT):
        assert not client.is_refused(), "a socket of any address does not count"


@each_once
def test_a_retiring_service_keeps_its_connections(lab, proxy, servers, protocol, family):
    client = Client(lab, protocol, family)
    service = proxy.service(protocol, family)
    proxy.serve(service)
    session = client.session()
    proxy.serve(dataclasses.replace(service, retiring=True))
    assert client.is_refused()
    session.go_on()
    # Backends that a service has lost.
    proxy.serve(proxy.service(protocol, family, ["b"]), dataclasses.replace(service, retiring=True))
    session.go_on()
    assert {client.session().name for _number in range(6)} == {"b"}


def test_local_delivery_catches_no_packet_of_a_service(lab, proxy, servers, protocol, family):
    client = Client(lab, protocol, family)
    proxy.serve(proxy.service(protocol, family))
    session = client.session()
    proxy.bypass("delete")
    assert client.is_silent()
    proxy.bypass("add")
    session.go_on()
    proxy.host.sysctl(SRC_VALID_MARK, "0")  # IPv6 does not validate sources
    assert client.is_silent() == (family == "ipv4")
    proxy.host.sysctl(SRC_VALID_MARK, "1")
    assert client.session().name in BACKENDS


FOREIGN_CHANGES = [
    "flush ruleset",
    "add table inet {} { flags dormant; }",
    "flush chain inet {} forward",
    "add chain inet {} forward { policy drop; }",
    "add chain inet {} more",
    "insert rule inet {} dispatch accept",
    "flush chain inet {} dispatch; delete chain inet {} dispatch",
    "flush chain inet {} service_tcp-{address}-{port}",
    "add counter inet {} more",
    "add set inet {} more { type ipv4_addr; }",
]


@pytest.mark.parametrize("protocol", ["tcp"])
@pytest.mark.parametrize("change", FOREIGN_CHANGES)
@pytest.mark.ipv4_only
def test_what_others_change_is_noticed_and_put_back(lab, proxy, servers, protocol, change):
    client = Client(lab, protocol, "ipv4")
    proxy.serve(proxy.service(protocol, "ipv4"))
    assert not proxy.differs()
    command = change.replace("{}", NAME).replace("{address}", client.to[0]).replace("{port}", str(PORT))
    proxy.host.run(["nft", command])
    assert proxy.differs()
    proxy.serve(*proxy.services)
    assert not client.is_refused()


def test_a_backend_is_refused_where_it_would_reach_itself(lab, proxy, servers, protocol, family):
    """It would drop its own packets."""
    proxy.serve(proxy.service(protocol, family, ["b"]))
    to = (proxy.address(family), PORT)
    if protocol == "tcp":
        with pytest.raises(ConnectionRefusedError):
            tcp.connect(lab, *to, host="b")
    else:
        with udp.client(lab, to[0], host="b") as sock:
            sock.settimeout(PATIENCE)
            sock.connect(to)
            sock.send(udp.QUESTION)
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
    assert proxy.refused() == {"no_backend": 1}


@pytest.mark.parametrize("protocol", ["tcp"])
def test_nothing_of_the_hosts_own_traffic_is_translated(lab, proxy, servers, protocol, family):
    """Neither what it sends to a service, nor its connections to a backend, of whichever source."""
    proxy.serve(proxy.service("tcp", family), strangers=frozenset({family}))
    address, backend = getattr(lab["a"], family), getattr(lab["b"], family)
    with pytest.raises(ConnectionRefusedError):
        tcp.connect(lab, address, PORT, "a")
    with tcp.connect(lab, backend, BACKEND, "a") as sock:
        assert sock.recv(100) == b"b"
    assert handshake(lab["a"], Client(lab, "tcp", family).source(9), backend, BACKEND) == "established"
    assert proxy.connections() == dict.fromkeys(BACKENDS, 0)
    assert proxy.dropped() == {}
