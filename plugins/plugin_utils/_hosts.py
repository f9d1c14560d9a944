# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as the derivation sees them: addresses with their prefixes, MACs and ids, from variables and facts.

Pure: variables and facts in, values out. Where an address comes from, best first:

1. what the inventory declares (``l4proxy_address``),
2. the facts of the host's interfaces (of one of them: ``l4proxy_interface``), see ``_facts``,
3. what the host that is being configured was told by an earlier run (``known``), so that a peer that is down
   keeps the address it had,
4. ``ansible_host``, where that is an address and not a name.

A MAC is only ever declared (``l4proxy_mac``). That of the facts is true until a network card is replaced or an address
moves to another machine; who has to know it follows it in its neighbour table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import (
    Address,
    HostAddress,
    Interface,
    addresses_of,
    read_interfaces,
    usable,
)

# A return path id has to fit under the mask 0xff, so only a host part of eight bits or fewer can serve as one.
ID_PREFIX = {4: 24, 6: 120}

# What the inventory may say of a host.
VARIABLES = ADDRESS, INTERFACE, MAC, ID = "l4proxy_address", "l4proxy_interface", "l4proxy_mac", "l4proxy_id"
# A fact of the roles' own: /proc/net/if_inet6 of a host that was asked in this run.
INET6 = "__l4proxy_inet6"


