# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to neighbours, byte by byte, and what counts as an answer. tests/kernel/marks asks real ones."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import neighbour_probe

MAC = bytes.fromhex("020000000021")
REPLY = bytes.fromhex("0001080006040002") + bytes.fromhex("020000000011c612000b") + MAC + bytes.fromhex("c6120015")
TARGET = bytes.fromhex("20010db8000000000000000000000011")
ADVERTISEMENT = bytes.fromhex("8800000060000000") + TARGET + bytes.fromhex("0201020000000011")


def test_an_arp_request_asks_for_one_address():
    packet = neighbour_probe.arp_request(MAC, "198.18.0.21", "198.18.0.11")
    assert packet.hex() == "0001080006040001" + "020000000021c6120015" + "000000000000c612000b"


def test_a_solicitation_names_its_target_and_our_mac():
    message, group = neighbour_probe.solicitation(MAC, "2001:db8::11")
    assert message == bytes([135, 0, 0, 0, 0, 0, 0, 0]) + TARGET + bytes([1, 1]) + MAC
    assert group == "ff02::1:ff00:11"


@pytest.mark.parametrize(
    ("packet", "address"),
    [
        (REPLY, "198.18.0.11"),
        (REPLY + bytes(18), "198.18.0.11"),
        (neighbour_probe.arp_request(MAC, "198.18.0.11", "198.18.0.21"), None),
        (REPLY[:-1], None),
    ],
)
def test_what_counts_as_an_arp_answer(packet, address):
    assert neighbour_probe.arp_answer(packet) == address


@pytest.mark.parametrize(
    ("message", "address"),
    [
        (ADVERTISEMENT, "2001:db8::11"),
        (neighbour_probe.solicitation(MAC, "2001:db8::11")[0], None),
        (ADVERTISEMENT[:23], None),
        (b"", None),
    ],
)
def test_what_counts_as_an_advertisement(message, address):
    assert neighbour_probe.nd_answer(message) == address
