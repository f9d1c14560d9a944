# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's news: rules, routes, links, addresses, neighbours and nftables, as far as they can concern a document.

News only wakes: nothing is concluded from a message but that it is time to look, and perhaps who sent it. So nothing
is lost when the kernel has to drop some (ENOBUFS): that is news, too. The messages are few and simple; they are read
here, without pyroute2 (rtnetlink(7), linux/rtnetlink.h, linux/netfilter/nf_tables.h).
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
from typing import NamedTuple

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
# IFF_UP | IFF_RUNNING | IFF_LOWER_UP of linux/if.h: what decides whether routes over a link are there.
LINK_STATE = 0x1 | 0x40 | 0x10000
NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
NFTA_GEN_PROC_NAME = 3
# A burst of this many bytes is held while we look; the kernel doubles it. More is ENOBUFS, and not worse.
BUFFER = 1 << 20
SO_RCVBUFFORCE = 33
# Read at one go; what is left is read after the look that these caused.
MOST = 5000


class News(NamedTuple):
    """``kind`` is rule, route, link, address, neighbour, marks or lost; ``port`` is the sender's netlink port.

    ``process`` is the name of the process that changed nftables, which the kernel tells.
    """

    kind: str
    port: int = 0
    process: str = ""


@dataclass(frozen=True)
class Interest:
    """What a document is about. ``anything``: something is missing, so every link, address and route may be it.

    ``nft_names`` are those of tables and chains, or what they begin with. ``sources`` are prefixes: an address within
    one is news on any link. ``before`` is a priority: a rule of others at it or in front of it is news.
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


class RouteNews:
    """Reads rtnetlink messages; remembers links and MACs, because most messages about them say what was known."""

    def __init__(self) -> None:
        self._interest = Interest()
        self._sources: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._macs: dict[bytes, bytes] = {}
        self._links: dict[int, tuple[str, int]] = {}

    def watch(self, interest: Interest) -> None:
        packed = {ipaddress.ip_address(address).packed for address in interest.addresses}
        self._interest, self._macs = interest, {key: self._macs.get(key, b"") for key in packed}
        self._sources = [ipaddress.ip_network(source) for source in interest.sources]

    def read(self, data: memoryview) -> Iterator[News]:
        """What a datagram says that matters."""
        while len(data) >= 16:
            length, kind, _flags, _sequence, port = struct.unpack_from("=IHHII", data)
            name = KINDS.get(kind)
            if name and self._matters(name, kind, data[16:length]):
                yield News(name, port)
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
        return True  # the filter in front of the socket has let it through

    def _link(self, kind: int, body: memoryview) -> bool:
        index, flags = struct.unpack_from("=iI", body, 4)
        name = bytes(dict(attributes(body[16:])).get(IFLA_IFNAME, b"")).rstrip(b"\0").decode(errors="replace")
        state = (name, flags & LINK_STATE if kind == LINK[0] else -1)
        # A link of ours that was never told of is as it was when all was in place.
        before = self._links.get(index, None if self._interest.anything else (name, LINK_STATE))
        if kind == LINK[0]:
            self._links[index] = state
        else:
            self._links.pop(index, None)
        return state != before and (self._is_ours(name) or (before is not None and self._is_ours(before[0])))

    def _is_ours(self, link: str) -> bool:
        return self._interest.anything or link in self._interest.links

    def _rule(self, body: memoryview) -> bool:
        """Of ours, or where it may be asked before ours: the filter lets more through."""
        found = dict(attributes(body[12:]))
        protocol = found.get(FRA_PROTOCOL)
        if protocol is None or protocol[0] in self._interest.protocols:
            return True
        return int.from_bytes(found.get(FRA_PRIORITY, b""), sys.byteorder) <= self._interest.before

    def _is_source(self, body: memoryview) -> bool:
        """Whether an address is one that a rule of ours goes by."""
        found = dict(attributes(body[8:])) if self._sources else {}
        packed = bytes(found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b""))
        if len(packed) not in (4, 16):
            return False
        address = ipaddress.ip_address(packed)
        return any(source.version == address.version and address in source for source in self._sources)

    def _neighbour(self, body: memoryview) -> bool:
        found = dict(attributes(body[12:]))
        address, mac = bytes(found.get(NDA_DST, b"")), bytes(found.get(NDA_LLADDR, b""))
        if not mac or self._macs.get(address) in (None, mac):
            return False  # not one of ours, no answer, or nothing new
        self._macs[address] = mac
        return True


class MarkNews:
    """Reads nftables messages. A transaction is told object by object, and then the process that made it."""

    def __init__(self) -> None:
        self._names: tuple[bytes, ...] = ()
        self._touched = False

    def watch(self, interest: Interest) -> None:
        self._names = tuple(name.encode() for name in interest.nft_names)

    def read(self, data: memoryview) -> Iterator[News]:
        """What a datagram says that matters: a message about an object has the names of its table and chain in it."""
        (kind,) = struct.unpack_from("=H", data, 4)
        content = bytes(data)
        if kind == NEWGEN:
            if self._touched:
                process = bytes(dict(attributes(data[20:])).get(NFTA_GEN_PROC_NAME, b"")).rstrip(b"\0")
                self._touched = False
                yield News("marks", process=process.decode(errors="replace"))
        elif not self._touched:
            self._touched = any(name in content for name in self._names)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


class Watch:
    """Listens in the network namespace of the calling thread. ``wake`` is a descriptor that ends the waiting, too."""

    def __init__(self, wake: int | None = None) -> None:
        self._route = _listen(socket.NETLINK_ROUTE, ROUTE_GROUPS)
        self._readers: dict[socket.socket, RouteNews | MarkNews] = {self._route: RouteNews()}
        with contextlib.suppress(OSError):  # a kernel without nftables has no news of it
            self._readers[_listen(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,))] = MarkNews()
        self._buffer = memoryview(bytearray(1 << 16))
        self._wake = wake
        self._poll = select.epoll()
        for source in (*self._readers, *([] if wake is None else [wake])):
            self._poll.register(source, select.EPOLLIN)
        self._interest: Interest | None = None

    @property
    def sees_processes(self) -> bool:
        """Whether netlink ports can be told from process ids: not in a container, which has ids of its own."""
        return self._route.getsockname()[0] == os.getpid()

    @property
    def signs(self) -> tuple[bytes, ...]:
        """What there are no news of, to be compared with what it was."""
        return iptables_legacy.signs()

    def watch(self, interest: Interest) -> None:
        """From now on tell only of this."""
        if interest == self._interest:
            return
        self._interest = interest
        for reader in self._readers.values():
            reader.watch(interest)
        # While something is missing it may be a route of table main (254) that the wait is for.
        tables = interest.tables | ({254} if interest.anything else set())
        lines = socket_filter.program(interest.protocols, tables, interest.addresses, interest.before)
        socket_filter.attach(self._route, lines)

    def wait(self, seconds: float) -> list[News]:
        """News, or nothing after so many seconds; also nothing when there was only what does not matter."""
        self._poll.poll(max(seconds, 0.0))
        if self._wake is not None:
            _drain(self._wake)
        return [news for source in self._readers for news in self._read(source)]

    def _read(self, source: socket.socket) -> Iterator[News]:
        reader = self._readers[source]
        for _number in range(MOST):
            try:
                size = source.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield News("lost")
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


def _listen(family: int, groups: Iterable[int]) -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    with contextlib.suppress(PermissionError):  # in a user namespace the limit for all (net.core.rmem_max) holds
        netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    netlink.bind((0, 0))
    for group in groups:
        netlink.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return netlink
