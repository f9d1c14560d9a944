# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which UDP session ends when there is no room for a new one. Pure; time is passed in (monotonic seconds).

A datagram with a forged source costs its sender nothing, and begins a session that lasts for the idle_timeout of its
service. So a full table is no reason to refuse a new client: an old session is ended instead. First a session that
waits for an answer in vain, then one that was a request and its response, and last a conversation; within a class the
one in which nothing has moved for the longest time.

The services share the places. Each may use what is free, and none loses a session while it has less than its share.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .flow_table import Flow

MADE_ROOM = "made room for a new session"  # the reason in the log

BRIEF = 2  # datagrams: a request and its response
ANSWER_TIME = 1.0  # seconds in which a session may still be answered
BATCH_FRACTION = 16  # one scan, which takes 10 ms with 65,536 sessions, yields 1/16 of them


def eviction_class(flow: Flow, now: float) -> int:
    """Return the class of a flow_table.Flow, 0 to 4; those of a lower class are ended first."""
    if flow.datagrams > BRIEF:
        return 3 if flow.datagrams == flow.datagrams_seen else 4  # 4: something moved since the last check
    if flow.answered:
        return 1
    return 0 if now - flow.started >= ANSWER_TIME else 2


def first_to_evict(flows: Iterable[Flow], now: float, most: int) -> list[Flow]:
    """Return up to ``most`` of ``flows`` in the order in which to end them; within a class they stay in order."""
    classes: tuple[list, ...] = [], [], [], [], []
    for flow in flows:
        members = classes[eviction_class(flow, now)]
        if len(members) < most:
            members.append(flow)
            if len(classes[0]) == most:
                break
    return list(chain.from_iterable(classes))[:most]


class EvictionQueue:
    """The flows of a group in the order in which to end them; a scan of the group fills it whenever it is empty.

    ``scan()`` returns the group, first the flows in which nothing has moved for the longest time.
    """

    def __init__(self, scan: Callable[[], Collection[Flow]]) -> None:
        self._scan = scan
        self._queue: deque = deque()  # (flow, its datagrams at the scan)

    def next(self, now: float) -> Flow | None:
        """Return the flow to end now, None where the group is empty."""
        queue = self._queue
        while True:
            while queue:
                flow, datagrams = queue.popleft()
                if flow.alive and flow.datagrams == datagrams:  # else it has ended, or something moved
                    return flow
            flows = self._scan()
            if not flows:
                return None
            most = len(flows) // BATCH_FRACTION + 1
            queue.extend((flow, flow.datagrams) for flow in first_to_evict(flows, now, most))


class FairShares:
    """``most`` places for the flows of several services."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._flows: dict[
            str, dict
        ] = {}  # service -> {flow: None}, first those in which nothing has moved for the longest time
        self._queues: dict[str, EvictionQueue] = {}  # service -> EvictionQueue
        self._count = 0

    def __len__(self):
        return self._count

    def __iter__(self):
        return chain.from_iterable(self._flows.values())

    def add_service(self, service: str) -> None:
        """Give a service (its name) a share."""
        if service not in self._flows:
            flows = self._flows[service] = {}
            self._queues[service] = EvictionQueue(lambda: flows)

    def keep_services(self, wanted: Collection[str]) -> None:
        """Take the share of each service that is not ``wanted`` and has no flows."""
        for service in [name for name, flows in self._flows.items() if not flows and name not in wanted]:
            del self._flows[service], self._queues[service]

    def names(self) -> Collection[str]:
        """Return the names of the services that have a share."""
        return self._flows.keys()

    def enter(self, service: str, flow: Flow) -> None:
        """Take a place for a flow."""
        self._flows[service][flow] = None
        self._count += 1

    def leave(self, service: str, flow: Flow) -> None:
        """Give the place of a flow back."""
        del self._flows[service][flow]
        self._count -= 1

    def services(self):
        """Return the pairs (service, its flows)."""
        return self._flows.items()

    def reorder(self, service: str, flows: Iterable[Flow]) -> None:
        """Put a service's flows into this order: first those in which nothing has moved for the longest time."""
        kept = self._flows[service]
        kept.clear()
        kept.update(dict.fromkeys(flows))

    def loser(self, service: str) -> str:
        """Return the service that loses a flow to ``service``: itself if it has its share, else the one with most."""
        if len(self._flows[service]) >= max(1, self.most // len(self._flows)):
            return service
        return max(self._flows, key=lambda name: len(self._flows[name]))

    def flow_to_evict(self, service: str, now: float) -> Flow | None:
        """Return the flow to end so that ``service`` gets a place; None where there are no flows."""
        return self._queues[self.loser(service)].next(now)
