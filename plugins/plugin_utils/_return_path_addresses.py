# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""return_path_addresses: the addresses that a backend has for its proxies, for strategy ``address``. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address, HostAddress, usable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host, parse_address
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import find_name

ADDRESSES_VARIABLE = "return_path_addresses"

Dedicated = Mapping[str, tuple[HostAddress, ...]]


def read(backend: str, value: Any, proxies: Collection[str]) -> Dedicated:
    """Read ``return_path_addresses`` of a backend: a mapping from a proxy's name to an address or a list of them.

    :param proxies: the names in the group of proxies.
    :returns: the addresses by proxy, at most one per family.
    :raises DerivationError: with every fault of the variable.
    """
    where = f"{ADDRESSES_VARIABLE} of {backend}"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DerivationError([f"{where}: expected a mapping from a proxy's name to its addresses, found {value!r}"])
    errors = [
        f"{where}: {proxy!r} is not in the group of proxies ({', '.join(sorted(proxies)) or 'no hosts'}); correct the "
        "name, or remove it"
        for proxy in value
        if not find_name(str(proxy), proxies)
    ]
    by_proxy = {
        find_name(str(proxy), proxies) or str(proxy): _addresses(f"{where} for {proxy}", given, errors)
        for proxy, given in value.items()
    }
    owners: dict[Address, str] = {}
    for proxy, addresses in by_proxy.items():
        for one in addresses:
            if owners.setdefault(one.address, proxy) != proxy:
                errors.append(
                    f"{where}: {one.address} is given to {owners[one.address]} and to {proxy}; each proxy needs its own"
                )
    if errors:
        raise DerivationError(errors)
    return by_proxy


def _addresses(where: str, given: Any, errors: list[str]) -> tuple[HostAddress, ...]:
    by_version: dict[int, HostAddress] = {}
    for value in [given] if isinstance(given, str) else given or ():
        try:
            one = parse_address(value, where)
        except DerivationError as error:
            errors.extend(error.errors)
            continue
        if not usable(one) or one.address.is_unspecified:
            errors.append(f"{where}: {one.address} is not an address at which a proxy can reach it")
        first = by_version.setdefault(one.address.version, one)
        if first is not one:
            family = f"IPv{one.address.version}"
            errors.append(f"{where}: {first.address} and {one.address} are both {family}; give one address per family")
    return tuple(by_version.values())


def applied_addresses(document: Mapping[str, Any] | None) -> set[Address]:
    """Return the addresses that a return path document adds to its host, retiring ones included."""
    return {ip_interface(str(one["address"])).ip for one in (document or {}).get("addresses") or ()}


def placed(host: Host, addresses: Collection[HostAddress]) -> Host:
    """Return the host with ``addresses`` alone, each on the interface whose subnet it is in."""
    return replace(host, addresses=tuple(_placed(host, one) for one in addresses))


def _placed(host: Host, one: HostAddress) -> HostAddress:
    neighbour = next((own for own in host.of_family(one.address.version) if own.holds(one.address)), None)
    if neighbour is None:
        return one
    return HostAddress(one.address, neighbour.prefix, neighbour.device)
