# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of the inventory: addresses with their prefixes, MACs and ids, from variables and facts. Pure.

Addresses come from the first of these that has any:

1. the inventory (``l4proxy_address``),
2. the facts of the host's interfaces, or of one of them (``l4proxy_interface``): ``_facts``,
3. what an earlier run stored on the host that is being configured (``known``), so that a peer that is down keeps its
   address,
4. ``ansible_host``, if that is an address and not a name.

A MAC is only ever declared (``l4proxy_mac``). The one in the facts is wrong as soon as a network card is replaced or an
address moves to another machine. The keeper follows it in the neighbour table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, UnreadableVariable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import (
    Address,
    HostAddress,
    Interface,
    addresses_of,
    read_interfaces,
    usable,
)

# Variables of a host.
VARIABLES = ADDRESS, INTERFACE, MAC, ID = "l4proxy_address", "l4proxy_interface", "l4proxy_mac", "l4proxy_id"
# Registered by the roles: /proc/net/if_inet6 of a host whose facts were gathered in this run.
INET6 = "__l4proxy_inet6"


@dataclass(frozen=True)
class Host:
    """One inventory host.

    :ivar addresses: those at which other hosts may reach it.
    :ivar source: where they came from, for messages.
    :ivar mac: as declared, in lower case; None: it is followed.
    :ivar preferred: addresses that come before others of their family.
    :ivar interfaces: for messages; empty if its facts were not gathered.
    """

    name: str
    addresses: tuple[HostAddress, ...] = ()
    source: str = "nothing"
    proxy_id: int | None = None
    mac: str | None = None
    preferred: frozenset[str] = field(default_factory=frozenset)
    interfaces: tuple[Interface, ...] = ()

    def only(self, address: Address) -> Host:
        """Return the host with ``address`` alone in that family, with what the facts say of it."""
        mine = [one for one in self.addresses if one.address == address] or [HostAddress(address)]
        others = [one for one in self.addresses if one.address.version != address.version]
        return replace(self, addresses=(*mine, *others))

    def without(self, addresses: Collection[Address]) -> Host:
        """Return the host without ``addresses``."""
        return replace(self, addresses=tuple(one for one in self.addresses if one.address not in addresses))

    def of_family(self, version: int) -> list[HostAddress]:
        """Return the addresses of IP version 4 or 6, primary ones first, in a stable order.

        One without a subnet (/32, /128) comes last: facts may list it first, but it is a service's, not the host's.
        """
        mine = [address for address in self.addresses if address.address.version == version]

        def order(one: HostAddress) -> tuple[bool, bool, bool, int]:
            alone = one.prefix == one.address.max_prefixlen
            return alone, one.secondary, str(one.address) not in self.preferred, int(one.address)

        return sorted(mine, key=order)

    def listed(self) -> str:
        """Return its addresses, and those that were left out with the reason, for messages."""
        shown = [
            f"{one.address}/{one.prefix}" if one.prefix is not None else str(one.address) for one in self.addresses
        ]
        left_out = [f"{address}, which is {why}" for one in self.interfaces for address, why in one.left_out]
        return ", ".join(shown + left_out) or f"interfaces {', '.join(one.name for one in self.interfaces)}"


def parse_address(value: Any, where: str) -> HostAddress:
    """Read an address, with or without prefix length; ``where`` names it in the error."""
    try:
        interface = ip_interface(str(value))
    except ValueError as error:
        raise DerivationError([f"{where}: {value!r} is not an IP address: {error}"]) from None
    prefix = interface.network.prefixlen if "/" in str(value) else None
    return HostAddress(interface.ip, prefix)


def _literal(value: Any) -> HostAddress | None:
    try:
        return HostAddress(ip_address(str(value)))
    except ValueError:
        return None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _declared(name: str, variables: Mapping[str, Any], facts: list[HostAddress]) -> list[HostAddress]:
    """Return the declared addresses, with the interface from the facts and the declared prefix length, if any.

    Facts may have an address without its subnet (DHCPv6 gives a /128), or on several interfaces.
    """
    by_address = {one.address: one for one in sorted(facts, key=lambda one: -(one.prefix or 0))}
    chosen = []
    for value in _as_list(variables.get(ADDRESS)):
        one = parse_address(value, f"{ADDRESS} of {name}")
        fact = by_address.get(one.address, one)
        chosen.append(fact if one.prefix is None else replace(fact, prefix=one.prefix))
    return chosen


