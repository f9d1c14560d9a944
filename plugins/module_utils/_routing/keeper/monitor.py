# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's notifications about rules, routes, links, addresses, neighbours and nftables that concern a document.

A notification only starts a pass; nothing else is read from it but perhaps who caused it. So it does no harm if the
kernel drops some (ENOBUFS), which counts as a notification itself. The messages are simple enough to be parsed here,
without pyroute2 (rtnetlink(7), linux/rtnetlink.h, linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..marks import iptables_legacy
from ..netlink import socket_filter
from ..netlink.messages import attributes
from ..netlink.socket_filter import FRA_PRIORITY, FRA_PROTOCOL, NEIGHBOUR, ROUTE, RULE

# linux/netlink.h
NETLINK_NETFILTER, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 12, 270, 1
# RTNLGRP_* of linux/rtnetlink.h: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE
ROUTE_GROUPS = (1, 3, 5, 7, 8, 9, 11, 19)
NFNLGRP_NFTABLES = 7
LINK, ADDRESS = (16, 17), (20, 21)
NAMES = {LINK: "link", ADDRESS: "address", ROUTE: "route", NEIGHBOUR: "neighbour", RULE: "rule"}
KINDS = {code: name for pair, name in NAMES.items() for code in pair}
IFLA_IFNAME, NDA_DST, NDA_LLADDR, IFA_ADDRESS, IFA_LOCAL = 3, 1, 2, 1, 2
# IFF_UP | IFF_RUNNING | IFF_LOWER_UP of linux/if.h: whether routes over the link can exist.
LINK_STATE = 0x1 | 0x40 | 0x10000
NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
NFTA_GEN_ID, NFTA_GEN_PROC_NAME = 1, 3
# Receive buffer for bursts during a pass; the kernel doubles it. Beyond it there is ENOBUFS, which costs another pass.
# The burst of a backend's state is 4,093 elements, 0.5 MB, for each address and port of its services.
BUFFER = 1 << 22
SO_RCVBUFFORCE = 33
# Messages to read before the next pass; the others are read after it.
MAX_READS = 5000


class Notification(NamedTuple):
    """``kind`` is rule, route, link, address, neighbour, marks or lost; ``port`` is the sender's netlink port.

    ``process`` is the name of the process that changed nftables, from the kernel.
    """

    kind: str
    port: int = 0
    process: str = ""


@dataclass(frozen=True)
class Interest:
    """The objects whose changes concern a document. ``anything``: any link, address or route may be what is missing.

    ``nft_names`` are names, or prefixes of names, of tables and chains. ``sources`` are prefixes: an address within one
    matters on any link. ``before`` is a priority: a foreign rule at or before it matters.
    """

    protocols: frozenset[int] = frozenset()
    tables: frozenset[int] = frozenset()
    addresses: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    nft_names: frozenset[str] = frozenset()
    anything: bool = False
    sources: frozenset[str] = frozenset()
    before: int = 0

    def __or__(self, other: Interest) -> Interest:
        return Interest(
            self.protocols | other.protocols,
            self.tables | other.tables,
            self.addresses | other.addresses,
            self.links | other.links,
            self.nft_names | other.nft_names,
            self.anything or other.anything,
            self.sources | other.sources,
            max(self.before, other.before),
        )


class RouteReader:
    """Reads rtnetlink messages; keeps links and MACs, because most messages about them contain no change."""

    def __init__(self) -> None:
        self._interest = Interest()
        self._sources: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._macs: dict[bytes, bytes] = {}
        self._links: dict[int, tuple[str, int]] = {}

    def watch(self, interest: Interest) -> None:
        packed = {ipaddress.ip_address(address).packed for address in interest.addresses}
        self._interest, self._macs = interest, {key: self._macs.get(key, b"") for key in packed}
        self._sources = [ipaddress.ip_network(source) for source in interest.sources]

    def read(self, data: memoryview) -> Iterator[Notification]:
        """The relevant notifications in a datagram."""
        while len(data) >= 16:
            length, kind, _flags, _sequence, port = struct.unpack_from("=IHHII", data)
            name = KINDS.get(kind)
            if name and self._matters(name, kind, data[16:length]):
                yield Notification(name, port)
            if length < 16:
                return
            data = data[(length + 3) & ~3 :]

    def _matters(self, name: str, kind: int, body: memoryview) -> bool:
        if name == "link":
            return self._link(kind, body)
        if name == "address":
            (index,) = struct.unpack_from("=I", body, 4)
            return self._is_ours(self._links.get(index, ("", 0))[0] or _name(index)) or self._is_source(body)
        if name == "neighbour":
            return self._neighbour(body)
        if name == "rule":
            return self._rule(body)
        return True  # the socket filter has passed it

    def _link(self, kind: int, body: memoryview) -> bool:
        index, flags = struct.unpack_from("=iI", body, 4)
        name = bytes(dict(attributes(body[16:])).get(IFLA_IFNAME, b"")).rstrip(b"\0").decode(errors="replace")
        state = (name, flags & LINK_STATE if kind == LINK[0] else -1)
        # A link without earlier messages has the state that it had when everything was in place.
        before = self._links.get(index, None if self._interest.anything else (name, LINK_STATE))
        if kind == LINK[0]:
            self._links[index] = state
        else:
            self._links.pop(index, None)
        return state != before and (self._is_ours(name) or (before is not None and self._is_ours(before[0])))

    def _is_ours(self, link: str) -> bool:
        return self._interest.anything or link in self._interest.links

    def _rule(self, body: memoryview) -> bool:
        """Whether a rule is ours or may precede ours; the socket filter is less strict."""
        found = dict(attributes(body[12:]))
        protocol = found.get(FRA_PROTOCOL)
        if protocol is None or protocol[0] in self._interest.protocols:
            return True
        return int.from_bytes(found.get(FRA_PRIORITY, b""), sys.byteorder) <= self._interest.before

    def _is_source(self, body: memoryview) -> bool:
        """Whether a rule of ours has this address as its source."""
        found: dict[int, Any] = dict(attributes(body[8:])) if self._sources else {}
        packed = bytes(found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b""))
        if len(packed) not in (4, 16):
            return False
        address = ipaddress.ip_address(packed)
        return any(source.version == address.version and address in source for source in self._sources)

    def _neighbour(self, body: memoryview) -> bool:
        found = dict(attributes(body[12:]))
        address, mac = bytes(found.get(NDA_DST, b"")), bytes(found.get(NDA_LLADDR, b""))
        if not mac or self._macs.get(address) in (None, mac):
            return False  # not a next hop of ours, no answer, or the same MAC
        self._macs[address] = mac
        return True


