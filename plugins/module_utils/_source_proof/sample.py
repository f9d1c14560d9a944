# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sample, and its TCP segment or UDP datagram."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SYN, RST = 0x02, 0x04
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


@dataclass(frozen=True)
class Sample:
    """A packet from ``source`` and ``source_port`` to ``address`` and ``port``; ``token`` has 32 bits."""

    protocol: str
    address: str
    port: int
    source: str
    source_port: int
    token: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    @property
    def run(self) -> int:
        """The upper half of the token."""
        return self.token >> 16

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_samples(targets: Iterable[dict[str, Any]]) -> list[Sample]:
    """One sample for each target (protocol, address, port, source), all of one run."""
    randomness = random.SystemRandom()
    run, first = randomness.randrange(1 << 16), randomness.randrange(1 << 16)
    return [
        Sample(
            protocol=target["protocol"],
            address=target["address"],
            port=target["port"],
            source=target["source"],
            source_port=randomness.randrange(40000, 60000),
            # Two runs at a time may have the same upper half; the lower half is random, too.
            token=run << 16 | (first + index) % (1 << 16),
        )
        for index, target in enumerate(targets)
    ]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo_header(sample: Sample, length: int) -> bytes:
    source, address = (ipaddress.ip_address(text).packed for text in (sample.source, sample.address))
    return source + address + struct.pack("!II", length, PROTOCOLS[sample.protocol])


def segment(sample: Sample, flags: int = SYN, sequence: int | None = None) -> bytes:
    """The TCP segment, with a maximum segment size option."""
    sequence = sample.token if sequence is None else sequence

    def packed(checksum: int) -> bytes:
        ports = (sample.source_port, sample.port)
        return struct.pack("!HHIIBBHHHBBH", *ports, sequence, 0, 6 << 4, flags, 29200, checksum, 0, 2, 4, 1400)

    return packed(_checksum(_pseudo_header(sample, 24) + packed(0)))


def datagram(sample: Sample) -> bytes:
    """The UDP datagram. Its checksum is wrong even after address translation, and never 0, which would mean "none"."""

    def packed(checksum: int) -> bytes:
        return struct.pack("!HHHHI", sample.source_port, sample.port, 12, checksum, sample.token)

    return packed((_checksum(_pseudo_header(sample, 12) + packed(0)) ^ 0x5555) or 1)
