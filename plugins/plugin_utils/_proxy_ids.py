# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The id of a proxy: l4proxy_id, or the host part of its address. It decides marks, tables, source ports. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, raise_all
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import all_shared_subnets
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet

# An id has to fit under the mask 0xff, so only a host part of eight bits or fewer can be one.
SHORTEST_PREFIX = {4: 24, 6: 120}


def proxy_id(fleet: Fleet, proxy: str, subnets: Iterable[SharedSubnet] | None = None) -> int:
    """Return the id of a proxy.

    :param subnets: those it shares with its backends, as far as they are known; None: all of them.
    :raises DerivationError: none is declared, and none can be derived.
    """
    if subnets is None:
        subnets = all_shared_subnets(fleet, proxy)
    host = fleet.host(proxy)
    number = host.proxy_id if host.proxy_id is not None else derived_id(list(subnets))
    if number is None:
        addresses = ", ".join(str(one.address) for one in host.addresses) or "unknown"
        raise DerivationError(
            [
                f"proxy {proxy} needs l4proxy_id (1 to 255) in its host_vars: no id can be derived from its address "
                f"({addresses}), because no subnet that it shares with its backends is /24 (IPv6: /120) or longer, or "
                "because they give different ids"
            ]
        )
    return number


def derived_id(subnets: Sequence[SharedSubnet]) -> int | None:
    """Return the host part of the proxy's address in the subnets it shares with its backends, IPv4 first.

    :returns: an id from 1 to 255, or None if no prefix is long enough, or if the subnets give different ids.
    """
    for version, shortest in SHORTEST_PREFIX.items():
        ids = set()
        for subnet in subnets:
            address = subnet.proxy.address
            if address.version == version and subnet.prefix is not None and subnet.prefix >= shortest:
                ids.add(int(address) & ((1 << (address.max_prefixlen - subnet.prefix)) - 1))
        if len(ids) == 1 and 1 <= min(ids) <= 255:
            return ids.pop()
    return None


def refuse_duplicate_ids(ids: Mapping[str, int]) -> None:
    """Refuse two proxies with the same id.

    :raises DerivationError: naming both and the remedy.
    """
    first: dict[int, str] = {}
    raise_all(
        f"proxies {first[number]} and {proxy} have the same id, {number}, so backends cannot tell them apart: set "
        "l4proxy_id (1 to 255) in the host_vars of one of them"
        for proxy, number in ids.items()
        if first.setdefault(number, proxy) != proxy
    )
