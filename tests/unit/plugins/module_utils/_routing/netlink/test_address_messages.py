# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encoding and decoding of addresses, and their owners."""

from __future__ import annotations

import socket
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Address
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import address_messages as messages
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.messages import attribute, link_index


@pytest.mark.parametrize("address", [Address("ipv4", "198.18.0.121", "lo"), Address("ipv6", "2001:db8::121", "lo")])
def test_an_encoded_address_decodes_to_itself(address):
    found = messages.decode(messages.encode(address, 202, link_index("lo")))
    assert (found.value, found.protocol, found.family) == (address, 202, address.family)


def body(length: int = 32, metric: int | None = None, family: int = socket.AF_INET) -> bytes:
    parts = [attribute(2, socket.inet_aton("198.18.0.121"))]
    parts += [] if metric is None else [attribute(9, struct.pack("=I", metric))]
    return messages.BODY.pack(family, length, 0, 0, link_index("lo")) + b"".join(parts)


@pytest.mark.parametrize(("message", "protocol"), [
    (body(metric=messages.MARKER | 202), 202),
    (body(metric=messages.MARKER | 201), 201),
    (body(), 0),
    (body(metric=202), 0),
    (body(24, messages.MARKER | 202), 0),
])  # fmt: skip
def test_the_owner_of_an_address_is_recognised(message, protocol):
    assert messages.decode(message).protocol == protocol


def test_addresses_of_other_families_are_ignored():
    assert messages.decode(body(family=7)) is None
