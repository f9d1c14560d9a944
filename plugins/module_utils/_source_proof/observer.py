# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recognizes samples on a backend, and says which source address they have there."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .._routing.netlink import socket_filter
from .sample import PROTOCOLS, SYN, Sample
from .sender import INTERVAL

# linux/if_ether.h, linux/if_packet.h
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4

# Instructions of the classic packet filter, which can only load, compare and jump forward.
_LOAD_BYTE, _LOAD_BYTE_AT_X, _LOAD_HALF_AT_X, _LOAD_NUMBER = 0x30, 0x50, 0x48, 0x00
_X_IS_HEADER_LENGTH, _X_IS, _AND, _JUMP, _IF_EQUAL, _RETURN = 0xB1, 0x01, 0x54, 0x05, 0x15, 0x06


def _transport(run: int) -> list[socket_filter.Instruction]:
    """Pass only the samples of a run; the accumulator holds the protocol, and X the offset of the transport header."""
    return [
        (_IF_EQUAL, 0, 4, PROTOCOLS["tcp"]),
        (_LOAD_BYTE_AT_X, 0, 0, 13),
        (_IF_EQUAL, 0, 6, SYN),
        (_LOAD_HALF_AT_X, 0, 0, 4),
        (_IF_EQUAL, 3, 4, run),
        (_IF_EQUAL, 0, 3, PROTOCOLS["udp"]),
        (_LOAD_HALF_AT_X, 0, 0, 8),
        (_IF_EQUAL, 0, 1, run),
        (_RETURN, 0, 0, socket_filter.PASS),
        (_RETURN, 0, 0, socket_filter.DROP),
    ]


def packet_filter(run: int) -> list[socket_filter.Instruction]:
    """The filter for packets with an IP header, of either family."""
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


def segment_filter(run: int) -> list[socket_filter.Instruction]:
    """The filter for TCP segments without an IP header."""
    return [(_X_IS, 0, 0, 0), (_LOAD_NUMBER, 0, 0, PROTOCOLS["tcp"]), *_transport(run)]


def read_packet(packet: bytes) -> tuple[int, str] | None:
    """(token, source address) of a packet with an IP header; None if it is too short."""
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
class Observation:
    """A sample's source address where it arrived, was forwarded (to a container, say), and was delivered to a server.

    ``first_seen`` is a monotonic time, 0 before.
    """

    arrived: str = ""
    forwarded: str = ""
    delivered: str = ""
    first_seen: float = 0.0

    @property
    def source(self) -> str:
        """The source address that the server sees, as far as it is known."""
        return self.delivered or self.forwarded or self.arrived


class Observer:
    """Receives the samples of one run on this host. PermissionError without CAP_NET_RAW."""

    def __init__(self, samples: Sequence[Sample]):
        self.observations = {sample.token: Observation() for sample in samples}
        self._is_ipv6 = {sample.token: sample.is_ipv6 for sample in samples}
        self._tcp = {sample.token for sample in samples if sample.protocol == "tcp"}
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._sockets = [self._wire, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)]
        if socket.has_ipv6 and any(self._is_ipv6.values()):
            self._sockets.append(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP))
        for receiver in self._sockets:
            make_filter = segment_filter if receiver.family == socket.AF_INET6 else packet_filter
            socket_filter.attach(receiver, make_filter(samples[0].run))

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_exception: object) -> None:
        for receiver in self._sockets:
            receiver.close()

    def observe(self, timeout: float) -> None:
        """Receive samples until no more is expected of any, or for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not all(map(self._is_done, self.observations)):
            ready, _writable, _failed = select.select(self._sockets, [], [], INTERVAL / 2)
            for receiver in ready:
                self._record(receiver, *receiver.recvfrom(256))

    def _is_done(self, token: int) -> bool:
        """A TCP sample may be delivered later; but if it was forwarded to a container, or dropped, it never is."""
        observation = self.observations[token]
        seen = bool(observation.first_seen)
        late = seen and time.monotonic() > observation.first_seen + 2 * INTERVAL
        return bool(observation.delivered) or late or (seen and token not in self._tcp)

    def _record(self, receiver: socket.socket, packet: bytes, sender: tuple) -> None:
        if receiver.family == socket.AF_INET6:
            token, source = struct.unpack_from("!I", packet, 4)[0], sender[0]
        else:
            token, source = read_packet(packet) or (None, "")
        observation = self.observations.get(token)
        if observation is None or (":" in source) != self._is_ipv6[token]:
            return
        observation.first_seen = observation.first_seen or time.monotonic()
        if receiver is not self._wire:
            observation.delivered = source
        elif sender[2] == PACKET_OUTGOING:
            observation.forwarded = source
        else:
            observation.arrived = source


def observe(samples: Sequence[Sample], timeout: float) -> list[str]:
    """The source address of each sample on this host, empty if it was not seen. PermissionError without CAP_NET_RAW."""
    if not samples:
        return []
    with Observer(samples) as observer:
        observer.observe(timeout)
        return [observer.observations[sample.token].source for sample in samples]


def conclusion(source: str, seen: str) -> str:
    """A sentence about a sample sent as ``source``; ``seen`` is empty if the backend saw nothing."""
    if not seen:
        return (
            f"not proven: no sample sent as {source} arrived there; if the handshake succeeds, a filter on the way "
            "drops the samples"
        )
    if ipaddress.ip_address(seen) == ipaddress.ip_address(source):
        return f"the backend saw {source}"
    return (
        f"the backend saw {seen} instead of {source}: source NAT on the way hides the clients; `l4proxy doctor` on the "
        "proxy or on the backend names the rule if it is on that host"
    )
