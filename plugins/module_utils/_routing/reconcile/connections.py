# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Count the connections that retiring objects are needed for, in the lists of sockets and of conntrack.

A socket is foreign if its own address is not one of this host: a transparent socket, which local delivery serves.
Listing 100,000 sockets costs about 0.5 s of CPU time. So a list is read only until each need has a connection, unless
the exact number is wanted; and a count is used for COUNT_INTERVAL, and longer if it has cost much.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

from ..document.model import network
from ..netlink import conntrack, conntrack_entries, sockets
from ..netlink.conntrack import Flow
from ..netlink.conntrack_entries import Entry
from ..netlink.sockets import Socket
from .needs import Foreign, Forwarded, From, Marked, Need, To, Unknown

# Nothing notifies us when the last connection ends: seconds until they are counted again, at least.
COUNT_INTERVAL = 5.0
# Counting may use at most 1/COUNT_SHARE of the CPU.
COUNT_SHARE = 200

Counts = dict[Need, Optional[int]]
LENGTHS = {"ipv4": 4, "ipv6": 16}


class Connections:
    """Reads the lists of the network namespace of the calling thread."""

    def __init__(
        self,
        list_sockets: Callable[[], Iterable[Socket]] = sockets.living,
        list_flows: Callable[..., Iterable[Flow]] = conntrack.living,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        list_entries: Callable[[], Iterable[Entry]] = conntrack_entries.listed,
    ):
        self._list_sockets, self._list_flows, self._clock, self._cpu = list_sockets, list_flows, clock, cpu
        self._list_entries = list_entries
        self._known: dict[tuple[frozenset[Need], frozenset[str]], tuple[float, Counts]] = {}

    def count(self, needs: frozenset[Need], own: frozenset[str], exact: bool = False) -> Counts:
        """The number of connections of each need, None where that cannot be known; at least 1 if there are any, unless
        it is ``exact``. ``own``: this host's addresses.
        """
        until, counts = self._known.get((needs, own), (0.0, {}))
        if exact or self._clock() >= until:
            cpu = self._cpu()
            forwarded = frozenset(need for need in needs if isinstance(need, Forwarded))
            counts = _Count(needs - forwarded, own, exact).of(self._list_sockets, self._list_flows)
            counts |= _count_forwarded(forwarded, self._list_entries)
            pause = max(COUNT_INTERVAL, (self._cpu() - cpu) * COUNT_SHARE)
            self._known = {(needs, own): (self._clock() + pause, counts)}
        return counts


def _count_forwarded(needs: frozenset[Forwarded], list_entries: Callable[[], Iterable[Entry]]) -> Counts:
    """The number of connections of each need; None if conntrack cannot be read."""
    counts: Counts = dict.fromkeys(needs, 0)
    to: dict[tuple[int, bytes, int], list[tuple[Forwarded, set[tuple[bytes, int]]]]] = {}
    begun: dict[tuple[int, bytes, int], Forwarded] = {}
    for need in needs:
        servers = {(_packed(address), port) for address, port in need.servers}
        to.setdefault((need.protocol, _packed(need.address), need.port), []).append((need, servers))
        begun.update(((need.protocol, *server), need) for server in servers)
    try:
        for entry in list_entries() if counts else ():
            if not entry.has_ended:
                pairs = to.get((entry.protocol, entry.address, entry.port), ())
                found = [need for need, servers in pairs if (entry.server, entry.server_port) in servers]
                found += [begun[key] for key in [(entry.protocol, entry.client, entry.client_port)] if key in begun]
                counts.update((need, (counts[need] or 0) + 1) for need in found)
    except OSError:
        return dict.fromkeys(counts)
    return counts


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