class NftReader:
    """Reads nftables messages: one for each object of a transaction, then one with the process that made it."""

    def __init__(self) -> None:
        self._names: tuple[bytes, ...] = ()
        self._touched = False
        # The number of a transaction of our own, which needs no pass.
        self.expected = 0

    def watch(self, interest: Interest) -> None:
        self._names = tuple(name.encode() for name in interest.nft_names)

    def read(self, data: memoryview) -> Iterator[Notification]:
        """The relevant notifications in a datagram: a message about an object has the names of its table and chain."""
        (kind,) = struct.unpack_from("=H", data, 4)
        content = bytes(data)
        if kind == NEWGEN:
            if self._touched:
                self._touched = False
                found = dict(attributes(content[20:]))
                if int.from_bytes(found.get(NFTA_GEN_ID, b""), "big") == self.expected:
                    return
                process = found.get(NFTA_GEN_PROC_NAME, b"").rstrip(b"\0")
                yield Notification("marks", process=process.decode(errors="replace"))
        elif not self._touched:
            self._touched = any(name in content for name in self._names)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


class Monitor:
    """Receives notifications of the calling thread's network namespace. ``wake`` is a descriptor that ends wait()."""

    def __init__(self, wake: int | None = None) -> None:
        self._route = listen(socket.NETLINK_ROUTE, ROUTE_GROUPS)
        self._readers: dict[socket.socket, RouteReader | NftReader] = {self._route: RouteReader()}
        with contextlib.suppress(OSError):  # the kernel has no nftables
            self._readers[listen(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,))] = NftReader()
        self._buffer = memoryview(bytearray(1 << 16))
        self._wake = wake
        self._poll = select.epoll()
        for source in self._readers:
            self._poll.register(source, select.EPOLLIN)
        if wake is not None:
            self._poll.register(wake, select.EPOLLIN)
        self._interest: Interest | None = None
        # Attended descriptors that the last wait() found readable.
        self.ready: frozenset[int] = frozenset()

    @property
    def sees_processes(self) -> bool:
        """Whether netlink ports are process ids as this process knows them; in a container they are not."""
        return bool(self._route.getsockname()[0] == os.getpid())

    @property
    def legacy_fingerprint(self) -> tuple[bytes, ...]:
        """Fingerprint of iptables-legacy, for which the kernel sends no notifications."""
        return iptables_legacy.fingerprint()

    def watch(self, interest: Interest) -> None:
        """From now on report only notifications about this."""
        if interest == self._interest:
            return
        self._interest = interest
        for reader in self._readers.values():
            reader.watch(interest)
        # What is missing may be a route of table main (254).
        tables = interest.tables | ({254} if interest.anything else set())
        lines = socket_filter.program(interest.protocols, tables, interest.addresses, interest.before)
        socket_filter.attach(self._route, lines)

    def expect(self, generation: int) -> None:
        """Report nothing about the transaction with this number, which changes nftables as it should be."""
        for reader in self._readers.values():
            if isinstance(reader, NftReader):
                reader.expected = generation

    def attend(self, descriptor: int) -> None:
        """Let wait() end when this descriptor becomes readable: once, until the next call."""
        events = select.EPOLLIN | select.EPOLLONESHOT
        try:
            self._poll.modify(descriptor, events)
        except FileNotFoundError:
            self._poll.register(descriptor, events)

    def wait(self, seconds: float) -> list[Notification]:
        """Wait at most this long for a message; return the relevant notifications, perhaps none."""
        self.ready = frozenset(descriptor for descriptor, _events in self._poll.poll(max(seconds, 0.0)))
        if self._wake is not None:
            _drain(self._wake)
        return [notification for source in self._readers for notification in self._read(source)]

    def _read(self, source: socket.socket) -> Iterator[Notification]:
        reader = self._readers[source]
        for _number in range(MAX_READS):
            try:
                size = source.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield Notification("lost")
                continue
            yield from reader.read(self._buffer[:size])

    def close(self) -> None:
        self._poll.close()
        for source in self._readers:
            source.close()


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 64):
            pass
    except BlockingIOError:
        pass


def listen(family: int, groups: Iterable[int], buffer: int = BUFFER) -> socket.socket:
    """A socket that receives the messages of these groups of a netlink family."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    with contextlib.suppress(PermissionError):  # in a user namespace net.core.rmem_max still applies
        netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
    netlink.bind((0, 0))
    for group in groups:
        netlink.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return netlink
