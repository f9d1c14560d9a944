# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which sockets and flows count for which need."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.conntrack import Flow
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.conntrack_entries import Entry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.sockets import Socket
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.connections import Connections
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.needs import (
    Foreign,
    Forwarded,
    From,
    Marked,
    To,
    Unknown,
)

TCP, UDP = 6, 17
OWN = frozenset({"198.18.0.21", "198.18.0.121", "2001:db8::21", "2001:db8::121"})
B, EXTRA, CLIENT, A = "198.18.0.21", "198.18.0.121", "203.0.113.9", "198.18.0.11"
B6, EXTRA6, CLIENT6 = "2001:db8::21", "2001:db8::121", "2001:db8:9::9"


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def sock(local: str, peer: str, protocol: int = TCP, mark: int = 0, port: int = 8080, peer_port: int = 5000) -> Socket:
    return Socket(protocol, packed(local), port, packed(peer), peer_port, mark)


def flow(source: str, target: str, protocol: int = TCP, server: str | None = None, source_port: int = 5000) -> Flow:
    return Flow(protocol, packed(source), source_port, packed(target), 8080, packed(server or target))


def number(need, sockets=(), flows=(), marked=()) -> int | None:
    """``flows`` are all that conntrack lists, ``marked`` those with the mark of the need; None: it cannot be read."""

    def list_flows(mark: int = 0, _mask: int = 0, _family: str | None = None):
        listed = marked if mark else flows
        if listed is None:
            raise PermissionError(1, "Operation not permitted")
        return listed

    def list_sockets():
        if sockets is None:
            raise FileNotFoundError(2, "No such file or directory")
        return sockets

    return Connections(list_sockets, list_flows).count(frozenset({need}), OWN, exact=True)[need]


EXTRA_NEED = To(f"{EXTRA}/32")
OF_DNS = To(f"{EXTRA}/32", frozenset({(53, 60)}))
SERVER = sock("0.0.0.0", "0.0.0.0", UDP, port=53, peer_port=0)


@pytest.mark.parametrize(("need", "sockets", "flows", "expected"), [
    (EXTRA_NEED, [sock(EXTRA, CLIENT), sock(EXTRA, CLIENT, UDP), sock(B, CLIENT), sock(B, EXTRA)], [], 2),
    (To(f"{EXTRA6}/128"), [sock(EXTRA6, CLIENT6), sock(B6, CLIENT6)], [], 1),
    (To("198.18.0.0/24"), [sock(EXTRA, CLIENT), sock(B, CLIENT), sock(B6, CLIENT6)], [], 2),
    # Conntrack knows the sessions of UDP and of containers; a TCP connection of the host is a socket.
    (EXTRA_NEED, [sock(EXTRA, CLIENT), sock(EXTRA, CLIENT, UDP)], [flow(CLIENT, EXTRA)], 1),
    (EXTRA_NEED, [], [flow(CLIENT, EXTRA, UDP), flow(CLIENT, EXTRA, TCP, "172.17.0.2"), flow(CLIENT, B, UDP)], 2),
    # Without conntrack, a UDP server may have sessions that no list shows.
    (EXTRA_NEED, [sock(EXTRA, "0.0.0.0", UDP, port=53, peer_port=0)], [], None),
    (EXTRA_NEED, [SERVER], [], 0),
    (OF_DNS, [SERVER], [], None),
    (OF_DNS, [SERVER], [flow(CLIENT, B, UDP)], 0),
    (OF_DNS, [SERVER, sock(EXTRA, CLIENT)], [], 1),
    (EXTRA_NEED, [], None, 0),
    (EXTRA_NEED, None, [], None),
    (EXTRA_NEED, None, [flow(CLIENT, EXTRA, UDP)], 1),
    (Unknown(), [sock(B, CLIENT)], [], None),
])  # fmt: skip
def test_connections_to_an_address(need, sockets, flows, expected):
    assert number(need, sockets, flows) == expected


WEB = Forwarded(TCP, EXTRA, 80, frozenset({(B, 8080)}))
OF_C = replace(WEB, servers=frozenset({("198.18.0.22", 8080)}))


def entry(client: str, address: str, server: str, port: int = 80, client_port: int = 5000, state: int = 3) -> Entry:
    return Entry(TCP, packed(client), client_port, packed(address), port, packed(server), 8080, state)


@pytest.mark.parametrize(("entries", "expected"), [
    ([entry(CLIENT, EXTRA, B), entry(CLIENT, EXTRA, B, state=7), entry(CLIENT, EXTRA, B, port=81)], 1),
    ([entry(CLIENT, EXTRA, "198.18.0.22"), entry(CLIENT, EXTRA, A)], 0),
    # After a take-over, the server's packet came first.
    ([entry(B, CLIENT, CLIENT, port=5000, client_port=8080), entry(B, CLIENT, CLIENT, client_port=9)], 1),
    (None, None),
])  # fmt: skip
def test_forwarded_connections(entries, expected):
    def list_entries():
        if entries is None:
            raise PermissionError(1, "Operation not permitted")
        return entries

    connections = Connections(lambda: [], lambda *_mark: [], list_entries=list_entries)
    assert connections.count(frozenset({WEB, OF_C}), OWN, exact=True)[WEB] == expected


