# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clients have the most open sessions, or have moved the most bytes with them. Pure.

An entry is one client in one service: {"service", "client", "sessions", "bytes_to_backend", "bytes_to_client",
"duration" (seconds, of its oldest session)}. As for the limits, a client is an IPv4 address or an IPv6 /64.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

Entry = dict[str, Any]

SESSIONS, BYTES = BY = ("sessions", "bytes")
SUMS = ("sessions", "bytes_to_backend", "bytes_to_client")


def greatest(entries: Iterable[Entry], by: str, most: int) -> list[Entry]:
    """Return the ``most`` greatest entries by one of BY, the greatest first."""
    return heapq.nlargest(most, entries, key=_sessions if by == SESSIONS else _bytes)


def added_up(entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry for those, of several workers, that are about the same client in the same service."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        key = entry["service"], entry["client"]
        if key in found:
            known = found[key]
            sums = {name: known[name] + entry[name] for name in SUMS}
            entry = {**entry, **sums, "duration": max(known["duration"], entry["duration"])}
        found[key] = entry
    return list(found.values())


def _sessions(entry):
    return entry["sessions"]


def _bytes(entry):
    return entry["bytes_to_backend"] + entry["bytes_to_client"]