def _of_interface(name: str, wanted: Any, interfaces: Sequence[Interface]) -> list[HostAddress]:
    """Return the addresses of the interface that the inventory names, or of all interfaces.

    :raises DerivationError: the host has no such interface, or no usable address on it.
    """
    if wanted is not None and (not isinstance(wanted, str) or not wanted):
        raise DerivationError([f"{INTERFACE} of {name}: {wanted!r} is not the name of an interface, such as eth1"])
    addresses = addresses_of(interfaces, wanted if interfaces else None)
    if addresses or not interfaces or wanted is None:
        return addresses or []
    lacks = f"interface {wanted!r}" if addresses is None else f"address on {wanted!r} at which other hosts can reach it"
    raise DerivationError([f"{INTERFACE} of {name}: {name} has no {lacks}; it has {_listed(interfaces)}"])


def _listed(interfaces: Sequence[Interface]) -> str:
    """Return interfaces with their addresses, for messages."""
    shown = []
    for interface in interfaces:
        addresses = [str(one.address) for one in interface.addresses]
        addresses += [f"{address}, which is {reason}" for address, reason in interface.left_out]
        shown.append(f"{interface.name} ({', '.join(addresses)})" if addresses else interface.name)
    return ", ".join(shown)


def _declared_id(name: str, variables: Mapping[str, Any]) -> int | None:
    value = variables.get(ID)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 255:
        raise DerivationError([f"{ID} of {name}: {value!r} is not a proxy id (a whole number from 1 to 255)"])
    return number


def host_from_variables(name: str, variables: Mapping[str, Any], known: Sequence[HostAddress] = ()) -> Host:
    """Return a :class:`Host` from its variables, its facts and the addresses that an earlier run stored.

    :param variables: ``hostvars[name]``. ``__l4proxy_inet6`` is the host's ``/proc/net/if_inet6``, if that was read.
    :param known: addresses that an earlier run stored on the host that is being configured.
    :raises DerivationError: a declared value is not an address or an id, the interface does not exist, or the host
        lacks the command that facts are read with.
    """
    all_facts = variables.get("ansible_facts") or {}
    inet6 = variables.get(INET6)
    interfaces = read_interfaces(all_facts, inet6 or "")
    wanted = variables.get(INTERFACE)
    facts = _of_interface(name, wanted, interfaces)
    try:
        declared = _declared(name, variables, addresses_of(interfaces) or [])
    except UnreadableVariable as error:
        # If the host did not answer, the facts that the template uses are missing.
        if interfaces or not known:
            raise UnreadableVariable(error.what, error.reason, _missing_facts(name, interfaces)) from error
        declared = []
    families = {one.address.version for one in declared}
    addresses = declared + [one for one in facts if one.address.version not in families]
    source = f"{ADDRESS} and facts" if declared else "facts"
    if not addresses and inet6 is not None and not interfaces:
        raise DerivationError([_without_ip(name)])
    if not addresses and known:
        addresses, source = list(known), "the last run"
    reached_at = variables.get("ansible_host", name)
    if not addresses and wanted is None:
        literal = _literal(reached_at)
        addresses, source = ([literal], "ansible_host") if literal and usable(literal) else ([], "nothing")
    return Host(
        name=name,
        addresses=tuple(addresses),
        source=source,
        proxy_id=_declared_id(name, variables),
        mac=str(variables.get(MAC) or "").lower() or None,
        preferred=frozenset({str(reached_at), *_default_addresses(all_facts, interfaces)}),
        interfaces=tuple(interfaces),
    )


def _default_addresses(facts: Mapping[str, Any], interfaces: Sequence[Interface]) -> Iterator[str]:
    """Yield the source addresses of the default routes; for one that is left out, the others of its interface."""
    for version in (4, 6):
        default = facts.get(f"default_ipv{version}") or {}
        yield str(default.get("address", ""))
        for interface in interfaces:
            if any(str(address) == default.get("address") for address, _reason in interface.left_out):
                yield from (str(one.address) for one in interface.addresses if one.address.version == version)


def _missing_facts(name: str, interfaces: Sequence[Interface]) -> str:
    """Return what to do about a template that uses missing facts."""
    if interfaces:
        return f"; {name} has {_listed(interfaces)}"
    return (
        f"; the facts of {name} could not be gathered, and no earlier run has stored its address: start {name}, or "
        "write its address as a value"
    )


def _without_ip(name: str) -> str:
    return (
        f"the addresses of {name} cannot be read, because it lacks the command ip: install the package iproute2 on "
        f"{name}, or declare {ADDRESS} in its host_vars, with a prefix length"
    )
