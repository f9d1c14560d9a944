# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connections that the kernel translates, in conntrack: list them with both ends, delete them, hear of their end.

There may be 100,000 of them, so a message with the usual layout is read at fixed places. The numbers are from
linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h and nf_conntrack_tcp.h. Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from . import conntrack
from .conntrack import CTA_PROTOINFO, CTA_TUPLE_IP, CTA_TUPLE_PROTO, ENDED, GENERIC, GET, NETLINK_NETFILTER, U32
from .messages import NLM_F_ACK, Netlink, attribute, attributes, message, raise_error

# NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE: the request, and the kind of the event of an end.
DELETE = 1 << 8 | 2
NFNLGRP_CONNTRACK_DESTROY = 3
CTA_STATUS, CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY, CTA_ID, CTA_ZONE, CTA_TIMESTAMP, CTA_FILTER = (
    3,
    9,
    10,
    12,
    18,
    20,
    25,
)
# CTA_COUNTERS_PACKETS and CTA_COUNTERS_BYTES; CTA_TIMESTAMP_START and CTA_TIMESTAMP_STOP
PACKETS, BYTES = START, STOP = 1, 2
# CTA_FILTER_REPLY_FLAGS says what of the reply's tuple must match: CTA_FILTER_F_CTA_IP_SRC, _PROTO_NUM, _PROTO_SRC_PORT
CTA_FILTER_REPLY_FLAGS = 2
BY_ADDRESS, BY_PORT = 1 << 0, 1 << 3 | 1 << 4
NESTED = 0x8000  # NLA_F_NESTED
SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
# How many deletions the kernel gets at once.
AT_ONCE = 100
U64 = struct.Struct("!Q")
# Protocol, packed address and port.
Server = tuple[int, bytes, int]
FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


class Entry(NamedTuple):
    """A connection: addresses are packed. ``address`` and ``port`` are what the client connects to, ``server`` and
    ``server_port`` who answers. ``state`` is that of TCP, None for UDP; ``replied``: an answer was seen.
    """

    protocol: int
    client: bytes
    client_port: int
    address: bytes
    port: int
    server: bytes
    server_port: int
    state: int | None = None
    replied: bool = False
    ident: bytes = b""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class End(NamedTuple):
    """What conntrack knew of a connection when it forgot it: packets, and bytes with headers, to the server and to the
    client (None without nf_conntrack_acct); seconds (None without nf_conntrack_timestamp).
    """

    entry: Entry
    packets: tuple[int, int] | None
    size: tuple[int, int] | None
    seconds: float | None


