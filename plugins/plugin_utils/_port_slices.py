# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The source ports of each proxy, out of the kernel's own range, so that no two make the same connection. Pure.

Two proxies that forward one client to one backend must not use one source port: the backend would take the second
connection for the first. Each proxy has a slice for itself, told by its id: the range is cut into the fewest slices in
which the ids, divided by their number, leave different remainders. So a slice is not a position in a list, and a proxy
that comes or goes moves the others only where two would share a slice.
"""

from __future__ import annotations

from collections.abc import Collection

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._derivation import collect, proxy_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet

# net.ipv4.ip_local_port_range as Linux has it; a socket's own range only counts within that (ip(7)).
FIRST, LAST = 32768, 60999


def source_ports(fleet: Fleet, proxy: str) -> dict[str, int] | None:
    """Return ``first`` and ``last`` source port of a proxy; None where it is the only one and may use all.

    While the id of another proxy is unknown, because that one is down, the slice of the last run stays.
    """
    ids: dict[str, int] = {}
    for name in fleet.proxies:
        number = collect([], proxy_id, fleet, name) if fleet.services_of_proxy(name) else 0
        if number is None:
            return (fleet.known.get("forwarder") or {}).get("source_ports")
        if number:
            ids[name] = number
    # Two proxies with one id are refused elsewhere, with a sentence.
    if len(ids) < 2 or proxy not in ids or len(set(ids.values())) < len(ids):
        return None
    first, last = slice_of(ids[proxy], ids.values())
    return {"first": first, "last": last}


def slice_of(number: int, ids: Collection[int]) -> tuple[int, int]:
    """Return the first and the last port for id ``number`` among ``ids``, all different."""
    slices = len(ids)
    while len({one % slices for one in ids}) < len(ids):
        slices += 1
    size = (LAST - FIRST + 1) // slices
    first = FIRST + size * (number % slices)
    return first, first + size - 1
