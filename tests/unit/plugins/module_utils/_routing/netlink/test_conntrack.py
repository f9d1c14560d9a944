# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections are counted. tests/kernel tests that the kernel omits the others."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import conntrack, conntrack_entries
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.messages import attribute, attributes


def entry(mark: int | None, state: int | None = None) -> bytes:
    parts = [] if mark is None else [attribute(8, struct.pack("!I", mark))]
    if state is not None:
        parts.append(attribute(4, attribute(1, attribute(1, bytes([state])))))
    return conntrack.GENERIC.pack(2, 0, 0) + b"".join(parts)


@pytest.mark.parametrize(("body", "expected"), [
    (entry(12), True),
    (entry(0x1000C), True),
    (entry(13), False),
    (entry(None), False),
    (entry(12, 3), True),  # established
    (entry(12, 5), True),  # close-wait: the backend may still be sending
    (entry(12, 7), False),  # time-wait
    (entry(12, 8), False),  # closed by a reset
])  # fmt: skip
def test_which_connections_carry_a_mark(body, expected):
    assert conntrack.carries(body, 12, 255) == expected


def test_the_request_contains_mark_and_mask():
    found = dict(attributes(conntrack.request(12, 255)[conntrack.GENERIC.size :]))
    assert found == {8: struct.pack("!I", 12), 21: struct.pack("!I", 255)}


@pytest.mark.parametrize(("ends", "protocol", "expected"), [
    (("203.0.113.9", "198.18.0.21", "172.17.0.2"), 6, (5000, 80)),
    (("2001:db8::9", "2001:db8::21", "2001:db8::21"), 17, (5000, 80)),
    (("203.0.113.9", "198.18.0.21", "198.18.0.21"), 1, (0, 0)),
])  # fmt: skip
def test_the_ends_of_a_connection(ends, protocol, expected):
    source, target, server = (ipaddress.ip_address(address).packed for address in ends)
    first = 1 if len(source) == 4 else 3
    ports = attribute(2, struct.pack("!H", 5000)) + attribute(3, struct.pack("!H", 80)) if protocol != 1 else b""
    ip = attribute(1, attribute(first, source) + attribute(first + 1, target))
    sent = attribute(1, ip + attribute(2, attribute(1, bytes([protocol])) + ports))
    answered = attribute(2, attribute(1, attribute(first, server) + attribute(first + 1, source)))
    found = conntrack.decode(conntrack.GENERIC.pack(2, 0, 0) + sent + answered)
    assert found == conntrack.Flow(protocol, source, expected[0], target, expected[1], server)


def tuple_of(kind: int, source: str, target: str, protocol: int, ports: tuple[int, int]) -> bytes:
    """As the kernel writes it: nested attributes have the flag 0x8000."""
    packed = [ipaddress.ip_address(address).packed for address in (source, target)]
    first = 1 if len(packed[0]) == 4 else 3
    ends = b"".join(attribute(first + number, address) for number, address in enumerate(packed))
    numbers = attribute(1, bytes([protocol])) + b"".join(
        attribute(2 + number, struct.pack("!H", port)) for number, port in enumerate(ports)
    )
    return attribute(kind | 0x8000, attribute(0x8001, ends) + attribute(0x8002, numbers))


def translated(client: str, address: str, server: str, protocol: int, *parts: bytes) -> bytes:
    family = 2 if "." in client else 10
    ends = tuple_of(1, client, address, protocol, (5000, 80)) + tuple_of(2, server, client, protocol, (8080, 5000))
    return conntrack.GENERIC.pack(family, 0, 0) + ends + b"".join(parts)


ENDS = [("203.0.113.9", "198.18.0.11", "198.18.0.21"), ("2001:db8::9", "2001:db8::11", "2001:db8::21")]
REPLIED, IDENT = attribute(3, struct.pack("!I", 0xE | 1 << 5)), attribute(12, b"\1\2\3\4")
TIME_WAIT = attribute(4 | 0x8000, attribute(0x8001, attribute(1, b"\7")))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(("protocol", "parts", "known"), [
    (6, (REPLIED, IDENT, TIME_WAIT), {"state": 7, "replied": True, "ident": b"\1\2\3\4"}),
    (17, (attribute(3, struct.pack("!I", 8)),), {}),
])  # fmt: skip
def test_both_ends_of_a_translated_connection(ends, protocol, parts, known):
    client, address, server = (ipaddress.ip_address(text).packed for text in ends)
    expected = conntrack_entries.Entry(protocol, client, 5000, address, 80, server, 8080, **known)
    assert conntrack_entries.decode(translated(*ends, protocol, *parts)) == expected
    first = conntrack.GENERIC.pack(2 if "." in ends[0] else 10, 0, 0) + tuple_of(1, *ends[:2], protocol, (5000, 80))
    assert conntrack_entries.deletion(expected) == first + attribute(12, expected.ident)


@pytest.mark.parametrize("body", [
    conntrack.GENERIC.pack(2, 0, 0),
    conntrack.GENERIC.pack(7, 0, 0) + bytes(200),
    conntrack.GENERIC.pack(2, 0, 0) + bytes(200),
    translated(*ENDS[0], 6, attribute(18, b"\0\1")),
])  # fmt: skip
def test_other_messages_and_zones_are_left_out(body):
    assert conntrack_entries.decode(body) is None
    assert conntrack_entries.end_of(body) is None


def numbers(kind: int, first: int, second: int) -> bytes:
    return attribute(kind | 0x8000, attribute(1, struct.pack("!Q", first)) + attribute(2, struct.pack("!Q", second)))


COUNTED = (numbers(9, 5, 500), numbers(10, 4, 40000))
TIMES = numbers(20, 1_700_000_000_000_000_000, 1_700_000_001_500_000_000)


@pytest.mark.parametrize(("parts", "expected"), [
    ((), (None, None, None)),
    (COUNTED, ((5, 4), (500, 40000), None)),
    ((TIMES,), (None, None, 1.5)),
    ((*COUNTED, TIMES), ((5, 4), (500, 40000), 1.5)),
])  # fmt: skip
def test_the_end_of_a_connection_has_its_numbers_if_the_kernel_counts_them(parts, expected):
    end = conntrack_entries.end_of(translated(*ENDS[0], 6, *parts))
    assert (end.packets, end.size, end.seconds) == expected


def test_the_request_for_the_connections_of_a_server_names_it():
    ports = attribute(0x8002, attribute(1, b"\x11") + attribute(2, b"\0\x35"))
    address = b"\xc6\x12\x00\x15"
    for packed, ends, flags in ((address, attribute(0x8001, attribute(1, address)), 0x19), (bytes(16), b"", 0x18)):
        found = dict(attributes(conntrack_entries.request((17, packed, 53))[conntrack.GENERIC.size :]))
        assert found == {2: ends + ports, 25: attribute(2, struct.pack("=I", flags))}
    assert not list(attributes(conntrack_entries.request(None)[conntrack.GENERIC.size :]))