class _Count:
    """One count: first the sockets, then conntrack for what these do not tell."""

    def __init__(self, needs: frozenset[Need], own: frozenset[str], exact: bool):
        self._needs, self._exact = needs, exact
        self._own = {ipaddress.ip_address(address).packed for address in own}
        self._found: Counter[Need] = Counter()
        # Without a connection so far.
        self._open = {need for need in needs if not isinstance(need, Unknown)}
        # Not to be known: a list cannot be read, or UDP sockets without a peer have sessions that none shows.
        self._vague: set[Need] = {need for need in needs if isinstance(need, Unknown)}
        self._tracking = False
        to = [need for need in needs if isinstance(need, To)]
        self._targets = _ByAddress((need.target, need) for need in to)
        self._ports = [need for need in to if need.udp_ports]
        self._peers = _ByAddress((need.peer, need) for need in needs if isinstance(need, From))
        self._foreign = [need for need in needs if isinstance(need, Foreign)]
        self._marked = [need for need in needs if isinstance(need, Marked)]
        with_ways: list[Foreign | Marked] = [*self._foreign, *self._marked]
        self._ways = {need: _ByAddress((way, need) for way in need.other_ways) for need in with_ways}
        # The hashes of the four-tuples of TCP sockets, None if they are unknown; and by mark, for needs that these
        # sockets do not have.
        self._living: set[int] | None = set()
        self._served: dict[tuple[int, int], set[int]] = {
            (need.mark, need.mask): set() for need in self._marked if need.sockets
        }

    def of(self, list_sockets: Callable[[], Iterable[Socket]], list_flows: Callable[..., Iterable[Flow]]) -> Counts:
        if not self._needs:
            return {}
        if self._targets:
            self._tracking = bool(self._read(lambda: next(iter(list_flows()), None)))
        if self._read(lambda: self._add_sockets(list_sockets())) is None:
            self._living = None
            self._vague |= {need for need in self._needs if not (isinstance(need, Marked) and need.tracked)}
        for need in self._marked:
            if need.tracked and (self._exact or need in self._open):
                self._add_marked_flows(need, list_flows)
        if self._tracking and (self._exact or any(isinstance(need, To) for need in self._open)):
            self._read(lambda: self._add_flows_to_targets(list_flows()))
        return {need: self._found[need] or (None if need in self._vague else 0) for need in self._needs}

    def _read(self, read: Callable[[], Any]) -> Any:
        """The result of reading a list; None if that fails."""
        try:
            return read()
        except OSError:
            return None

    def _add(self, need: Need) -> None:
        self._found[need] += 1
        self._open.discard(need)

    def _add_sockets(self, listed: Iterable[Socket]) -> bool:
        for each in listed:
            if each.peer_port:
                self._add_socket(each)
                if not (self._open or self._exact):
                    break
            elif not self._tracking:
                self._add_server(each)
        return True

    def _add_socket(self, each: Socket) -> None:
        # Where conntrack lists the sessions of UDP, they are counted there.
        if each.protocol == socket.IPPROTO_TCP or not self._tracking:
            for need in self._targets.of(each.local):
                self._add(need)
        if (self._peers or self._foreign) and each.local not in self._own and not _is_loopback(each.local):
            self._add_foreign(each)
        if self._marked and self._living is not None and each.protocol == socket.IPPROTO_TCP:
            self._living.add(_hash(each))
        if each.mark:
            self._add_marked(each)

    def _add_foreign(self, each: Socket) -> None:
        for need in self._peers.of(each.peer):
            if need.protocol in (None, each.protocol):
                self._add(need)
        for need in self._foreign:
            if _has_family(each.local, need.family) and not any(self._ways[need].of(each.peer)):
                self._add(need)

    def _add_marked(self, each: Socket) -> None:
        for need in self._marked:
            is_served = need.port in (None, (each.protocol, each.local_port))
            if each.mark & need.mask == need.mark and _has_family(each.local, need.family) and is_served:
                if need.sockets:
                    self._served[need.mark, need.mask].add(_hash(each))
                elif not any(self._ways[need].of(each.local)):
                    self._add(need)

    def _add_server(self, each: Socket) -> None:
        self._vague.update(self._targets.of(each.local))
        if not any(each.local):
            self._vague.update(
                need for need in self._ports if any(low <= each.local_port <= high for low, high in need.udp_ports)
            )

    def _add_marked_flows(self, need: Marked, list_flows: Callable[..., Iterable[Flow]]) -> None:
        """Most of these have a socket with the mark as well, so the greater number counts."""
        number = 0
        try:
            for flow in list_flows(need.mark, need.mask, need.family):
                if self._needs_mark(need, flow):
                    number += 1
                    if not self._exact:
                        break
        except OSError:
            self._vague.add(need)
        self._found[need] = max(self._found[need], number)

    def _needs_mark(self, need: Marked, flow: Flow) -> bool:
        if need.port not in (None, (flow.protocol, flow.target_port)):
            return False
        if not _has_family(flow.target, need.family) or any(self._ways[need].of(flow.target)):
            return False
        four = hash((flow.target, flow.target_port, flow.source, flow.source_port))
        if need.sockets and four in self._served[need.mark, need.mask]:
            return False
        # Conntrack lists a connection whose client has vanished for five days. The socket knows better.
        has_socket = flow.protocol == socket.IPPROTO_TCP and flow.server == flow.target and flow.target in self._own
        return not has_socket or self._living is None or four in self._living

    def _add_flows_to_targets(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            # A TCP connection of this host itself is among the sockets.
            if flow.protocol != socket.IPPROTO_TCP or flow.target != flow.server:
                for need in self._targets.of(flow.target):
                    self._add(need)


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