def listed(server: Server | None = None) -> Iterator[Entry]:
    """All TCP and UDP connections, or those that this server answers. OSError if they cannot be listed."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        for body in netlink.stream(GET, request(server)):
            entry = decode(body)
            # Kernels before 5.8 ignore the filter.
            if entry and server in (None, (entry.protocol, entry.server, entry.server_port)):
                yield entry


def request(server: Server | None) -> bytes:
    """The body of a request for all connections, or for those that this server answers; over IPv6, its port."""
    if server is None:
        return GENERIC.pack(socket.AF_UNSPEC, 0, 0)
    protocol, address, port = server
    ends, flags = b"", BY_PORT
    if len(address) == 4:
        # Of IPv6 addresses the kernel returns all but the wanted one (ctnetlink_filter_match_tuple in Linux 6.18).
        ends, flags = _nested(CTA_TUPLE_IP, attribute(1, address)), BY_PORT | BY_ADDRESS
    ports = attribute(1, bytes([protocol])) + attribute(2, port.to_bytes(2, "big"))
    return (
        GENERIC.pack(FAMILIES[len(address)], 0, 0)
        + _nested(conntrack.CTA_TUPLE_REPLY, ends + _nested(CTA_TUPLE_PROTO, ports))
        + _nested(CTA_FILTER, attribute(CTA_FILTER_REPLY_FLAGS, struct.pack("=I", flags)))
    )


def delete(entries: Iterable[Entry]) -> int:
    """Delete these connections; those that ended meanwhile are no error. Returns how many were deleted."""
    bodies = [deletion(entry) for entry in entries]
    deleted = 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        for start in range(0, len(bodies), AT_ONCE):
            some = bodies[start : start + AT_ONCE]
            for answer in netlink.exchange_all([message(DELETE, NLM_F_ACK, body) for body in some]):
                with contextlib.suppress(FileNotFoundError):
                    raise_error(answer)
                    deleted += 1
    return deleted


def deletion(entry: Entry) -> bytes:
    """The body of a request to delete this connection, and no later one with the same addresses and ports."""
    first = 1 if len(entry.client) == 4 else 3
    ports = b"".join(
        attribute(kind, port.to_bytes(2, "big")) for kind, port in ((2, entry.client_port), (3, entry.port))
    )
    ends = attribute(first, entry.client) + attribute(first + 1, entry.address)
    return (
        GENERIC.pack(FAMILIES[len(entry.client)], 0, 0)
        + _nested(
            conntrack.CTA_TUPLE_ORIG,
            _nested(CTA_TUPLE_IP, ends) + _nested(CTA_TUPLE_PROTO, attribute(1, bytes([entry.protocol])) + ports),
        )
        + attribute(CTA_ID, entry.ident)
    )


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | NESTED, payload)


class _Layout:
    """The two tuples at the beginning of a message, as the kernel writes them (ctnetlink_fill_info)."""

    def __init__(self, length: int):
        first, addresses = 1 if length == 4 else 3, 2 * (4 + length) + 4
        self._struct = struct.Struct("!4x" + 2 * f"12s{length}s4x{length}s8sB7xH6xH2x")
        self._heads = tuple(
            struct.pack("=6H", addresses + 32, kind | NESTED, addresses, CTA_TUPLE_IP | NESTED, 4 + length, first)
            for kind in (conntrack.CTA_TUPLE_ORIG, conntrack.CTA_TUPLE_REPLY)
        )
        self._proto = struct.pack("=4H", 28, CTA_TUPLE_PROTO | NESTED, 5, 1)
        self.size = self._struct.size

    def read(self, body: bytes) -> tuple[Any, ...] | None:
        """The first seven fields of an Entry, None if the layout is another one."""
        values = self._struct.unpack_from(body)
        head, client, address, proto, protocol, client_port, port = values[:7]
        reply_head, server, _client, reply_proto, _protocol, server_port, _client_port = values[7:]
        if (head, reply_head) != self._heads or proto != self._proto or reply_proto != self._proto:
            return None
        return protocol, client, client_port, address, port, server, server_port


LAYOUTS = {int(number): _Layout(length) for length, number in FAMILIES.items()}


def decode(body: bytes) -> Entry | None:
    """The connection of a message; None if it is neither TCP nor UDP."""
    layout = LAYOUTS.get(body[0])
    ends = layout.read(body) if layout and len(body) >= layout.size else None
    if ends is None or layout is None:
        return None
    state, replied, ident = None, False, b""
    for kind, payload in attributes(body[layout.size :]):
        if kind == CTA_STATUS:
            replied = bool(U32.unpack(payload)[0] & SEEN_REPLY)
        elif kind == CTA_ID:
            ident = payload
        elif kind == CTA_PROTOINFO:
            state = conntrack.tcp_state(payload)
        elif kind == CTA_ZONE:
            return None
    protocol, client, client_port, address, port, server, server_port = ends
    return Entry(protocol, client, client_port, address, port, server, server_port, state, replied, ident)


def end_of(body: bytes) -> End | None:
    """What the event of an end says; None if it is neither TCP nor UDP."""
    entry = decode(body)
    if entry is None:
        return None
    parts = dict(attributes(body[GENERIC.size :]))
    both = [_numbers(parts.get(kind)) for kind in (CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY)]
    times = _numbers(parts.get(CTA_TIMESTAMP))
    seconds = (times[STOP] - times[START]) / 1e9 if times.keys() >= {START, STOP} else None
    if not all(both):
        return End(entry, None, None, seconds)
    packets, size = (tuple(each[kind] for each in both) for kind in (PACKETS, BYTES))
    return End(entry, packets, size, seconds)  # type: ignore[arg-type]  # both have two numbers


def _numbers(payload: bytes | None) -> dict[int, int]:
    return {kind: U64.unpack(value)[0] for kind, value in attributes(payload or b"") if len(value) == U64.size}
