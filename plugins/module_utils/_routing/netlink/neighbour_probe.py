# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask neighbours whether they are there: ARP requests (RFC 826) and neighbour solicitations (RFC 4861) of our own.

The kernel's neighbour table does not tell in time: it believes the acknowledgements of a connection, whichever way they
came, and asks once a second. Packet sockets need CAP_NET_RAW. A filter drops all but the answers, before they are
copied.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import select
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import socket_filter

# linux/if_ether.h, linux/if_arp.h
ETH_P_ARP, ETH_P_IPV6, ARPHRD_ETHER = 0x0806, 0x86DD, 1
ARP = struct.Struct("!HHBBH6s4s6s4s")
ARP_REQUEST, ARP_REPLY = 1, 2
IPV6 = struct.Struct("!IHBB16s16s")
SOLICITATION, ADVERTISEMENT = 135, 136
# Offsets in a packet without its link header.
ARP_OPERATION_AT, ARP_SENDER_AT = 6, 14
NEXT_HEADER_AT, ICMP_TYPE_AT, TARGET_AT = 6, 40, 48
BROADCAST = b"\xff" * 6


class Neighbour(NamedTuple):
    """An address on a link, and our own address there."""

    address: str
    dev: str
    own: str


class Prober:
    """Asks neighbours on one link, of one family."""

    def __init__(self, dev: str, family: str, addresses: Iterable[str]):
        """OSError without the capability, the address family or the link."""
        self._dev = dev
        self._protocol = ETH_P_ARP if family == "ipv4" else ETH_P_IPV6
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
        )
        try:
            socket_filter.attach(self._socket, socket_filter.neighbour_answers(family, addresses))
            self._socket.bind((dev, self._protocol))  # from here on it receives
            hardware, self._mac = self._socket.getsockname()[3:]
        except OSError:
            self._socket.close()
            raise
        self.has_macs: bool = hardware == ARPHRD_ETHER

    def ask(self, neighbour: Neighbour, mac: bytes | None) -> None:
        """Ask one neighbour at its MAC; without one, ask everybody on the link. OSError if the link is down."""
        if self._protocol == ETH_P_ARP:
            packet, everybody = arp_request(self._mac, neighbour.own, neighbour.address), BROADCAST
        else:
            packet, everybody = solicitation(self._mac, neighbour.own, neighbour.address, to_all=mac is None)
        self._socket.sendto(packet, (self._dev, self._protocol, 0, 0, mac or everybody))

    def wait(self, seconds: float) -> bool:
        """Wait for a packet; whether there is one."""
        return bool(select.select([self._socket], (), (), seconds)[0])

    def answers(self) -> Iterator[tuple[str, bytes]]:
        """(address, MAC) of the answers that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, sender = self._socket.recvfrom(256)
                address = answering(self._protocol, packet)
                if address:
                    yield address, bytes(sender[4])

    def close(self) -> None:
        self._socket.close()


@functools.lru_cache(maxsize=256)
def arp_request(mac: bytes, own: str, target: str) -> bytes:
    own_packed, packed = (ipaddress.ip_address(address).packed for address in (own, target))
    return ARP.pack(ARPHRD_ETHER, 0x0800, 6, 4, ARP_REQUEST, mac, own_packed, bytes(6), packed)


@functools.lru_cache(maxsize=256)
def solicitation(mac: bytes, own: str, target: str, to_all: bool = False) -> tuple[bytes, bytes]:
    """The packet, and the MAC of the group of nodes that may have the address."""
    source, packed = (ipaddress.ip_address(address).packed for address in (own, target))
    group = bytes.fromhex("ff0200000000000000000001ff") + packed[-3:]
    destination = group if to_all else packed
    # Type, code, checksum, reserved; the target; option 1: our MAC.
    body = struct.pack("!BBHI16sBB6s", SOLICITATION, 0, 0, 0, packed, 1, 1, mac)
    pseudo = source + destination + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2}H", pseudo + body))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    header = IPV6.pack(6 << 28, len(body), socket.IPPROTO_ICMPV6, 255, source, destination)
    return header + body[:2] + struct.pack("!H", checksum) + body[4:], b"\x33\x33" + group[-4:]


def answering(protocol: int, packet: bytes) -> str | None:
    """The address that an answer is from; None if it is no answer."""
    if protocol == ETH_P_ARP:
        if len(packet) < ARP.size or packet[ARP_OPERATION_AT : ARP_OPERATION_AT + 2] != b"\0\2":
            return None
        return str(ipaddress.ip_address(packet[ARP_SENDER_AT : ARP_SENDER_AT + 4]))
    if len(packet) < TARGET_AT + 16 or packet[NEXT_HEADER_AT] != socket.IPPROTO_ICMPV6:
        return None
    if packet[ICMP_TYPE_AT] != ADVERTISEMENT:
        return None
    return str(ipaddress.ip_address(packet[TARGET_AT : TARGET_AT + 16]))
