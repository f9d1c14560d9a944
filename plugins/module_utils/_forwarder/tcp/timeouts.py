# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions in which nothing moves, and attempts nobody answers: found by looking at all, not by a timer for each.

Pure, but for the keepalive it asks a relay to switch on; time is passed in (monotonic seconds). A look compares the
bytes a session has passed on with those of the look before, so traffic pays nothing for it: no clock, no stamp. A
timeout is kept for at least its length and at most a look longer.
"""

from __future__ import annotations

from itertools import islice, takewhile

from .session import State

SLOW = 0.25  # seconds a connect may take before the checker is asked whether the backend is well
MOST_SLOW = 256  # attempts that are looked at for that: they are of few backends
SOONEST = 1.0  # seconds between two looks: the timers is coarse
LATEST = 30.0
SHARE = 8  # looks within a timeout
IDLE, HALF_CLOSED = "idle timeout", "half-closed timeout"

_HALF_CLOSED = (State.CLIENT_ENDED, State.BACKEND_ENDED)


def interval(services):
    """Return the seconds between two looks that keep the timeouts of ``services`` (config.Service)."""
    lengths = [length for one in services for length in (one.idle_timeout, one.half_closed_timeout) if length]
    # Keepalive of the connection to a backend begins with the first look.
    lengths += [one.keepalive * SHARE / 2 for one in services if one.keepalive]
    return max(SOONEST, min([length / SHARE for length in lengths] + [LATEST]))


def overdue(connecting, now):
    """Return the relays of ``connecting``, {relay: deadline}, whose attempt has had its time."""
    return [relay for relay, deadline in connecting.items() if now >= deadline]


def slow(connecting, now):
    """Return those of ``connecting``, which is in the order they began in, whose attempt has lasted SLOW seconds."""
    return list(takewhile(lambda relay: now - relay.attempted >= SLOW, islice(connecting, MOST_SLOW)))


def look(relays, now):
    """Return [(relay, reason)] of those whose timeout has passed."""
    over = []
    for relay in relays:
        state = relay.state
        moved = relay.moved()
        if moved != relay.seen_moved or state is not relay.seen_state:
            if relay.seen_state is None:
                relay.lasts()
            relay.seen_moved, relay.seen_state, relay.seen_at = moved, state, now
            continue
        service = relay.service
        if state in _HALF_CLOSED:
            timeout, reason = service.half_closed_timeout, HALF_CLOSED
        elif state is State.OPEN:
            timeout, reason = service.idle_timeout, IDLE
        else:
            continue  # connecting and choosing have their own deadlines
        if timeout and now - relay.seen_at >= timeout:
            over.append((relay, reason))
    return over
