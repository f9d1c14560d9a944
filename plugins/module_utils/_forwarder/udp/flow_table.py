# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of UDP sessions: which datagrams belong together.

Pure; time is passed in (monotonic seconds). A *flow* is a session of UDP: the datagrams of one client address and port
to one listener, and the replies of the backend that it was given to. Two flows are never mixed up: a listener finds a
flow by its client, and an upstream socket finds it by the pair (address that the reply is for, backend that it is
from); a flow only gets a socket on which its pair is free. Many clients can therefore share a few upstream sockets. A
client needs one socket per flow, which is one source port, only for several flows to the same backend.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from functools import partial
from typing import Any

from .eviction import EvictionQueue, FairShares

MOST_FLOWS = 65536  # sessions of a worker, about 1.3 kB each
CROWDED = 0.75  # fraction of the shared sockets on which a pair may be taken before another socket is opened
ANYWHERE = 65536  # more than there are sockets: the search for a pair's second one begins at a random place
MOST_COUNTED = 2000  # flows; takes 1 ms
NOTHING = (0, 0, 0, 0)  # counted of a new flow
UNCONTESTED = 0.2  # seconds in which an ICMP error for the first datagram of a session would have come


class Flow:
    """One session of ``client``, an address tuple, with backend ``index`` of ``backends``, a balancer.Backends."""

    __slots__ = (
        "answered",  # whether a reply has come
        "backends",
        "bytes_to_backend",
        "bytes_to_client",
        "client",
        "client_key",  # its key in listener.flows
        "counted",  # what count_traffic() has counted: bytes, datagrams; to the backend, to the client
        "datagrams_seen",  # datagrams at the last check
        "datagrams_to_backend",
        "datagrams_to_client",
        "index",
        "last_moved",  # monotonic; the last check that saw new datagrams
        "limiter",  # limits.Limiter that counts it; None: none does
        "listener",  # listener.UdpListener
        "reply_key",  # its key in upstream.flows: (packed address of the client, address tuple of the backend)
        "started",  # monotonic
        "step",  # of admission/source_address.py: how its source was chosen
        "target",  # address tuple of the backend
        "timeout",  # seconds without a datagram after which it ends
        "to_backend",  # ancillary data for sendmsg()
        "to_client",  # the same; None: sendto() does, because the listener has only one address
        "upstream",  # upstream.UpstreamSocket
    )

    # Set before the first datagram.
    listener: Any
    upstream: Any
    to_backend: tuple

    def __init__(self, client, client_key, reply_key, backends, index, timeout, now):
        self.client = client
        self.client_key = client_key
        self.reply_key = reply_key
        self.target = reply_key[1]
        self.backends = backends
        self.index = index
        self.timeout = timeout
        self.listener = self.upstream = self.limiter = self.step = self.to_client = None
        self.to_backend = ()
        self.started = self.last_moved = now
        self.answered = False
        self.datagrams_to_backend = self.datagrams_to_client = self.datagrams_seen = 0
        self.bytes_to_backend = self.bytes_to_client = 0
        self.counted = NOTHING

    @property
    def datagrams(self):
        """Datagrams, both directions together."""
        return self.datagrams_to_backend + self.datagrams_to_client

    def count_traffic(self):
        """Count what was forwarded since the last call."""
        bytes_up, bytes_down, datagrams_up, datagrams_down = self.counted
        sent, received, index = self.datagrams_to_backend, self.datagrams_to_client, self.index
        self.counted = self.bytes_to_backend, self.bytes_to_client, sent, received
        self.backends.add_bytes(index, self.bytes_to_backend - bytes_up, self.bytes_to_client - bytes_down)
        self.backends.add_datagrams(index, sent - datagrams_up, received - datagrams_down)

    @property
    def alive(self):
        """Whether it has not ended."""
        return self.listener.flows.get(self.client_key) is self

    @property
    def client_address(self):
        """The address tuple of the client, under the name that a relay has for it."""
        return self.client

    @property
    def service(self):
        """The config.Service."""
        return self.listener.runtime.service

    @property
    def backend(self):
        """The config.Backend."""
        return self.backends.backends[self.index]

    def bytes_so_far(self):
        """Return the bytes that were forwarded (to the backend, to the client)."""
        return self.bytes_to_backend, self.bytes_to_client

    def summary(self, now):
        """Return the fields of its line in the log; durations in seconds, sizes in bytes of payload."""
        return {
            "service": self.service.name,
            "client": self.client[0],
            "client_port": self.client[1],
            "listener": str(self.listener.listener),
            "backend": self.backend.name,
            "source": socket.inet_ntop(self.upstream.family, self.reply_key[0]),
            "source_port": self.upstream.port,
            "source_step": self.step,
            "datagrams_to_backend": self.datagrams_to_backend,
            "datagrams_to_client": self.datagrams_to_client,
            "bytes_to_backend": self.bytes_to_backend,
            "bytes_to_client": self.bytes_to_client,
            "duration": round(now - self.started, 6),
            "ended": None,
        }