SPOOFED = [sock(CLIENT, B), sock(CLIENT, B, UDP), sock(CLIENT6, B6)]


@pytest.mark.parametrize(("need", "sockets", "expected"), [
    (From(f"{B}/32", TCP), SPOOFED, 1),
    (From(f"{B}/32", UDP), SPOOFED, 1),
    (From(f"{B}/32"), SPOOFED, 2),
    (From(f"{B6}/128", TCP), SPOOFED, 1),
    (From("198.18.0.31/32"), SPOOFED, 0),
    # The proxy's own connections need no local delivery.
    (From(f"{B}/32"), [sock(EXTRA, B)], 0),
    (Foreign(), [*SPOOFED, sock(EXTRA, B), sock("127.0.0.53", "127.0.0.1")], 3),
    (Foreign("ipv6"), SPOOFED, 1),
    (Foreign(None, frozenset({f"{B}/32"})), SPOOFED, 1),
    (Foreign(), None, None),
])  # fmt: skip
def test_foreign_sockets(need, sockets, expected):
    assert number(need, sockets) == expected


OTHER = sock(B, CLIENT, peer_port=6000)
PLAIN, PLAIN6 = sock(B, CLIENT), sock(B6, CLIENT6)
MARKED = sock(B, CLIENT, mark=0x1000B)


@pytest.mark.parametrize(("need", "sockets", "marked", "expected"), [
    (Marked(11, 255), [PLAIN, PLAIN6], [flow(CLIENT, B), flow(CLIENT6, B6)], 2),
    (Marked(11, 255, "ipv6"), [PLAIN, PLAIN6], [flow(CLIENT, B), flow(CLIENT6, B6)], 1),
    (Marked(11, 255), None, [flow(CLIENT, B), flow(CLIENT6, B6)], 2),
    # A TCP connection of this host that has no socket any more has ended; others are not known as sockets.
    (Marked(11, 255), [], [flow(CLIENT, B), flow(CLIENT, B, UDP), flow(CLIENT, B, TCP, "172.17.0.2")], 2),
    (Marked(11, 255), [], [flow(CLIENT, "198.18.0.99")], 1),
    (Marked(11, 255), [MARKED], [], 1),
    (Marked(11, 255, port=(TCP, 8080)), [MARKED, OTHER], [flow(CLIENT, B), flow(CLIENT, B, UDP)], 1),
    (Marked(11, 255, port=(TCP, 8081)), [MARKED, PLAIN], [flow(CLIENT, B)], 0),
    (Marked(11, 255), [MARKED], [flow(CLIENT, B)], 1),
    (Marked(11, 255), [sock(B, CLIENT, mark=12)], [], 0),
    (Marked(11, 255), [], None, None),
    (Marked(11, 255), [MARKED], None, 1),
    (Marked(11, 255, tracked=False), [MARKED], None, 1),
    (Marked(11, 255, tracked=False), None, [flow(CLIENT, B)], None),
    (Marked(11, 255, other_ways=frozenset({f"{EXTRA}/32"})), [MARKED], [flow(CLIENT, EXTRA, UDP), flow(CLIENT, B)], 1),
    (Marked(11, 255, other_ways=frozenset({f"{B}/32"})), [MARKED], [flow(CLIENT, B)], 0),
    (Marked(11, 255, sockets=True), [MARKED], [flow(CLIENT, B)], 0),
    (Marked(11, 255, sockets=True), [MARKED, OTHER], [flow(CLIENT, B), flow(CLIENT, B, source_port=6000)], 1),
])  # fmt: skip
def test_connections_with_a_mark(need, sockets, marked, expected):
    assert number(need, sockets, (), marked) == expected


def test_a_count_is_used_for_some_seconds_and_longer_if_it_costs_much():
    listed, now, used = [], [100.0], [0.0]

    def list_sockets():
        used[0] += 0.1 * len(listed)
        return listed

    connections = Connections(list_sockets, lambda *_mark: (), lambda: now[0], lambda: used[0])
    need = From(f"{B}/32")

    def counted(seconds: float, **options) -> int | None:
        now[0] += seconds
        return connections.count(frozenset({need}), OWN, **options)[need]

    assert counted(0) == 0
    listed.append(sock(CLIENT, B))
    assert [counted(4), counted(1)] == [0, 1]
    listed.clear()
    assert [counted(19.5), counted(0, exact=True)] == [1, 0]
    listed.append(sock(CLIENT, B))
    assert [counted(4), counted(1), counted(19), counted(1.5)] == [0, 1, 1, 1]


def test_the_lists_are_read_only_until_each_need_has_a_connection():
    read = []

    def list_sockets():
        for each in (PLAIN, MARKED, sock(CLIENT, B), MARKED):
            read.append(each)
            yield each

    def list_flows(*_mark):
        raise AssertionError("not needed")

    needs = frozenset({Marked(11, 255), From(f"{B}/32")})
    assert Connections(list_sockets, list_flows).count(needs, OWN) == dict.fromkeys(needs, 1)
    assert len(read) == 3
