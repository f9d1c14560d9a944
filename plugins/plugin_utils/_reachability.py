# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At which addresses a proxy reaches a backend, and on which shared subnet. Pure.

Refused are a proxy as its own backend, a host without a usable address, and two hosts that share no subnet.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _return_path_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, raise_all
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_auto import strategy_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import ADDRESS, STRATEGY_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import BackendRef
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet, shared_subnets

# The usual prefix length of a link, for an example.
USUAL_PREFIX = {4: 24, 6: 64}


def backend_addresses(fleet: Fleet, proxy: str, ref: BackendRef) -> dict[int, str]:
    """Return the addresses at which a proxy reaches a backend, by IP version."""
    if ref.host is None:
        address = ip_address(str(ref.address))
        _refuse_own_address(fleet, proxy, ref, [address])
        return {address.version: str(address)}
    return {version: str(one.backend.address) for version, one in subnets_of_backend(fleet, proxy, ref).items()}


def subnets_of_backend(fleet: Fleet, proxy: str, ref: BackendRef) -> dict[int, SharedSubnet]:
    """Return the subnets that a proxy shares with a backend as one service names it, by IP version.

    A backend that is only an address may share none. An inventory host has to, so that its return path can be set.

    :raises DerivationError: an address is unknown, or an inventory host shares no subnet with the proxy.
    """
    given = ip_address(ref.address) if ref.address is not None else None
    _refuse_own_address(fleet, proxy, ref, [given] if given is not None else [])
    proxy_host = fleet.host(proxy)
    backend_host = seen_from(fleet, proxy, ref.host) if ref.host is not None else Host(ref.label)
    if given is not None:
        raise_all(_wrong_address(fleet, proxy, ref, backend_host))
        backend_host = backend_host.only(given)
    raise_all(_no_address(host, fleet.name) for host in (proxy_host, backend_host) if not host.addresses)
    # An address that both hosts have (docker0 and the like) does not lead from one to the other.
    distinct = backend_host.without(fleet.own_addresses(proxy))
    if not distinct.addresses:
        _refuse_own_address(fleet, proxy, ref, [one.address for one in backend_host.addresses])
    subnets = shared_subnets(proxy_host, distinct)
    if ref.host is not None and (not subnets or (given is not None and given.version not in subnets)):
        raise DerivationError([_no_shared_subnet(proxy_host, backend_host)])
    return subnets


def subnets_of_host(fleet: Fleet, proxy: str, backend: str) -> dict[int, SharedSubnet]:
    """Return the subnets that a proxy shares with a backend host, by IP version, over all services that join them.

    :raises DerivationError: an address is unknown, they share no subnet, or two subnets of one family.
    """
    subnets: dict[int, SharedSubnet] = {}
    for ref in [ref for service in fleet.services_of_proxy(proxy) for ref in service.backends]:
        if ref.host != backend:
            continue
        for version, subnet in subnets_of_backend(fleet, proxy, ref).items():
            if subnets.setdefault(version, subnet).proxy != subnet.proxy:
                raise DerivationError([_two_links(proxy, backend, subnets[version], subnet)])
    return subnets


def all_shared_subnets(fleet: Fleet, proxy: str) -> list[SharedSubnet]:
    """Return the subnets that a proxy shares with the backends of all its services, each once."""
    found = [
        subnet
        for service in fleet.services_of_proxy(proxy)
        for ref in service.backends
        for subnet in subnets_of_backend(fleet, proxy, ref).values()
    ]
    return list(dict.fromkeys(found))


def seen_from(fleet: Fleet, proxy: str, backend: str) -> Host:
    """Return a backend with the addresses at which one proxy reaches it.

    :raises DerivationError: its strategy needs an address for this proxy, and it has none.
    """
    host = fleet.host(backend)
    if strategy_of(fleet, backend).strategy != ADDRESS:
        return host
    addresses = fleet.return_path_addresses(backend).get(proxy)
    if not addresses:
        raise DerivationError([_no_address_for(proxy, backend)])
    return _return_path_addresses.placed(host, addresses)


def _refuse_own_address(fleet: Fleet, proxy: str, ref: BackendRef, addresses: Iterable[Address]) -> None:
    """Refuse the proxy itself as a backend: the rules for its replies would match all that the proxy sends."""
    own = fleet.own_addresses(proxy)
    host = f" ({ref.host})" if ref.host is not None else ""
    raise_all(
        f"{ref.path}: {address}{host} is an address of proxy {proxy} itself, and a proxy cannot be its own backend; "
        f"use the address of another host, or, to make {proxy} a backend of other proxies, its name: "
        f"{{host: {proxy}, port: {ref.port}}}"
        for address in addresses
        if address in own
    )


def _wrong_address(fleet: Fleet, proxy: str, ref: BackendRef, seen: Host) -> Iterable[str]:
    """Yield the fault of an address that is not one of those a backend has for the proxy (strategy address)."""
    if ref.host is None or strategy_of(fleet, ref.host).strategy != ADDRESS:
        return
    addresses = [str(one.address) for one in seen.addresses]
    if ref.address not in addresses:
        yield (
            f"{ref.path}.address: {proxy} does not reach {ref.host} at {ref.address}: with return path strategy "
            f"{ADDRESS} it uses {', '.join(addresses)}; remove the key"
        )


def _no_address_for(proxy: str, backend: str) -> str:
    return (
        f"{STRATEGY_VARIABLE} of {backend} is {ADDRESS}, but {ADDRESSES_VARIABLE} has no address for proxy {proxy}; "
        f'write for example {ADDRESSES_VARIABLE}: {{{proxy}: ["192.0.2.121", "2001:db8::121"]}} in the host_vars of '
        f"{backend}, with unused addresses of the subnet it shares with {proxy}"
    )


def _no_address(host: Host, configured_host: str) -> str:
    if host.interfaces:
        return (
            f"{host.name} has no address at which other hosts can reach it, only {host.listed()}; give it an address "
            "in a subnet of the other end"
        )
    return (
        f"the address of {host.name} is unknown to {configured_host}: its facts could not be gathered, and no earlier "
        f"run has stored it there; start {host.name}, or declare l4proxy_address (for a proxy l4proxy_mac too) in its "
        "host_vars"
    )


def _no_shared_subnet(proxy: Host, backend: Host) -> str:
    alone = [one for host in (proxy, backend) for one in host.addresses if one.prefix == one.address.max_prefixlen]
    example = f'"{alone[0].address}/{USUAL_PREFIX[alone[0].address.version]}"' if alone else ""
    prefix = f", with the prefix length of its link ({example})" if example else ""
    return (
        f"proxy {proxy.name} ({proxy.listed()}) shares no subnet with backend {backend.name} ({backend.listed()}): "
        "every return path strategy needs both on one link; if these are the wrong addresses, declare "
        f"l4proxy_interface or l4proxy_address{prefix}, else move one of the hosts"
    )


def _two_links(proxy: str, backend: str, first: SharedSubnet, second: SharedSubnet) -> str:
    paths = " and ".join(f"{one.backend.address} from {one.proxy.address}" for one in (first, second))
    return (
        f"proxy {proxy} would reach backend {backend} on two links ({paths}), but a backend has one return path per "
        "proxy and family; use addresses of one subnet for both"
    )