class FlowTable:
    """All flows of a worker, and the shared upstream sockets of each family.

    It reads of a listener .service and .flows, and of an upstream socket .family, .shared, .alone and .flows. ``most``
    bounds the flows, ``most_alone`` those that have an upstream socket of their own (``alone``).
    """

    def __init__(self, most=MOST_FLOWS, most_alone=MOST_FLOWS):
        self.flows = FairShares(most)
        self.alone = FairShares(most_alone)
        self.shared = {}  # family -> [UpstreamSocket]
        # (family, reply key) -> [number of shared sockets on which it is taken, where the search for the next one
        # begins, EvictionQueue or None]
        self._taken = {}
        self.uncounted: deque[Flow] = deque()  # flows that have moved something since it was counted; some have ended

    def __len__(self):
        return len(self.flows)

    def add_service(self, service):
        """Give a service (its name) a share of the places."""
        self.flows.add_service(service)
        self.alone.add_service(service)

    def keep_services(self, wanted):
        """Take the share of each service that is not ``wanted`` (names) and has no flows."""
        self.flows.keep_services(wanted)
        self.alone.keep_services(self.flows.names())

    def add_shared(self, upstream):
        """Let flows of any client use an upstream socket."""
        self.shared.setdefault(upstream.family, []).append(upstream)

    def remove_shared(self, upstream):
        """Let no more flows use a shared upstream socket; those that it has go on."""
        self.shared[upstream.family].remove(upstream)
        for reply_key in upstream.flows:
            self._free(upstream, reply_key)
            taken = self._taken.get((upstream.family, reply_key))
            if taken is not None:
                taken[2] = None  # its queue may have a flow of this socket

    def find_shared(self, family, reply_key, may_open, place=0):
        """Return a shared upstream socket on which ``reply_key`` is free, None where there is none.

        ``may_open``: whether another socket could be opened instead. Then a pair that is taken on most of them is not
        searched for, as most tries would be in vain. A pair that is taken nowhere gets the socket at ``place``, any
        number that the sessions of a service have in common: so replies of a busy service wait together and are read in
        large batches, and those of other services do not wait behind them.
        """
        upstreams = self.shared.get(family, ())
        taken = self._taken.get((family, reply_key))
        if taken is None:
            return upstreams[place % len(upstreams)] if upstreams else None
        count, start, _queue = taken
        if count >= len(upstreams) or (may_open and count >= len(upstreams) * CROWDED):
            return None
        for number in range(start, start + len(upstreams)):
            number %= len(upstreams)
            if reply_key not in upstreams[number].flows:
                taken[1] = number + 1  # the flows of a client end more or less in the order that they began in
                return upstreams[number]
        return None

    def flow_to_evict(self, family, reply_key, now):
        """Return the flow to end so that a shared socket is free for another one with its key; None: there is none."""
        taken = self._taken.get((family, reply_key))
        if taken is None:
            return None
        if taken[2] is None:  # made on demand: few pairs need a queue, and each is as large as a session
            taken[2] = EvictionQueue(partial(self._flows_with, family, reply_key))
        return taken[2].next(now)

    def _flows_with(self, family, reply_key):
        flows = [upstream.flows[reply_key] for upstream in self.shared[family] if reply_key in upstream.flows]
        return sorted(flows, key=lambda flow: flow.last_moved)

    def enter(self, flow, listener, upstream):
        """Enter a flow; its keys at the listener and on the upstream socket are free."""
        flow.listener, flow.upstream = listener, upstream
        listener.flows[flow.client_key] = upstream.flows[flow.reply_key] = flow
        self.flows.enter(listener.service, flow)
        if not upstream.shared:
            if upstream.alone:
                self.alone.enter(listener.service, flow)
            return
        pair = upstream.family, flow.reply_key
        taken = self._taken.get(pair)
        if taken is None:
            self._taken[pair] = [1, int(random.random() * ANYWHERE), None]
        else:
            taken[0] += 1

    def leave(self, flow):
        """Forget a flow."""
        service = flow.listener.service
        self.flows.leave(service, flow)
        del flow.listener.flows[flow.client_key], flow.upstream.flows[flow.reply_key]
        if not flow.upstream.shared:
            if flow.upstream.alone:
                self.alone.leave(service, flow)
            return
        self._free(flow.upstream, flow.reply_key)

    def _free(self, upstream, reply_key):
        """Note that a pair is free again on a shared upstream socket."""
        pair = upstream.family, reply_key
        taken = self._taken[pair]
        taken[0] -= 1
        if not taken[0]:
            del self._taken[pair]

    def count_some(self):
        """Count what up to MOST_COUNTED ``uncounted`` flows have forwarded: all at once would take too long."""
        uncounted = self.uncounted
        for _time in range(min(MOST_COUNTED, len(uncounted))):
            flow = uncounted.popleft()
            if flow.alive:  # else its end has counted it
                flow.count_traffic()

    def serves_others(self, flow, now):
        """Whether the backend of ``flow`` serves another client: one that sent something since the last check, and not
        only a moment ago, without an ICMP error. A reply is not needed: syslog sends none."""
        return any(
            other.index == flow.index
            and other.backends is flow.backends
            and other.client[0] != flow.client[0]
            and other.datagrams != other.datagrams_seen
            and now - other.started >= UNCONTESTED
            for other in self.flows
        )
