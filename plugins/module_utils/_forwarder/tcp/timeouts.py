# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions in which nothing moves, and attempts that get no answer: found by checking all, not by a timer for each.

Time is passed in (monotonic seconds). A check compares the bytes that each session has forwarded with those of the
check before. So traffic pays nothing for its timeout: no clock, no time stamp. A session ends at its timeout at the
earliest, and one interval() later at the latest. A check also counts what the sessions have forwarded since the last
one, and switches on the keepalive of new ones: both are calls of the relay.
"""

from __future__ import annotations

from itertools import islice, takewhile
from typing import TYPE_CHECKING

from .state_table import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..config.service import Service
    from .relay import Relay

SLOW = 0.25  # seconds that an attempt may take before the health checker probes the backend
MOST_SLOW = 256  # slow attempts that a check reports: they are to few backends
SHORTEST, LONGEST = 1.0, 5.0  # seconds between two checks; so old may the counted bytes of an open session be
CHECKS = 8  # within a timeout
IDLE, HALF_CLOSED = "idle timeout", "half-closed timeout"

_OPEN = State.OPEN
_HALF_CLOSED = (State.CLIENT_ENDED, State.BACKEND_ENDED)


def interval(services: Iterable[Service]) -> float:
    """Return the seconds between two checks that suffice for the timeouts of ``services`` (config.Service)."""
    lengths = [
        length for service in services for length in (service.idle_timeout, service.half_closed_timeout) if length
    ]
    # The first check that sees a session switches on keepalive towards its backend.
    lengths += [service.keepalive * CHECKS / 2 for service in services if service.keepalive]
    lengths += [service.log_every for service in services if service.log_every]
    return max(SHORTEST, min([length / CHECKS for length in lengths] + [LONGEST]))


def overdue(connecting: dict[Relay, float], now: float) -> list[Relay]:
    """Return the relays of ``connecting`` ({relay: deadline}) whose attempt has reached its deadline."""
    return [relay for relay, deadline in connecting.items() if now >= deadline]


def slow(connecting: dict[Relay, float], now: float) -> list[Relay]:
    """Return the relays of ``connecting`` whose attempt has lasted SLOW seconds; they are in the order of beginning."""
    return list(takewhile(lambda relay: now - relay.attempted >= SLOW, islice(connecting, MOST_SLOW)))


def expired(relays: Iterable[Relay], now: float) -> list[tuple[Relay, str]]:
    """Return [(relay, reason)] of those whose idle or half-closed timeout has passed; count what the others moved."""
    ended = []
    for relay in relays:
        state = relay.state
        if state is not _OPEN and state not in _HALF_CLOSED:
            continue  # an attempt has its own deadline
        moved = relay.client.sent + relay.upstream.sent
        if moved != relay.seen_moved or state is not relay.seen_state:
            if relay.seen_state is None:
                relay.start_keepalive()
            relay.count_bytes()
            relay.seen_moved, relay.seen_state, relay.seen_at = moved, state, now
            continue
        service = relay.runtime.service
        if state is _OPEN:
            timeout, reason = service.idle_timeout, IDLE
        else:
            timeout, reason = service.half_closed_timeout, HALF_CLOSED
        if timeout and now - relay.seen_at >= timeout:
            ended.append((relay, reason))
    return ended
