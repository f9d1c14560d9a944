# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Round-trip times and retransmissions of the connections to backends, from the kernel (TCP_INFO), sampled.

What is sampled: after each check of timeouts.py (every 5 s, more often with a short idle timeout), up to MOST
connections of a worker that have been open for one check and have moved something in the last RECENT seconds; if there
are more, a random choice. So a connection that ends within 5 s is in no sample, and what the kernel sends again after
the last sample of a connection is not counted. Nothing says what share of all segments the counted ones are.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

from ..loop import sockets

if TYPE_CHECKING:
    from collections.abc import Collection

    from .relay import Relay

MOST = 500  # connections, 2 µs each
RECENT = 60.0  # seconds


def take(relays: Collection[Relay], now: float) -> None:
    """Sample the connections of ``relays``, all open sessions, and count what they say of their backends."""
    sampled = [relay for relay in relays if relay.seen_state is relay.state and now - relay.seen_at <= RECENT]
    if len(sampled) > MOST:
        sampled = random.sample(sampled, MOST)
    found = defaultdict(list)
    for relay in sampled:
        info = sockets.tcp_info(relay.upstream.sock)
        if info is not None:
            round_trip, retransmits = info
            found[relay.backends, relay.index].append((round_trip, retransmits - relay.counted_retransmits))
            relay.counted_retransmits = retransmits
    for (backends, index), pairs in found.items():
        round_trips, retransmits = zip(*pairs)
        backends.add_samples(index, len(pairs), sum(round_trips) / len(pairs), sum(retransmits), now)
