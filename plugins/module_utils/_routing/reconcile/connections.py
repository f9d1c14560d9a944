# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Count the connections that retiring objects are needed for, in the lists of sockets and of conntrack.

A socket is foreign if its own address is not one of this host: a transparent socket, which local delivery serves.
100,000 sockets cost 0.3 s of CPU time, so a count is used for COUNT_INTERVAL, and ``drain`` asks less and less often.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

from ..document.model import network
from ..netlink import conntrack, sockets
from ..netlink.conntrack import Flow
from ..netlink.sockets import Socket
from .needs import Foreign, From, Marked, Need, To

# Nothing notifies us when the last connection ends: seconds until they are counted again, at least.
COUNT_INTERVAL = 5.0

Counts = dict[Need, Optional[int]]
LENGTHS = {"ipv4": 4, "ipv6": 16}


class Connections:
    """Reads the lists of the network namespace of the calling thread."""

    def __init__(
        self,
        list_sockets: Callable[[], Iterable[Socket]] = sockets.living,
        list_flows: Callable[[int, int], Iterable[Flow]] = conntrack.living,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._list_sockets, self._list_flows, self._clock = list_sockets, list_flows, clock
        self._known: dict[tuple[frozenset[Need], frozenset[str]], tuple[float, Counts]] = {}

    def count(self, needs: frozenset[Need], own: frozenset[str]) -> Counts:
        """The number of connections of each need, None where that cannot be known. ``own``: this host's addresses."""
        now = self._clock()
        counted_at, counts = self._known.get((needs, own), (None, {}))
        if counted_at is None or now - counted_at >= COUNT_INTERVAL:
            counts = self._count(needs, own)
            self._known = {(needs, own): (self._clock(), counts)}
        return counts

    def _count(self, needs: frozenset[Need], own: frozenset[str]) -> Counts:
        tally = _Tally(needs, own)
        marks = {(need.mark, need.mask) for need in needs if isinstance(need, Marked) and need.tracked}
        wanted = [*marks, *([(0, 0)] if tally.targets else [])]
        flows: dict[tuple[int, int], list[Flow] | None] = {}
        for mark in wanted:
            try:
                flows[mark] = list(self._list_flows(*mark))
            except OSError:
                flows[mark] = None
        tally.tracking = bool(flows.get((0, 0)))
        readable = tally.add_sockets(self._list_sockets) if needs else True
        tally.add_flows_to_targets(flows.get((0, 0)) or ())
        return {need: _number(need, tally, flows, readable) for need in needs}


def _number(need: Need, tally: _Tally, flows: dict[tuple[int, int], Any], readable: bool) -> int | None:
    found = tally.counts[need]
    if isinstance(need, Marked):
        found = 0 if need.sockets else found
        if need.tracked:
            listed = flows[need.mark, need.mask]
            return (
                (found or None) if listed is None else max(found, sum(tally.needs_mark(need, flow) for flow in listed))
            )
    if isinstance(need, (Marked, To, From, Foreign)) and (readable or found) and (found or need not in tally.vague):
        return found
    return None


class _Tally:
    """Counts sockets and flows by need, each of them once, with a few lookups."""

    def __init__(self, needs: frozenset[Need], own: frozenset[str]):
        self.counts: Counter[Need] = Counter()
        # Needs that UDP sockets without a peer may serve, where conntrack does not list their sessions.
        self.vague: set[Need] = set()
        self.tracking = False
        self.targets = _ByAddress((need.target, need) for need in needs if isinstance(need, To))
        self._ports = [need for need in needs if isinstance(need, To) and need.udp_ports]
        self._peers = _ByAddress((need.peer, need) for need in needs if isinstance(need, From))
        self._foreign = [
            (need, _ByAddress((way, need) for way in need.other_ways)) for need in needs if isinstance(need, Foreign)
        ]
        self._marked = [need for need in needs if isinstance(need, Marked)]
        self._ways = {need: _ByAddress((way, need) for way in need.other_ways) for need in self._marked}
        self._own = {ipaddress.ip_address(address).packed for address in own}
        # The hashes of the four-tuples of TCP sockets; and those with a mark, for needs that these do not have.
        self._living: set[int] | None = set()
        self._served: dict[tuple[int, int], set[int]] = {
            (need.mark, need.mask): set() for need in self._marked if need.sockets
        }

    def add_sockets(self, list_sockets: Callable[[], Iterable[Socket]]) -> bool:
        """Whether the sockets could be listed."""
        try:
            for each in list_sockets():
                if each.peer_port:
                    self._add_socket(each)
                elif not self.tracking:
                    self._add_server(each)
        except OSError:
            self._living = None
            return False
        return True

    def _add_socket(self, each: Socket) -> None:
        # Where conntrack lists the sessions of UDP, they are counted there.
        if each.protocol == socket.IPPROTO_TCP or not self.tracking:
            self.counts.update(self.targets.of(each.local))
        if each.local not in self._own and not _is_loopback(each.local):
            self.counts.update(need for need in self._peers.of(each.peer) if need.protocol in (None, each.protocol))
            for need, ways in self._foreign:
                if _has_family(each.local, need.family) and not any(ways.of(each.peer)):
                    self.counts[need] += 1
        if self._living is not None and self._marked and each.protocol == socket.IPPROTO_TCP:
            self._living.add(_hash(each))
        if each.mark:
            self._add_marked(each)

    def _add_marked(self, each: Socket) -> None:
        for need in self._marked:
            if each.mark & need.mask == need.mark and _has_family(each.local, need.family):
                if need.sockets:
                    self._served[need.mark, need.mask].add(_hash(each))
                elif not any(self._ways[need].of(each.local)):
                    self.counts[need] += 1

    def _add_server(self, each: Socket) -> None:
        self.vague.update(self.targets.of(each.local))
        if not any(each.local):
            self.vague.update(
                need for need in self._ports if any(low <= each.local_port <= high for low, high in need.udp_ports)
            )

    def add_flows_to_targets(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            # A TCP connection of this host itself is among the sockets.
            if flow.protocol != socket.IPPROTO_TCP or flow.target != flow.server:
                self.counts.update(self.targets.of(flow.target))

    def needs_mark(self, need: Marked, flow: Flow) -> bool:
        if not _has_family(flow.target, need.family) or any(self._ways[need].of(flow.target)):
            return False
        four = hash((flow.target, flow.target_port, flow.source, flow.source_port))
        if need.sockets and four in self._served[need.mark, need.mask]:
            return False
        # Conntrack lists a connection whose client has vanished for five days. The socket knows better.
        has_socket = flow.protocol == socket.IPPROTO_TCP and flow.server == flow.target and flow.target in self._own
        return not has_socket or self._living is None or four in self._living


class _ByAddress:
    """Needs by the packed address that they name, or by its prefix."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]):
        self._hosts: dict[bytes, list[Any]] = {}
        self._networks: list[tuple[Any, Any]] = []
        for text, need in pairs:
            prefix = network(text)
            if prefix.prefixlen == prefix.max_prefixlen:
                self._hosts.setdefault(prefix.network_address.packed, []).append(need)
            else:
                self._networks.append((prefix, need))

    def __bool__(self) -> bool:
        return bool(self._hosts or self._networks)

    def of(self, packed: bytes) -> Iterator[Any]:
        yield from self._hosts.get(packed, ())
        if self._networks and packed:
            address = ipaddress.ip_address(packed)
            yield from (need for prefix, need in self._networks if address in prefix)


def _hash(each: Socket) -> int:
    return hash((each.local, each.local_port, each.peer, each.peer_port))


def _has_family(packed: bytes, family: str | None) -> bool:
    return family is None or len(packed) == LENGTHS[family]


def _is_loopback(packed: bytes) -> bool:
    return packed[:1] == b"\x7f" and len(packed) == LENGTHS["ipv4"]
