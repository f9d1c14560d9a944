# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which of the kernel's messages are relevant notifications. tests/kernel/keeper has the same with a real kernel."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import (
    Interest,
    NftReader,
    RouteReader,
)

INTEREST = Interest(
    addresses=frozenset({"198.18.0.11", "2001:db8::11"}),
    links=frozenset({"eth0"}),
    nft_names=frozenset({"l4proxy_return_path"}),
    sources=frozenset({"198.18.0.21/32", "2001:db8:5::/48"}),
)
UP, DOWN = 0x1 | 0x40 | 0x10000, 0


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, body: bytes, port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, port) + body


def link(kind: int, index: int, name: str, flags: int = UP) -> bytes:
    return message(kind, struct.pack("=BBHiII", 0, 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0"))


def neighbour(address: str, mac: str | None) -> bytes:
    lladdr = attribute(2, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    body = struct.pack("=BBHiHBB", 2, 0, 0, 2, 2, 0, 1)
    return message(28, body + attribute(1, ipaddress.ip_address(address).packed) + lladdr)


def address(index: int, value: str = "", kind: int = 20) -> bytes:
    packed = ipaddress.ip_address(value).packed if value else b""
    return message(kind, struct.pack("=BBBBi", 2, 24, 0, 0, index) + (attribute(1, packed) if value else b""))


OLD, NEW = "02:00:00:00:00:11", "02:00:00:00:0a:0a"
# Messages in order, and whether each is a relevant notification.
SCRIPTS = {
    "only a proxy's first MAC": ([neighbour("198.18.0.11", OLD)] * 3, [True, False, False]),
    "a proxy's new MAC": ([neighbour("2001:db8::11", mac) for mac in (OLD, NEW)], [True, True]),
    "no failed resolution": ([neighbour("198.18.0.11", mac) for mac in (OLD, None, OLD)], [True, False, False]),
    "no other host's MAC": ([neighbour("198.18.0.12", OLD)], [False]),
    "no statistics of a link": ([link(16, 2, "eth0")] * 2, [False, False]),
    "the state of a link": ([link(16, 2, "eth0", flags) for flags in (UP, DOWN, UP)], [False, True, True]),
    "the end of a link": ([link(16, 2, "eth0"), link(17, 2, "eth0")], [False, True]),
    "the new name of a link": ([link(16, 2, "eth0"), link(16, 2, "old0")], [False, True]),
    "a link that goes down first of all": ([link(16, 2, "eth0", DOWN)], [True]),
    "no other link": ([link(16, 3, "veth1"), link(17, 3, "veth1")], [False, False]),
    "an address on a relevant link": ([link(16, 2, "eth0"), address(2)], [False, True]),
    "no address on another link": ([link(16, 3, "veth1"), address(3)], [False, False]),
    "on any link an address that is a rule's source": (
        [address(3, value, kind) for value in ("198.18.0.21", "198.18.0.22", "2001:db8:5::9") for kind in (20, 21)],
        [True, True, False, False, True, True],
    ),
    "no unknown kind of message": ([message(36, b"\0" * 20)], [False]),
}


@pytest.mark.parametrize(("messages", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_relevant_are(messages, expected):
    reader = RouteReader()
    reader.watch(INTEREST)
    assert [bool(list(reader.read(memoryview(data)))) for data in messages] == expected


def test_each_message_of_a_datagram_is_read_with_its_sender():
    reader = RouteReader()
    data = message(33, b"\0" * 12, 4711) + message(25, b"\0" * 12, 4712)
    assert [(found.kind, found.port) for found in reader.read(memoryview(data))] == [("rule", 4711), ("route", 4712)]


@pytest.mark.parametrize("length", [0, 3, 15, 16, 17, 20, 27])
def test_a_truncated_datagram_does_no_harm(length):
    reader = RouteReader()
    reader.watch(INTEREST)
    list(reader.read(memoryview(neighbour("198.18.0.11", OLD)[:length])))


def test_a_transaction_is_one_notification_with_the_name_of_its_process():
    reader = NftReader()
    reader.watch(INTEREST)
    ours = message(10 << 8, b"\0" * 4 + attribute(1, b"l4proxy_return_path\0"))
    theirs = message(10 << 8, b"\0" * 4 + attribute(1, b"filter\0"))
    end = message(10 << 8 | 15, b"\0" * 4 + attribute(1, b"\0\0\0\1") + attribute(3, b"firewalld\0"))
    read = [list(reader.read(memoryview(data))) for data in (theirs, end, theirs + ours, ours, end, end)]
    assert [[found.process for found in notifications] for notifications in read] == [[], [], [], [], ["firewalld"], []]


def test_a_transaction_of_our_own_is_not_reported_but_the_next_one_is():
    reader = NftReader()
    reader.watch(INTEREST)
    reader.expected = 5
    ours = message(10 << 8, b"\0" * 4 + attribute(1, b"l4proxy_return_path\0"))
    ends = [message(10 << 8 | 15, b"\0" * 4 + attribute(1, bytes([0, 0, 0, number]))) for number in (4, 5, 6)]
    found = [[len(list(reader.read(memoryview(data)))) for data in (ours, end)] for end in ends]
    assert found == [[0, 1], [0, 0], [0, 1]]
