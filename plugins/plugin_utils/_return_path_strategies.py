# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The return path strategies: the rules, routes, marks and addresses of each on a backend, for one proxy. Pure.

To add one: its name and a function here, its sysctls and what refuses it in _return_path, and when ``auto`` chooses it
in _return_path_auto. Each function takes the subnets that backend and proxy share, by IP version, and returns sections
of a state document. Each lookup rule has a guard rule at the next priority, so that a reply without a route is dropped
instead of bypassing the proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY, Numbers
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import Port
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet

STRATEGY_VARIABLE = "return_path_strategy"
STRATEGIES = MARK, ADDRESS, FWMARK_ACCEPT = "mark", "address", "fwmark_accept"

Sections = dict[str, list[dict[str, Any]]]


def by_mark(
    numbers: Numbers,
    proxy: str,
    number: int,
    subnets: Mapping[int, SharedSubnet],
    mac: str | None = None,
    conntrack: bool = True,
    last_sender: Sequence[str] = (),
) -> Sections:
    """Return the objects for replies to packets that came from the proxy's MAC.

    :param number: the proxy's id.
    :param mac: as declared; None: the keeper follows it at the proxy's addresses.
    :param conntrack: whether the connection keeps the mark; else the socket does (``tcp_fwmark_accept``).
    :param last_sender: ports whose connections follow their last sender.
    :raises DerivationError: the id does not fit under the mask.
    """
    table, value = numbers.table_by_mark(number), numbers.mark(proxy, number)
    sections: Sections = {"rules": [], "routes": [], "marks": []}
    for version, subnet in sorted(subnets.items()):
        match = {"family": FAMILY[version], "fwmark": value, "fwmask": numbers.mark_mask}
        sections["rules"] += _guarded(numbers, match, table)
        sections["routes"].append(default_route(version, subnet, table))
    mark = {
        "name": proxy,
        "id": value,
        "mask": numbers.mark_mask,
        "mac": mac,
        "via": [str(subnet.proxy.address) for _version, subnet in sorted(subnets.items())],
    }
    more: dict[str, Any] = {} if conntrack else {"conntrack": False}
    more |= {"last_sender": list(last_sender)} if last_sender else {}
    sections["marks"].append({**mark, **more})
    return sections


def by_address(
    numbers: Numbers, number: int, subnets: Mapping[int, SharedSubnet], udp_ports: Iterable[Port] = ()
) -> Sections:
    """Return the objects for packets from the address that the backend has for this proxy.

    :param udp_ports: UDP ports that no other proxy forwards to. A server that listens on all addresses does not choose
        the source of a reply, so a rule matches the port, and the route sets the source address.
    """
    table = numbers.table_by_address(number)
    sections: Sections = {"rules": [], "routes": [], "addresses": []}
    for version, subnet in sorted(subnets.items()):
        address = str(subnet.backend.address)
        # Only for packets that this host sends, not for those it receives from its own address.
        local = {"family": FAMILY[version], "iif": "lo"}
        sections["rules"] += _guarded(numbers, {**local, "src": address}, table)
        for port in sorted(udp_ports, key=str):
            sections["rules"] += _guarded(numbers, {**local, "ip_proto": "udp", "sport": port}, table)
        sections["routes"].append({**default_route(version, subnet, table), "src": address})
        sections["addresses"].append({"family": FAMILY[version], "address": address, "dev": subnet.backend.device})
    return sections


def _guarded(numbers: Numbers, match: Mapping[str, Any], table: int) -> list[dict[str, Any]]:
    return [
        {**match, "priority": numbers.priority, "action": "lookup", "table": table},
        {**match, "priority": numbers.priority_guard, "action": "unreachable"},
    ]


def default_route(version: int, subnet: SharedSubnet, table: int) -> dict[str, Any]:
    """Return the route to a proxy in one of the tables."""
    return {
        "family": FAMILY[version],
        "table": table,
        "dst": "default",
        "type": "unicast",
        "via": str(subnet.proxy.address),
        "dev": subnet.backend.device,
    }


def merged(parts: Iterable[Sections]) -> Sections:
    """Return the objects of several return paths as one set of sections."""
    sections: Sections = {}
    for part in parts:
        for section, objects in part.items():
            sections.setdefault(section, []).extend(objects)
    return sections
