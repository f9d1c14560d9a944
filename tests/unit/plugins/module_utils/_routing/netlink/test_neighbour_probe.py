# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to neighbours, byte by byte, and what counts as an answer. tests/kernel/marks asks real ones."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import neighbour_probe
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.neighbour_probe import (
    ETH_P_ARP,
    ETH_P_IPV6,
)

MAC = bytes.fromhex("020000000021")
REPLY = bytes.fromhex("0001080006040002") + bytes.fromhex("020000000011c612000b") + MAC + bytes.fromhex("c6120015")
TARGET = bytes.fromhex("20010db8000000000000000000000011")
HEADER = bytes.fromhex("6000000000203aff") + TARGET + bytes.fromhex("20010db8000000000000000000000021")
ADVERTISEMENT = HEADER + bytes.fromhex("8800000060000000") + TARGET + bytes.fromhex("0201020000000011")


def test_an_arp_request_asks_for_one_address():
    packet = neighbour_probe.arp_request(MAC, "198.18.0.21", "198.18.0.11")
    assert packet.hex() == "0001080006040001" + "020000000021c6120015" + "000000000000c612000b"


def test_a_solicitation_goes_to_the_address_or_to_its_group():
    packet, everybody = neighbour_probe.solicitation(MAC, "2001:db8::21", "2001:db8::11")
    assert (packet[7], packet[24:40], packet[40], packet[48:64]) == (255, TARGET, 135, TARGET)
    assert packet[64:] == bytes.fromhex("0101") + MAC
    assert everybody.hex() == "3333ff000011"
    # The sum over the pseudo header and the message, with its checksum, is all ones.
    words = packet[8:40] + bytes([0, 0, 0, 32, 0, 0, 0, 58]) + packet[40:]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    packet, _everybody = neighbour_probe.solicitation(MAC, "2001:db8::21", "2001:db8::11", to_all=True)
    assert packet[24:40].hex() == "ff0200000000000000000001ff000011"


@pytest.mark.parametrize(
    ("protocol", "packet", "address"),
    [
        (ETH_P_ARP, REPLY, "198.18.0.11"),
        (ETH_P_ARP, REPLY + bytes(18), "198.18.0.11"),
        (ETH_P_ARP, neighbour_probe.arp_request(MAC, "198.18.0.11", "198.18.0.21"), None),
        (ETH_P_ARP, REPLY[:-1], None),
        (ETH_P_IPV6, ADVERTISEMENT, "2001:db8::11"),
        (ETH_P_IPV6, neighbour_probe.solicitation(MAC, "2001:db8::21", "2001:db8::11")[0], None),
        (ETH_P_IPV6, ADVERTISEMENT[:63], None),
        (ETH_P_IPV6, b"", None),
    ],
)
def test_what_counts_as_an_answer(protocol, packet, address):
    assert neighbour_probe.answering(protocol, packet) == address
