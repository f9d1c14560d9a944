# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which UDP session ends when there is no place left for a new one. Pure; time is passed in (monotonic seconds).

A datagram with a false source costs its sender nothing, and begins a session that lasts for the idle_timeout of its
service. So places that are all taken are no reason to refuse a new client: a session makes room. First those that
wait in vain for an answer, then those that were one question and its answer, and last the conversations; among equals
the one in which nothing has moved for the longest time.

The services share the places. Each may have what is free, and none loses a session while it has less than its share.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

MADE_ROOM = "made room for a new session"  # why it ended, in the log

BRIEF = 2  # datagrams: a question and its answer
ANSWER_TIME = 1.0  # seconds: a session without an answer may still get it
PART = 16  # a look at all sessions finds one in so many of them; it takes 10 ms with 65,536


def order(flow, now):
    """Return the class of a flow (udp_table.Flow): those of a lower one make room first."""
    if flow.datagrams > BRIEF:
        return 3 if flow.datagrams == flow.seen else 4  # something moved since the last look of Table.idle()
    if flow.answered:
        return 1
    return 0 if now - flow.started >= ANSWER_TIME else 2


def first(flows, now, most):
    """Return up to ``most`` of ``flows`` in the order in which they make room; the given order decides among equals."""
    classes: tuple[list, ...] = [], [], [], [], []
    for flow in flows:
        found = classes[order(flow, now)]
        if len(found) < most:
            found.append(flow)
            if len(classes[0]) == most:
                break
    return list(chain.from_iterable(classes))[:most]


class Leavers:
    """Gives out the flows of a group in the order in which they make room.

    ``look()`` returns the group, those first in which nothing has moved for the longest time.
    """

    def __init__(self, look):
        self._look = look
        self._found: deque = deque()  # (flow, its datagrams at the last look)

    def next(self, now):
        """Return the flow that is the first to make room, None when there is none."""
        found = self._found
        while True:
            while found:
                flow, datagrams = found.popleft()
                if flow.alive and flow.datagrams == datagrams:  # else it is over, or something moved
                    return flow
            flows = self._look()
            if not flows:
                return None
            found.extend((flow, flow.datagrams) for flow in first(flows, now, len(flows) // PART + 1))


class Shares:
    """``most`` places for the flows of several services."""

    def __init__(self, most):
        self.most = most
        self._flows = {}  # service -> {flow: None}, those first in which nothing has moved for the longest time
        self._leavers = {}
        self._count = 0

    def __len__(self):
        return self._count

    def __iter__(self):
        return chain.from_iterable(self._flows.values())

    def serve(self, service):
        """Give a service (its name) a share."""
        if service not in self._flows:
            flows = self._flows[service] = {}
            self._leavers[service] = Leavers(lambda: flows)

    def enter(self, service, flow):
        """A flow takes a place."""
        self._flows[service][flow] = None
        self._count += 1

    def leave(self, service, flow):
        """A flow gives its place back."""
        del self._flows[service][flow]
        self._count -= 1

    def services(self):
        """Return the pairs (service, its flows)."""
        return self._flows.items()

    def reorder(self, service, flows):
        """Say in which of a service's ``flows`` nothing has moved for the longest time: the first ones."""
        kept = self._flows[service]
        kept.clear()
        kept.update(dict.fromkeys(flows))

    def payer(self, service):
        """Return the service that has to give a place to ``service``: itself, if it has its share, or who has most."""
        if len(self._flows[service]) >= max(1, self.most // len(self._flows)):
            return service
        return max(self._flows, key=lambda name: len(self._flows[name]))

    def next(self, service, now):
        """Return the flow that makes room for one of ``service``; None when nobody has a place."""
        return self._leavers[self.payer(service)].next(now)
