# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which source address a backend sees, told by the backend: samples that a proxy sends, and how they are recognized.

The proxy sends, as if it forwarded a client, packets that no server notices: over TCP a SYN whose handshake is never
completed, over UDP a datagram with a wrong checksum, which the kernel of the backend drops. Each has a token, so the
backend recognizes it whatever has been done to its addresses and ports on the way:

* in the TCP sequence number, or in the first four bytes of the UDP payload;
* its upper half is the same for all samples of a run, so that a packet filter (filter.rst) finds them on a busy host.

The backend looks where packets come in, and behind its own rules of input, where a server would get them.

Standard library only.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ._forwarder.loop.sockets import IPV6_TRANSPARENT
from ._routing.netlink import socket_filter

# A sample is repeated, because the backend is asked some time later.
INTERVAL = 0.5
SYN, RST = 0x02, 0x04
# linux/if_ether.h, linux/if_packet.h
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


@dataclass(frozen=True)
class Sample:
    """What is sent: from ``source`` and ``source_port`` to ``address`` and ``port``; ``token`` has 32 bits."""

    protocol: str
    address: str
    port: int
    source: str
    source_port: int
    token: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def samples(targets: Iterable[dict[str, Any]]) -> list[Sample]:
    """A sample a target (protocol, address, port, source)."""
    chosen = random.SystemRandom()
    run, first = chosen.randrange(1 << 16), chosen.randrange(1 << 16)
    return [
        Sample(
            protocol=one["protocol"],
            address=one["address"],
            port=one["port"],
            source=one["source"],
            source_port=chosen.randrange(40000, 60000),
            # Two runs at a time may have one upper half; the lower ones tell their samples apart.
            token=run << 16 | (first + index) % (1 << 16),
        )
        for index, one in enumerate(targets)
    ]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(sample: Sample, length: int) -> bytes:
    source, address = (ipaddress.ip_address(one).packed for one in (sample.source, sample.address))
    return source + address + struct.pack("!II", length, PROTOCOLS[sample.protocol])


def segment(sample: Sample, flags: int = SYN, sequence: int | None = None) -> bytes:
    """The TCP segment, with the option of a largest segment size."""
    sequence = sample.token if sequence is None else sequence

    def packed(checksum: int) -> bytes:
        ports = (sample.source_port, sample.port)
        return struct.pack("!HHIIBBHHHBBH", *ports, sequence, 0, 6 << 4, flags, 29200, checksum, 0, 2, 4, 1400)

    return packed(_checksum(_pseudo(sample, 24) + packed(0)))


def datagram(sample: Sample) -> bytes:
    """The UDP datagram, with a checksum that is wrong, also after an address was translated; 0 would mean "none"."""

    def packed(checksum: int) -> bytes:
        return struct.pack("!HHHHI", sample.source_port, sample.port, 12, checksum, sample.token)

    return packed((_checksum(_pseudo(sample, 12) + packed(0)) ^ 0x5555) or 1)


def _raw_socket(sample: Sample) -> socket.socket:
    """A socket that sends from the sample's source. PermissionError without CAP_NET_RAW."""
    if ":" not in sample.address:
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        return sender
    sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, PROTOCOLS[sample.protocol])
    sender.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    sender.bind((sample.source, 0))
    return sender


def _packet(sample: Sample, payload: bytes) -> bytes:
    if ":" in sample.address:
        return payload  # the kernel writes the header
    source, address = (socket.inet_aton(one) for one in (sample.source, sample.address))
    # Length, identification and checksum are the kernel's to fill in (raw(7)).
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, PROTOCOLS[sample.protocol], 0, source, address) + payload


def send(chosen: Sequence[Sample], seconds: float) -> None:
    """Send every sample again and again for that long; then end what the backend keeps of them."""
    senders = [(sample, _raw_socket(sample)) for sample in chosen]
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            for sample, sender in senders:
                _send(sender, sample, segment(sample) if sample.protocol == "tcp" else datagram(sample))
            time.sleep(INTERVAL)
        for sample, sender in senders:
            if sample.protocol == "tcp":
                _send(sender, sample, segment(sample, RST, (sample.token + 1) % (1 << 32)))
    finally:
        for _sample, sender in senders:
            sender.close()


def _send(sender: socket.socket, sample: Sample, payload: bytes) -> None:
    try:
        sender.sendto(_packet(sample, payload), (sample.address, 0))
    except OSError:
        pass  # no route for the moment, or a filter: the backend will say that it saw nothing


def send_in_background(chosen: Sequence[Sample], seconds: float, account: int = 0) -> None:
    """Have a process of its own send, so that the caller can ask the backends. OSError where it may not send.

    ``account`` is the user id of the forwarder: rules by the owner of a socket treat the samples as its packets.
    """
    for sample in chosen:
        _raw_socket(sample).close()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            os.closerange(3, 1024)
            # What a socket is made with; unlike the effective id it leaves CAP_NET_RAW alone (capabilities(7)).
            ctypes.CDLL(None).setfsuid(account)
            send(chosen, seconds)
    finally:
        os._exit(0)


# The filter: instructions of the classic packet filter, which only load, compare and jump forward.
_LOAD_BYTE, _LOAD_BYTE_AT_X, _LOAD_HALF_AT_X, _LOAD_NUMBER = 0x30, 0x50, 0x48, 0x00
_X_IS_HEADER_LENGTH, _X_IS, _AND, _JUMP, _IF_EQUAL, _RETURN = 0xB1, 0x01, 0x54, 0x05, 0x15, 0x06


