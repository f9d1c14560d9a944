# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The idle timeout of UDP sessions.

Time is passed in (monotonic seconds). A check compares the number of datagrams of a session with that of the last
check, so a datagram does not have to read the clock. A session ends at its timeout, or up to one check later. What the
others have forwarded is counted after the check (FlowTable.count_some()).
"""

from __future__ import annotations

CHECKS = 8  # within a timeout
SHORTEST, LONGEST = 0.2, 5.0  # seconds between two checks; so old may the counted bytes of an open session be

IDLE = "idle timeout"


def interval(timeouts):
    """Return the seconds between two checks that suffice for these timeouts."""
    return max(SHORTEST, min([timeout / CHECKS for timeout in timeouts] + [LONGEST]))


def expired(table, now):
    """Return the flows of a FlowTable whose timeout has passed; those that moved come last in its queues."""
    ended = []
    for service, flows in table.flows.services():
        still, moved = [], []
        for flow in flows:
            datagrams = flow.datagrams
            if datagrams != flow.datagrams_seen:
                flow.datagrams_seen, flow.last_moved = datagrams, now
                moved.append(flow)
                continue
            still.append(flow)
            if now - flow.last_moved >= flow.timeout:
                ended.append(flow)
        table.uncounted.extend(moved)
        if still and moved:
            table.flows.reorder(service, still + moved)
            table.alone.reorder(service, [flow for flow in still + moved if flow.upstream.alone])
    return ended
