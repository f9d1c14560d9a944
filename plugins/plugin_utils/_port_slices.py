# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Port slices: the source ports of each proxy, so that no two proxies make the same connection. Pure.

Two proxies that forward one client to one backend must not use the same source port: the backend would take the second
connection for the first. So the kernel's port range is cut into N slices, and a proxy has slice (id modulo N), with the
smallest N for which all proxies have different slices. A slice therefore does not depend on the order of the proxies,
and adding or removing one changes the slices of the others only if N changes.
"""

from __future__ import annotations

from collections.abc import Collection

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import collect
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import proxy_id

# The default of net.ipv4.ip_local_port_range; a socket's own range has to be within it (ip(7)).
FIRST, LAST = 32768, 60999


def source_ports(fleet: Fleet, proxy: str) -> dict[str, int] | None:
    """Return the ``first`` and ``last`` source port of a proxy; None if it is the only one and may use all ports.

    While the id of another proxy is unknown because that host is down, the slice of the last run stays.
    """
    ids: dict[str, int] = {}
    for name in fleet.proxies:
        number = collect([], proxy_id, fleet, name) if fleet.services_of_proxy(name) else 0
        if number is None:
            return (fleet.known.get("forwarder") or {}).get("source_ports")
        if number:
            ids[name] = number
    # Two proxies with the same id are refused elsewhere.
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