def _transport(run: int) -> list[socket_filter.Instruction]:
    """With the protocol in the accumulator and the transport header at X: only the samples of a run pass."""
    return [
        (_IF_EQUAL, 0, 4, PROTOCOLS["tcp"]),
        (_LOAD_BYTE_AT_X, 0, 0, 13),
        (_IF_EQUAL, 0, 6, SYN),
        (_LOAD_HALF_AT_X, 0, 0, 4),
        (_IF_EQUAL, 3, 4, run),
        (_IF_EQUAL, 0, 3, PROTOCOLS["udp"]),
        (_LOAD_HALF_AT_X, 0, 0, 8),
        (_IF_EQUAL, 0, 1, run),
        (_RETURN, 0, 0, socket_filter.WHOLE),
        (_RETURN, 0, 0, socket_filter.NOTHING),
    ]


def of_packets(run: int) -> list[socket_filter.Instruction]:
    """The filter for whole packets of either family."""
    return [
        (_LOAD_BYTE, 0, 0, 0),
        (_AND, 0, 0, 0xF0),
        (_IF_EQUAL, 0, 3, 0x40),
        (_X_IS_HEADER_LENGTH, 0, 0, 0),
        (_LOAD_BYTE, 0, 0, 9),
        (_JUMP, 0, 0, 2),
        (_X_IS, 0, 0, 40),
        (_LOAD_BYTE, 0, 0, 6),
        *_transport(run),
    ]


def of_segments(run: int) -> list[socket_filter.Instruction]:
    """The filter for TCP segments without an IP header."""
    return [(_X_IS, 0, 0, 0), (_LOAD_NUMBER, 0, 0, PROTOCOLS["tcp"]), *_transport(run)]


def read_packet(packet: bytes) -> tuple[int, str] | None:
    """(token, source address) of a whole packet; None for one that is too short."""
    try:
        if packet[0] >> 4 == 4:
            start, protocol, source = 4 * (packet[0] & 15), packet[9], packet[12:16]
        else:
            start, protocol, source = 40, packet[6], packet[8:24]
        (token,) = struct.unpack_from("!I", packet, start + (4 if protocol == PROTOCOLS["tcp"] else 8))
        return token, str(ipaddress.ip_address(source))
    except (IndexError, struct.error, ValueError):
        return None


@dataclass
class Sight:
    """The source of a sample where it came in, where it went on (to a container, say), and where a server gets it."""

    came_in: str = ""
    went_on: str = ""
    delivered: str = ""
    since: float = 0.0

    @property
    def source(self) -> str:
        """As the server sees it, so far as that is known."""
        return self.delivered or self.went_on or self.came_in


class Watch:
    """Looks for the samples of one run on this host."""

    def __init__(self, chosen: Sequence[Sample]):
        self.sights = {sample.token: Sight() for sample in chosen}
        self._families = {sample.token: ":" in sample.address for sample in chosen}
        self._by_tcp = {sample.token for sample in chosen if sample.protocol == "tcp"}
        run = chosen[0].token >> 16
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._sockets = [self._wire, self._ipv4]
        if socket.has_ipv6 and any(":" in sample.address for sample in chosen):
            self._sockets.append(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP))
        for one in self._sockets:
            lines = of_segments(run) if one.family == socket.AF_INET6 else of_packets(run)
            socket_filter.attach(one, lines)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_exception: object) -> None:
        for one in self._sockets:
            one.close()

    def look(self, timeout: float) -> None:
        """Look until nothing more is to be expected of any sample, or for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not all(map(self._is_done, self.sights)):
            ready, _writable, _failed = select.select(self._sockets, [], [], INTERVAL / 2)
            for one in ready:
                self._note(one, *one.recvfrom(256))

    def _is_done(self, token: int) -> bool:
        """Over TCP it may still be delivered; but one that went on, to a container or nowhere, never is."""
        sight = self.sights[token]
        late = bool(sight.since) and time.monotonic() > sight.since + 2 * INTERVAL
        return bool(sight.delivered) or late or (bool(sight.since) and token not in self._by_tcp)

    def _note(self, one: socket.socket, packet: bytes, sender: tuple) -> None:
        if one.family == socket.AF_INET6:
            found = (struct.unpack_from("!I", packet, 4)[0], sender[0])
        else:
            found = read_packet(packet)
        sight = self.sights.get(found[0]) if found else None
        if sight is None or found is None or (":" in found[1]) != self._families[found[0]]:
            return
        sight.since = sight.since or time.monotonic()
        if one is not self._wire:
            sight.delivered = found[1]
        elif sender[2] == PACKET_OUTGOING:
            sight.went_on = found[1]
        else:
            sight.came_in = found[1]


def sentence(source: str, seen: str) -> str:
    """What a sample shows. ``seen`` is empty where the backend saw nothing of it."""
    if not seen:
        return (
            f"not proven: no sample that was sent as {source} came in there; where the handshake succeeds, a filter on "
            "the way drops them"
        )
    if ipaddress.ip_address(seen) == ipaddress.ip_address(source):
        return f"the backend saw {source}"
    return (
        f"the backend saw {seen} instead of {source}: source NAT on the way hides the clients; `l4proxy doctor` on the "
        "proxy and on the backend names the rule, if it is on one of them"
    )


def watch(chosen: Sequence[Sample], timeout: float) -> list[str]:
    """The source address that this host sees of each sample, empty for none. PermissionError without CAP_NET_RAW."""
    if not chosen:
        return []
    with Watch(chosen) as one:
        one.look(timeout)
        return [one.sights[sample.token].source for sample in chosen]
