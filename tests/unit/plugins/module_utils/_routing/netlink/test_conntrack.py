# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections are counted. tests/kernel tests that the kernel omits the others."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import conntrack
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
