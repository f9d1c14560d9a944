# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Route requests and answers as bytes. tests/kernel compares them with the kernel."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import messages, route_query
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer


def attributes(message: bytes) -> dict[int, bytes]:
    return dict(messages.attributes(message[28:]))


def test_a_request_contains_the_selectors_that_are_given():
    message = route_query.request("198.51.100.11", "198.18.0.21", 2, 3, 11, "tcp", 8080, 99)
    assert struct.unpack_from("=IHHII", message) == (len(message), 26, 1, 1, 0)
    assert struct.unpack_from("=BBB", message, 16) == (socket.AF_INET, 32, 32)
    expected = {1: socket.inet_aton("198.51.100.11"), 2: socket.inet_aton("198.18.0.21")}
    expected |= {kind: struct.pack("=I", number) for kind, number in ((3, 2), (4, 3), (16, 11))}
    expected |= {27: b"\x06", 28: (8080).to_bytes(2, "big"), 29: (99).to_bytes(2, "big")}
    assert attributes(message) == expected
    message = route_query.request("2001:db8::1")
    assert struct.unpack_from("=BBB", message, 16) == (socket.AF_INET6, 128, 0)
    assert set(attributes(message)) == {1}
    assert len(message) % 4 == 0


def reply(kind: int, flags: int = 0, *pairs: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 0, 0, kind, flags)
    body += b"".join(messages.attribute(*pair) for pair in pairs)
    return struct.pack("=IHHII", 16 + len(body), 24, 0, 1, 0) + body


def refusal(code: int) -> bytes:
    return struct.pack("=IHHII", 36, 2, 0, 1, 0) + struct.pack("=i", -code) + b"\0" * 16


VIA = socket.inet_aton("198.18.0.11")
ANSWERS = [
    (reply(1, 0, (5, VIA), (4, struct.pack("=I", 2)), (15, struct.pack("=I", 20111))),
     RouteAnswer("unicast", via="198.18.0.11", dev="2", table=20111)),
    (reply(1, 0x40000, (5, VIA)), RouteAnswer("unicast", via="198.18.0.11", redirected=True)),
    (reply(1, 0, (18, struct.pack("=H", 10) + socket.inet_pton(socket.AF_INET6, "fe80::1"))),
     RouteAnswer("unicast", via="fe80::1")),
    (reply(2, 0, (7, VIA)), RouteAnswer("local", src="198.18.0.11")),
    (reply(7), RouteAnswer("unreachable")),
    (refusal(errno.ENETUNREACH), RouteAnswer("unreachable", error="ENETUNREACH")),
    (refusal(errno.EACCES), RouteAnswer("prohibit", error="EACCES")),
    (refusal(errno.EXDEV), RouteAnswer("refused", error="EXDEV")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), ANSWERS)
def test_answers_are_decoded(message, expected):
    assert route_query.parse(message) == expected


def test_loopback_is_local_and_an_unknown_interface_an_error_with_its_name():
    assert route_query.route_get("127.0.0.1").type == "local"
    with pytest.raises(OSError, match="nope0") as caught:
        route_query.route_get("127.0.0.1", iif="nope0")
    assert caught.value.errno == errno.ENODEV
