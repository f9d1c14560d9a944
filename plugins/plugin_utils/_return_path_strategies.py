# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategies as objects: what on a backend sends its replies back through one proxy. Pure.

Each function takes where the backend meets the proxy, by IP version, and returns sections of a state document. Below
every lookup is a guard at the next priority, so that a reply without a route goes nowhere instead of past the proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Meeting
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY, Numbers
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import Port

STRATEGY_VARIABLE = "return_path_strategy"
STRATEGIES = MARK, ADDRESS, FWMARK_ACCEPT = "mark", "address", "fwmark_accept"

Sections = dict[str, list[dict[str, Any]]]


def by_mark(
    numbers: Numbers,
    proxy: str,
    number: int,
    meetings: Mapping[int, Meeting],
    mac: str | None = None,
    conntrack: bool = True,
) -> Sections:
    """Return the way back of packets that came from the proxy's MAC.

    :param number: the proxy's id.
    :param mac: as declared; None has it followed at the proxy's addresses.
    :param conntrack: whether the connection remembers the mark; else the socket does (``tcp_fwmark_accept``).
    :raises DerivationError: the id does not fit under the mask.
    """
    table, value = numbers.table_by_mark(number), numbers.mark(proxy, number)
    found: Sections = {"rules": [], "routes": [], "marks": []}
    for version, meeting in sorted(meetings.items()):
        match = {"family": FAMILY[version], "fwmark": value, "fwmask": numbers.mark_mask}
        found["rules"] += _guarded(numbers, match, table)
        found["routes"].append(_default(version, meeting, table))
    mark = {
        "name": proxy,
        "id": value,
        "mask": numbers.mark_mask,
        "mac": mac,
        "via": [str(meeting.proxy.address) for _version, meeting in sorted(meetings.items())],
    }
    found["marks"].append(mark if conntrack else {**mark, "conntrack": False})
    return found


def by_address(
    numbers: Numbers, number: int, meetings: Mapping[int, Meeting], udp_ports: Iterable[Port] = ()
) -> Sections:
    """Return the way back of what leaves from the address that the backend has for this proxy.

    :param udp_ports: UDP ports that no other proxy forwards to. A server that listens on all addresses does not say
        which one it answers from, so its replies are told by their port, and the route gives them the address.
    """
    table = numbers.table_by_address(number)
    found: Sections = {"rules": [], "routes": [], "addresses": []}
    for version, meeting in sorted(meetings.items()):
        address = str(meeting.backend.address)
        # Only what this host sends: a packet that comes in with its address is somebody else's affair.
        local = {"family": FAMILY[version], "iif": "lo"}
        found["rules"] += _guarded(numbers, {**local, "src": address}, table)
        for port in sorted(udp_ports, key=str):
            found["rules"] += _guarded(numbers, {**local, "ip_proto": "udp", "sport": port}, table)
        found["routes"].append({**_default(version, meeting, table), "src": address})
        found["addresses"].append({"family": FAMILY[version], "address": address, "dev": meeting.backend.device})
    return found


def _guarded(numbers: Numbers, match: Mapping[str, Any], table: int) -> list[dict[str, Any]]:
    return [
        {**match, "priority": numbers.priority, "action": "lookup", "table": table},
        {**match, "priority": numbers.priority_guard, "action": "unreachable"},
    ]


def _default(version: int, meeting: Meeting, table: int) -> dict[str, Any]:
    return {
        "family": FAMILY[version],
        "table": table,
        "dst": "default",
        "type": "unicast",
        "via": str(meeting.proxy.address),
        "dev": meeting.backend.device,
    }


def together(ways: Iterable[Sections]) -> Sections:
    """Return the objects of several ways as one set of sections."""
    found: Sections = {}
    for way in ways:
        for section, objects in way.items():
            found.setdefault(section, []).extend(objects)
    return found
