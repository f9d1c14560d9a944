# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections are counted. tests/kernel tests that the kernel omits the others."""

from __future__ import annotations

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


def test_an_unreadable_count_is_not_zero(monkeypatch):
    def refuse(_protocol):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(conntrack, "Netlink", refuse)
    assert conntrack.count(12, 255) is None
