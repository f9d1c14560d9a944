# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of this host, read without privileges and without netlink, which a hardened unit may forbid."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import socket
import struct

from ..._shared.families import socket_family_of

SIOCGIFCONF = 0x8912  # linux/sockios.h: every IPv4 address of every interface, secondary ones too (netdevice(7))
IFREQ_SIZE = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq: 16 bytes of name, then a union
IF_INET6 = "/proc/self/net/if_inet6"
REFRESH = 10.0  # seconds between two reads of a worker


def own_addresses() -> frozenset[str]:
    """Return a frozenset of this network namespace's addresses in canonical text form; raise OSError."""
    return frozenset(_ipv4()) | frozenset(_ipv6())


def absent(services):
    """Return {service name: [listener as text]} for listeners on addresses that this host does not have now."""
    try:
        own = own_addresses()
    except OSError:  # out of descriptors: nothing is known
        return {}
    found: dict[str, list[str]] = {}
    bindable: dict[str, bool] = {}
    for service in services:
        for listener in service.listen:
            address = listener.address
            if listener.wildcard or address in own:
                continue
            if address not in bindable:
                bindable[address] = is_local(address)
            if not bindable[address]:
                found.setdefault(service.name, []).append(str(listener))
    return found


def is_local(address):
    """Whether the kernel treats an address as this host's, like 127.0.0.2 or an address with a local route."""
    for attempt in (_bind, _connect_on_lo) if ":" in address else (_bind,):
        with contextlib.suppress(OSError), socket.socket(socket_family_of(address), socket.SOCK_DGRAM) as sock:
            attempt(sock, address)
            return True
    return False


def _bind(sock, address):
    sock.bind((address, 0))


def _connect_on_lo(sock, address):
    """Fail unless a local route of lo leads to an IPv6 address, which cannot be bound then; nothing is sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    sock.connect((address, 9))


def parse_ifconf(data: bytes) -> list[str]:
    """Return the IPv4 addresses in the array of struct ifreq that SIOCGIFCONF fills."""
    found = []
    for start in range(0, len(data) - IFREQ_SIZE + 1, IFREQ_SIZE):
        family = struct.unpack_from("H", data, start + 16)[0]
        if family == socket.AF_INET:
            found.append(socket.inet_ntoa(data[start + 20 : start + 24]))
    return found


def parse_if_inet6(text: str) -> list[str]:
    """Return the addresses in the text of /proc/net/if_inet6; each line begins with 32 hexadecimal digits."""
    return [str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in text.splitlines() if line.strip()]


def _ipv4():
    room = 100 * IFREQ_SIZE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while True:
            buffer = array.array("B", bytes(room))
            request = struct.pack("iP", room, buffer.buffer_info()[0])  # struct ifconf
            used = struct.unpack("iP", fcntl.ioctl(sock.fileno(), SIOCGIFCONF, request))[0]
            if used <= room - IFREQ_SIZE:  # a full buffer may be a truncated list
                return parse_ifconf(buffer.tobytes()[:used])
            room *= 4


def _ipv6():
    try:
        with open(IF_INET6, encoding="ascii") as stream:
            return parse_if_inet6(stream.read())
    except FileNotFoundError:
        return []  # a kernel without IPv6
