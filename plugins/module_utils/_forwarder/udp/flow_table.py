# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of UDP sessions: who belongs together, and when a session is over.

Pure; time is passed in (monotonic seconds). A *flow* is a session of UDP: the datagrams of one client address and port
towards one listener, and the replies of the backend it was given to. A *door* is where a client's datagrams come in, a
*lane* an upstream socket on which replies come back. Two flows are never mixed up because a door knows its flows by the
client (and the address it wrote to), and a lane by the pair (address the reply is for, backend it comes from): a lane
is only given to a flow while that pair is free on it. So many clients share a few lanes, and only one client with many
flows to one backend needs a lane, which is a source port, for each of them.
"""

from __future__ import annotations

import random
import socket
from functools import partial

from .eviction import Leavers, Shares

MOST_FLOWS = 65536  # sessions of a worker, about 1.3 kB each
CROWDED = 0.75  # the part of all lanes one client may hold towards one backend before another lane is opened
ANYWHERE = 65536  # more than there are lanes: where the search for a second one begins
SHARE = 8  # looks within a timeout
SOONEST, LATEST = 0.2, 10.0  # seconds between two looks
UNCONTESTED = 0.2  # seconds in which an ICMP error for the first datagram of a session would have come

IDLE = "idle timeout"


class Door:
    """Where datagrams of clients of a service (its name) come in; ``flows`` is {key of a client: Flow}."""

    def __init__(self, service):
        self.service = service
        self.flows = {}


class Lane:
    """Where replies come back; ``flows`` is {(packed address of the client, address tuple of the backend): Flow}.

    A lane is ``shared`` when flows of any client may use it; ``port`` is its source port.
    """

    def __init__(self, family, port, shared=True):
        self.family = family
        self.port = port
        self.shared = shared
        self.flows = {}


class Flow:
    """One session of ``client``, an address tuple, with the backend ``index`` of ``backends``, a balancer.Backends.

    ``origin`` is the key of the client at its door, ``reply`` the pair by which its lane knows it.
    """

    __slots__ = (
        "admitted",
        "answered",
        "backends",
        "bytes_to_backend",
        "bytes_to_client",
        "client",
        "datagrams_to_backend",
        "datagrams_to_client",
        "door",
        "index",
        "lane",
        "origin",
        "reply",
        "seen",
        "seen_at",
        "started",
        "step",
        "target",
        "timeout",
        "to_backend",
        "to_client",
    )

    def __init__(self, client, origin, reply, backends, index, timeout, now):
        self.client = client
        self.origin = origin
        self.reply = reply
        self.target = reply[1]
        self.backends = backends
        self.index = index
        self.door = self.lane = None
        self.step = None  # how its source was had: a step of source_address.py
        self.to_backend = ()  # what sendmsg() takes as ancillary data
        self.to_client = None  # the same, None where the door has one address only
        self.timeout = timeout  # seconds without a datagram after which it is over
        self.started = self.seen_at = now
        self.seen = 0  # datagrams at the last look
        self.answered = False
        self.admitted = False  # counted by the gate of its service
        self.datagrams_to_backend = self.datagrams_to_client = 0
        self.bytes_to_backend = self.bytes_to_client = 0

    @property
    def datagrams(self):
        """Datagrams both ways."""
        return self.datagrams_to_backend + self.datagrams_to_client

    @property
    def alive(self):
        """Whether it is not over."""
        return self.door.flows.get(self.origin) is self

    @property
    def service(self):
        """The config.Service it is of."""
        return self.door.serving.service

    @property
    def backend(self):
        """The config.Backend it was given to."""
        return self.backends.backends[self.index]

    def summary(self, now):
        """Return the fields of its line in the log; durations in seconds, sizes in bytes of payload."""
        return {
            "service": self.service.name,
            "client": self.client[0],
            "client_port": self.client[1],
            "listener": str(self.door.listener),
            "backend": self.backend.name,
            "source": socket.inet_ntop(self.lane.family, self.reply[0]),
            "source_port": self.lane.port,
            "source_step": self.step,
            "datagrams_to_backend": self.datagrams_to_backend,
            "datagrams_to_client": self.datagrams_to_client,
            "bytes_to_backend": self.bytes_to_backend,
            "bytes_to_client": self.bytes_to_client,
            "duration": round(now - self.started, 6),
            "ended": None,
        }


class Table:
    """All flows of a worker (``flows``), and the shared lanes of each family.

    ``most`` bounds the flows, ``most_alone`` those that have a lane of their own (``alone``).
    """

    def __init__(self, most=MOST_FLOWS, most_alone=MOST_FLOWS):
        self.flows = Shares(most)
        self.alone = Shares(most_alone)
        self.lanes = {}  # family -> [Lane], those that are shared
        # (family, reply) -> [how many shared lanes have it, where to look for the next one, who makes room for one]
        self._held = {}

    def __len__(self):
        return len(self.flows)

    def serve(self, service):
        """Flows of a service (its name) may come."""
        self.flows.serve(service)
        self.alone.serve(service)

    def offer(self, lane):
        """Let flows of any client use a lane."""
        self.lanes.setdefault(lane.family, []).append(lane)

    def withdraw(self, lane):
        """A shared lane without flows is to be closed."""
        self.lanes[lane.family].remove(lane)

    def place(self, family, reply, grow):
        """Return a shared lane on which ``reply`` is free, None when there is none.

        ``grow`` says whether another lane could be opened instead: then a crowded pair is not searched a place for, as
        most lanes would be tried in vain.
        """
        lanes = self.lanes.get(family, ())
        held = self._held.get((family, reply))
        if held is None:
            return lanes[int(random.random() * len(lanes))] if lanes else None
        count, start, _leavers = held
        if count >= len(lanes) or (grow and count >= len(lanes) * CROWDED):
            return None
        for number in range(start, start + len(lanes)):
            number %= len(lanes)
            if reply not in lanes[number].flows:
                held[1] = number + 1  # the flows of a client end in the order they began in, more or less
                return lanes[number]
        return None

    def quietest(self, family, reply, now):
        """Return the flow that makes room on a shared lane for another one with its ``reply``; None without one."""
        held = self._held.get((family, reply))
        if held is None:
            return None
        if held[2] is None:  # few need it, and each is as large as a session
            held[2] = Leavers(partial(self._holders, family, reply))
        return held[2].next(now)

    def _holders(self, family, reply):
        flows = [lane.flows[reply] for lane in self.lanes[family] if reply in lane.flows]
        return sorted(flows, key=lambda flow: flow.seen_at)

    def enter(self, flow, door, lane):
        """Take a flow in; its place at the door and on the lane are free."""
        flow.door, flow.lane = door, lane
        door.flows[flow.origin] = lane.flows[flow.reply] = flow
        self.flows.enter(door.service, flow)
        if not lane.shared:
            self.alone.enter(door.service, flow)
            return
        pair = lane.family, flow.reply
        held = self._held.get(pair)
        if held is None:
            self._held[pair] = [1, int(random.random() * ANYWHERE), None]
        else:
            held[0] += 1

    def leave(self, flow):
        """Forget a flow."""
        self.flows.leave(flow.door.service, flow)
        del flow.door.flows[flow.origin], flow.lane.flows[flow.reply]
        if not flow.lane.shared:
            self.alone.leave(flow.door.service, flow)
            return
        pair = flow.lane.family, flow.reply
        held = self._held[pair]
        held[0] -= 1
        if not held[0]:
            del self._held[pair]

    def serves_others(self, flow, now):
        """Whether the backend of ``flow`` serves another client as well: one whose datagrams since the last look, and
        not only a moment ago, have met no ICMP error. It need not answer: syslog does not."""
        return any(
            other.index == flow.index
            and other.backends is flow.backends
            and other.client[0] != flow.client[0]
            and other.datagrams != other.seen
            and now - other.started >= UNCONTESTED
            for other in self.flows
        )

    def idle(self, now):
        """Return the flows whose timeout has passed. Kept for at least its length and at most a look longer.

        What is compared is how many datagrams a flow had at the last look, so a datagram pays for no clock.
        """
        over = []
        for service, flows in self.flows.services():
            still, moved = [], []
            for flow in flows:
                datagrams = flow.datagrams
                if datagrams != flow.seen:
                    flow.seen, flow.seen_at = datagrams, now
                    moved.append(flow)
                    continue
                still.append(flow)
                if now - flow.seen_at >= flow.timeout:
                    over.append(flow)
            if still and moved:
                self.flows.reorder(service, still + moved)
                self.alone.reorder(service, [flow for flow in still + moved if not flow.lane.shared])
        return over


def interval(timeouts):
    """Return the seconds between two looks that keep these timeouts."""
    return max(SOONEST, min([timeout / SHARE for timeout in timeouts] + [LATEST]))
