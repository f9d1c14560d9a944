# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask neighbours whether they are there: ARP requests (RFC 826) and neighbour solicitations (RFC 4861) of our own.

The kernel's neighbour table does not tell in time: it believes the acknowledgements of a connection, whichever way they
came, and asks once a second. The sockets need CAP_NET_RAW; filters drop all but the answers. IPv6 has a raw socket,
because a packet socket would get every IPv6 packet of the link (0.3 microseconds each).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import select
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import socket_filter
from .messages import link_index

# linux/if_ether.h, linux/if_arp.h, linux/sockios.h
ETH_P_ARP, ARPHRD_ETHER, SIOCGIFHWADDR = 0x0806, 1, 0x8927
ARP = struct.Struct("!HHBBH6s4s6s4s")
ARP_REQUEST, BROADCAST = 1, b"\xff" * 6
# Offsets in an ARP packet without its link header.
OPERATION_AT, SENDER_AT = 6, 14
# linux/icmpv6.h: a filter of 256 bits; those that are set are dropped.
SOLICITATION, ADVERTISEMENT, ICMPV6_FILTER = 135, 136, 1
ONLY_ADVERTISEMENTS = b"".join(
    struct.pack("=I", 0xFFFFFFFF & ~(1 << ADVERTISEMENT % 32 if word == ADVERTISEMENT // 32 else 0))
    for word in range(8)
)
# Of a neighbour: no router has forwarded it.
HOP_LIMIT = 255


class Neighbour(NamedTuple):
    """An address on a link, and our own address there."""

    address: str
    dev: str
    own: str


class Prober:
    """Asks neighbours on one link. OSError without the capability, the address family or the link."""

    def __init__(self, dev: str, sock: socket.socket):
        self._dev, self._socket = dev, sock
        # struct ifreq: the name, then a sockaddr
        answer = fcntl.ioctl(sock, SIOCGIFHWADDR, struct.pack("16sH14x", dev.encode(), 0))
        (hardware, self._mac) = struct.unpack("16xH6s8x", answer)
        self.has_macs: bool = hardware == ARPHRD_ETHER

    def ask(self, neighbour: Neighbour, everybody: bool) -> None:
        """Ask one neighbour, or everybody on the link who may have its address. OSError if the link is down."""
        raise NotImplementedError

    def answers(self) -> Iterator[str]:
        """The addresses of the answers that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                address = self._receive()
                if address:
                    yield address

    def _receive(self) -> str | None:
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """Wait for a packet; whether there is one."""
        return bool(select.select([self._socket], (), (), seconds)[0])

    def close(self) -> None:
        self._socket.close()


class ArpProber(Prober):
    """A packet socket; it asks a neighbour at the MAC of its last answer."""

    def __init__(self, dev: str, addresses: Iterable[str]):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            super().__init__(dev, sock)
            socket_filter.attach(sock, socket_filter.arp_replies(addresses))
            sock.bind((dev, ETH_P_ARP))  # from here on it receives
        except OSError:
            sock.close()
            raise
        self._macs: dict[str, bytes] = {}

    def ask(self, neighbour: Neighbour, everybody: bool) -> None:
        mac = BROADCAST if everybody else self._macs.get(neighbour.address, BROADCAST)
        packet = arp_request(self._mac, neighbour.own, neighbour.address)
        self._socket.sendto(packet, (self._dev, ETH_P_ARP, 0, 0, mac))

    def _receive(self) -> str | None:
        packet, sender = self._socket.recvfrom(256)
        address = arp_answer(packet)
        if address:
            self._macs[address] = bytes(sender[4])
        return address


class NdProber(Prober):
    """A raw socket; the kernel knows the neighbour's MAC, or asks for it first."""

    def __init__(self, dev: str, _addresses: Iterable[str]):
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        try:
            super().__init__(dev, sock)
            sock.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, ONLY_ADVERTISEMENTS)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
            for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
                sock.setsockopt(socket.IPPROTO_IPV6, option, HOP_LIMIT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        except OSError:
            sock.close()
            raise
        self._index = link_index(dev)

    def ask(self, neighbour: Neighbour, everybody: bool) -> None:
        message, group = solicitation(self._mac, neighbour.address)
        scope = self._index if everybody or neighbour.address.startswith("fe80:") else 0
        self._socket.sendto(message, (group if everybody else neighbour.address, 0, 0, scope))

    def _receive(self) -> str | None:
        message, control, _flags, _sender = self._socket.recvmsg(256, 64)
        limits = [data for level, kind, data in control if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)]
        return nd_answer(message) if limits == [struct.pack("=i", HOP_LIMIT)] else None


def open_prober(dev: str, family: str, addresses: Iterable[str]) -> Prober:
    """A prober for neighbours of one family on a link. OSError as for ``Prober``."""
    return ArpProber(dev, addresses) if family == "ipv4" else NdProber(dev, addresses)


@functools.lru_cache(maxsize=256)
def arp_request(mac: bytes, own: str, target: str) -> bytes:
    own_packed, packed = (ipaddress.ip_address(address).packed for address in (own, target))
    return ARP.pack(ARPHRD_ETHER, 0x0800, 6, 4, ARP_REQUEST, mac, own_packed, bytes(6), packed)


def arp_answer(packet: bytes) -> str | None:
    """The address that an ARP reply is from; None if it is no reply."""
    if len(packet) < ARP.size or packet[OPERATION_AT : OPERATION_AT + 2] != b"\0\2":
        return None
    return _text(packet[SENDER_AT : SENDER_AT + 4])


@functools.lru_cache(maxsize=256)
def solicitation(mac: bytes, target: str) -> tuple[bytes, str]:
    """The message, whose checksum the kernel adds, and the group of those who may have the address."""
    packed = ipaddress.ip_address(target).packed
    group = ipaddress.ip_address(bytes.fromhex("ff0200000000000000000001ff") + packed[-3:])
    # Type, code, checksum, reserved; the target; option 1: our MAC.
    return struct.pack("!BBHI16sBB6s", SOLICITATION, 0, 0, 0, packed, 1, 1, mac), str(group)


def nd_answer(message: bytes) -> str | None:
    """The address that a neighbour advertisement is from; None if it is none."""
    if len(message) < 24 or message[0] != ADVERTISEMENT:
        return None
    return _text(message[8:24])


@functools.lru_cache(maxsize=256)
def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))
