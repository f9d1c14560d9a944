# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connects that get no answer are repeated from other source ports, to the same backend; the first answer wins.

If an old connection of another proxy has the same client address, port and backend, the backend answers to that proxy
(admission/source_address.py), and this one would wait until connect_timeout and blame the backend. From another port
the backend answers at once. A lost SYN is repeated in this way too, sooner than by the kernel, which waits 1 s.

A connect that is answered in time has no part in this: its relay is not known here.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from ..admission.source_address import ANY, OWN
from ..loop.poller import ERROR
from .state_table import Event
from .stream import Stream
from .timeouts import SLOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .relay import Relay

ROUNDS = 4  # of an attempt, SLOW seconds apart; each opens one socket more than the one before
MOST_OPEN = 256  # sockets beside the first ones of the attempts: a dead backend must not use up the descriptors


class Tries(NamedTuple):
    """The repeated connects of one attempt."""

    rounds: list[float]  # when each began
    streams: dict[Stream, float]  # beside the relay's ``upstream``, and when each began


class OtherPorts:
    """The repeated connects of one worker. ``room()`` is how many more sessions are sure to find file descriptors."""

    def __init__(self, room):
        self._room = room
        self._tries: dict[Relay, Tries] = {}
        self.open = 0  # sockets beside the upstreams

    def check(self, connecting: Iterable[Relay], now: float) -> None:
        """Begin the rounds that are due; ``connecting`` has the relays in the order in which their attempts began."""
        for relay in takewhile(lambda relay: now - relay.attempted >= SLOW, connecting):
            if self._is_full():
                return  # the next check goes on
            tries = self._tries.get(relay)
            if tries is None:
                if _may_help(relay, now):
                    self._tries[relay] = tries = Tries([], {})
                    relay.loop.poller.replace(relay.upstream.number, relay.upstream.answered)
                    self._begin_round(relay, tries, now)
            elif len(tries.rounds) < ROUNDS and now - tries.rounds[-1] >= SLOW:
                self._begin_round(relay, tries, now)

    def _begin_round(self, relay, tries, now):
        """Connect from more ports. Without descriptors or ports, wait for the sockets that are there."""
        tries.rounds.append(now)
        for _socket in tries.rounds:
            if self._is_full():
                return
            try:
                tries.streams[_connect(relay)] = now
            except OSError:
                return
            self.open += 1

    def _is_full(self):
        return self.open >= min(MOST_OPEN, self._room())

    def streams(self, relay: Relay) -> list[Stream]:
        """Return the sockets of an attempt, the first one first."""
        tries = self._tries.get(relay)
        return [relay.upstream, *(tries.streams if tries else ())]

    def decide(self, relay: Relay, stream: Stream, mask: int) -> None:
        """Make ``stream``, which had the event ``mask``, the upstream of the relay, and close its other sockets."""
        if stream is not relay.upstream:
            streams = self._tries[relay].streams
            streams[relay.upstream] = relay.attempted
            relay.upstream, relay.step, relay.attempted = stream, ANY, streams.pop(stream)
            if not mask & ERROR:
                relay.runtime.counters.port_silent()
        self.drop(relay)

    def drop(self, relay: Relay) -> None:
        """Close all sockets of an attempt but its upstream."""
        tries = self._tries.pop(relay, None)
        if tries is not None:
            self.open -= len(tries.streams)
            for stream in tries.streams:
                stream.detach().close()


def _may_help(relay, now):
    """Whether another source port may help: the client's address is the source, and the backend usually is faster."""
    return relay.step != OWN and relay.backends.is_unusual(relay.client_address[0], relay.index, now - relay.attempted)


def _connect(relay):
    """Begin to connect to the backend of an attempt from another port; return the Stream; raise OSError."""
    target = relay.acceptor.targets[relay.backends.family][relay.index]
    silent = relay.upstream.sock.getsockname()[1]
    sock = relay.runtime.source.connect_from_other_port(relay.client_address[0], target, silent)
    stream = Stream(sock, relay, Event.BACKEND_EOF, Event.BACKEND_RESET, delay_first=True)
    relay.loop.poller.watch(stream.number, stream.answered, writable=True)
    stream.writable_watched = True
    return stream