class DerivationError(ValueError):
    """Everything that is wrong with the variables of one run.

    :ivar errors: one sentence for each fault, in the order found.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("\n".join(self.errors))


class Unreadable(DerivationError):
    """A variable whose template cannot be evaluated.

    :param what: the variable and its host: "l4proxy_address of b".
    :ivar reason: what the template engine says.
    """

    def __init__(self, what: str, reason: object, advice: str = "") -> None:
        self.what, self.reason = what, str(reason)
        super().__init__([f"{what} cannot be read: {reason}{advice}"])


@dataclass(frozen=True)
class Meeting:
    """Where a proxy and a backend share a subnet: the address of each there."""

    proxy: HostAddress
    backend: HostAddress

    @property
    def prefix(self) -> int | None:
        """The length of the shared prefix in bits, from whichever side has the other in its subnet."""
        return self.proxy.prefix if self.proxy.holds(self.backend.address) else self.backend.prefix


@dataclass(frozen=True)
class Host:
    """One inventory host.

    :ivar addresses: candidates, by family's version number.
    :ivar source: where they came from, in words, for messages.
    :ivar mac: as declared, in lower case; else it is followed.
    :ivar preferred: addresses that come before others of their kind.
    :ivar interfaces: those of a host that was asked, for messages.
    """

    name: str
    addresses: tuple[HostAddress, ...] = ()
    source: str = "nothing"
    proxy_id: int | None = None
    mac: str | None = None
    preferred: frozenset[str] = field(default_factory=frozenset)
    interfaces: tuple[Interface, ...] = ()

    def only(self, address: Address) -> Host:
        """Return the host as if ``address`` were all it had in that family, with what facts tell of it."""
        mine = [one for one in self.addresses if one.address == address] or [HostAddress(address)]
        others = [one for one in self.addresses if one.address.version != address.version]
        return replace(self, addresses=(*mine, *others))

    def without(self, addresses: Collection[Address]) -> Host:
        """Return the host as if it had none of ``addresses``."""
        return replace(self, addresses=tuple(one for one in self.addresses if one.address not in addresses))

    def of_family(self, version: int) -> list[HostAddress]:
        """Return the addresses of IP version 4 or 6, primary ones first, in a stable order.

        One without a subnet (/32, /128) comes last: facts may list it first, and it is some service's, not the host's.
        """
        mine = [address for address in self.addresses if address.address.version == version]

        def order(one: HostAddress) -> tuple[bool, bool, bool, int]:
            alone = one.prefix == one.address.max_prefixlen
            return alone, one.secondary, str(one.address) not in self.preferred, int(one.address)

        return sorted(mine, key=order)


def parse_address(value: Any, where: str) -> HostAddress:
    """Read an address with or without its prefix length; ``where`` names it in the error."""
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
    """Return the declared addresses: on the interface that facts say, with the declared prefix length if there is one.

    Facts may only know an address without its subnet (DHCPv6 gives a /128), and one on several interfaces.
    """
    by_address = {one.address: one for one in sorted(facts, key=lambda one: -(one.prefix or 0))}
    chosen = []
    for value in _as_list(variables.get(ADDRESS)):
        one = parse_address(value, f"{ADDRESS} of {name}")
        fact = by_address.get(one.address, one)
        chosen.append(fact if one.prefix is None else replace(fact, prefix=one.prefix))
    return chosen


def _of_interface(name: str, wanted: Any, interfaces: Sequence[Interface]) -> list[HostAddress]:
    """Return the addresses of the interface that the inventory names, of all where it names none.

    :raises DerivationError: the host has no such interface, or it has no address.
    """
    if wanted is not None and (not isinstance(wanted, str) or not wanted):
        raise DerivationError([f"{INTERFACE} of {name}: {wanted!r} is not the name of an interface, such as eth1"])
    found = addresses_of(interfaces, wanted if interfaces else None)
    if found or not interfaces or wanted is None:
        return found or []
    has = ", ".join(_shown(one) for one in interfaces)
    what = "has no such interface" if found is None else "has no address there at which others could reach it"
    raise DerivationError([f"{INTERFACE} of {name}: {wanted!r}, but {name} {what}; it has {has}"])


def _shown(interface: Interface) -> str:
    addresses = [str(one.address) for one in interface.addresses]
    addresses += [f"{address}, which is {reason}" for address, reason in interface.left_out]
    return f"{interface.name} ({', '.join(addresses)})" if addresses else interface.name


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
    """Build a :class:`Host` from its variables, its facts and what was known of it before.

    :param variables: ``hostvars[name]``. ``__l4proxy_inet6`` is the host's ``/proc/net/if_inet6``, if it was asked for.
    :param known: addresses an earlier run left on the host that is being configured.
    :raises DerivationError: a declared value that is not an address or not an id, an interface that is not there, or a
        host without the command that facts are read with.
    """
    told = variables.get("ansible_facts") or {}
    inet6 = variables.get(INET6)
    interfaces = read_interfaces(told, inet6 or "")
    wanted = variables.get(INTERFACE)
    facts = _of_interface(name, wanted, interfaces)
    try:
        declared = _declared(name, variables, addresses_of(interfaces) or [])
    except Unreadable as error:
        # Where the host did not answer, the facts in the template are missing.
        if interfaces or not known:
            raise Unreadable(error.what, error.reason, _missing_facts(name, interfaces)) from error
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
        preferred=frozenset({str(reached_at), *_default_addresses(told, interfaces)}),
        interfaces=tuple(interfaces),
    )


def _default_addresses(told: Mapping[str, Any], interfaces: Sequence[Interface]) -> Iterator[str]:
    """Yield the addresses that default routes prefer; in place of one that is left out, those of its interface."""
    for version in (4, 6):
        default = told.get(f"default_ipv{version}") or {}
        yield str(default.get("address", ""))
        for interface in interfaces:
            if any(str(address) == default.get("address") for address, _reason in interface.left_out):
                yield from (str(one.address) for one in interface.addresses if one.address.version == version)


def _missing_facts(name: str, interfaces: Sequence[Interface]) -> str:
    """Say what to do about a template that wants facts which are not there."""
    if interfaces:
        return f"; {name} has {', '.join(_shown(one) for one in interfaces)}"
    return (
        f"; {name} could not be asked for its facts, and no earlier run left its address behind: start {name}, or "
        "write its address as a value"
    )


def _without_ip(name: str) -> str:
    return (
        f"the addresses of {name} cannot be read, because the command ip is missing there: install the package "
        f"iproute2 on {name}, or declare {ADDRESS} in its host_vars, with a prefix length"
    )


def meet(proxy: Host, backend: Host, version: int) -> Meeting | None:
    """Find the subnet that a proxy and a backend share, and the address of each in it.

    Two hosts that both carry one address (``docker0`` and its like) do not meet there. Among several shared subnets
    the one with the backend's preferred address (``ansible_host``, then the default route's) wins.
    """
    for mine in backend.of_family(version):
        for other in proxy.of_family(version):
            if mine.address == other.address:
                continue
            if mine.holds(other.address) or other.holds(mine.address):
                return Meeting(proxy=other, backend=mine)
    return None


def derived_id(meetings: Sequence[Meeting]) -> int | None:
    """Derive a proxy id from the host part of the address the proxy meets its backends with, IPv4 first.

    :returns: an id from 1 to 255, or None where no shared prefix is long enough or the meetings disagree.
    """
    for version, shortest in ID_PREFIX.items():
        ids = set()
        for meeting in meetings:
            address = meeting.proxy.address
            if address.version == version and meeting.prefix is not None and meeting.prefix >= shortest:
                ids.add(int(address) & ((1 << (address.max_prefixlen - meeting.prefix)) - 1))
        if len(ids) == 1 and 1 <= min(ids) <= 255:
            return ids.pop()
    return None
