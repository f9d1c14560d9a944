# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as the derivation sees them: addresses with their prefixes, MACs and ids, from variables and facts.

Pure: variables and facts in, values out. Where an address comes from, best first:

1. what the inventory declares (``l4proxy_address``),
2. the facts of the host's interfaces,
3. what the host that is being configured was told by an earlier run (``known``), so that a peer that is down
   keeps the address it had,
4. ``ansible_host``, where that is an address and not a name.

A MAC is only ever declared (``l4proxy_mac``). That of the facts is true until a network card is replaced or an address
moves to another machine; who has to know it follows it in its neighbour table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Union

# A return path id has to fit under the mask 0xff, so only a host part of eight bits or fewer can serve as one.
ID_PREFIX = {4: 24, 6: 120}

Address = Union[IPv4Address, IPv6Address]


class DerivationError(ValueError):
    """Everything that is wrong with the variables of one run.

    :ivar errors: one sentence for each fault, in the order found.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class HostAddress:
    """One address of a host. ``prefix`` and ``device`` are None where only the address is known."""

    address: Address
    prefix: int | None = None
    device: str | None = None
    secondary: bool = False

    def holds(self, other: Address) -> bool:
        """Say whether ``other`` is on the link this address is on, as far as its prefix tells."""
        if self.prefix is None or other.version != self.address.version:
            return False
        return other in ip_network((self.address, self.prefix), strict=False)


@dataclass(frozen=True)
class Meeting:
    """Where a proxy and a backend share a subnet: the address of each there."""

    proxy: HostAddress
    backend: HostAddress

    @property
    def prefix(self) -> int | None:
        """The length of the shared prefix in bits, from whichever side tells it."""
        return self.proxy.prefix if self.proxy.prefix is not None else self.backend.prefix


@dataclass(frozen=True)
class Host:
    """One inventory host.

    :ivar addresses: candidates, by family's version number.
    :ivar source: where they came from, in words, for messages.
    :ivar mac: as declared, in lower case; else it is followed.
    """

    name: str
    addresses: tuple[HostAddress, ...] = ()
    source: str = "nothing"
    proxy_id: int | None = None
    mac: str | None = None
    preferred: frozenset[str] = field(default_factory=frozenset)

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


def usable(address: HostAddress) -> bool:
    """Say whether hosts can meet at an address: not where it means this host or this link."""
    return not (address.address.is_loopback or address.address.is_link_local or address.address.is_multicast)


def _prefix_of(entry: Mapping[str, Any]) -> int:
    if entry.get("prefix") not in (None, ""):
        return int(entry["prefix"])
    return ip_network(f"0.0.0.0/{entry['netmask']}").prefixlen


def fact_addresses(facts: Mapping[str, Any]) -> list[HostAddress]:
    """Read every usable address from the network facts of one host.

    :param facts: ``ansible_facts`` as the ``network`` subset of ``ansible.builtin.setup`` leaves it.
    """
    found = []
    for entry in facts.values():
        if not isinstance(entry, Mapping) or "device" not in entry:
            continue
        device = str(entry["device"])
        first = entry.get("ipv4")
        rows = [(row, False) for row in ([first] if isinstance(first, Mapping) else first or [])]
        rows += [(row, True) for row in entry.get("ipv4_secondaries") or []]
        rows += [(row, False) for row in entry.get("ipv6") or []]
        found += [
            HostAddress(ip_address(str(row["address"])), _prefix_of(row), device, secondary) for row, secondary in rows
        ]
    return [address for address in found if usable(address)]


def _declared(name: str, variables: Mapping[str, Any], facts: list[HostAddress]) -> list[HostAddress]:
    by_address = {one.address: one for one in facts}
    chosen = []
    for value in _as_list(variables.get("l4proxy_address")):
        one = parse_address(value, f"l4proxy_address of {name}")
        chosen.append(by_address.get(one.address, one))
    return chosen


def _declared_id(name: str, variables: Mapping[str, Any]) -> int | None:
    value = variables.get("l4proxy_id")
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 255:
        raise DerivationError([f"l4proxy_id of {name}: {value!r} is not a proxy id (a whole number from 1 to 255)"])
    return number


def host_from_variables(name: str, variables: Mapping[str, Any], known: Sequence[HostAddress] = ()) -> Host:
    """Build a :class:`Host` from its variables, its facts and what was known of it before.

    :param variables: ``hostvars[name]``.
    :param known: addresses an earlier run left on the host that is being configured.
    :raises DerivationError: a declared value that is not an address or not an id.
    """
    facts_found = variables.get("ansible_facts") or {}
    facts = fact_addresses(facts_found)
    declared = _declared(name, variables, facts)
    families = {one.address.version for one in declared}
    addresses = declared + [one for one in facts if one.address.version not in families]
    source = "l4proxy_address and facts" if declared else "facts"
    if not addresses and known:
        addresses, source = list(known), "the last run"
    if not addresses:
        literal = _literal(variables.get("ansible_host", name))
        addresses, source = ([literal], "ansible_host") if literal and usable(literal) else ([], "nothing")
    preferred = {str(variables.get("ansible_host", ""))}
    preferred |= {str((facts_found.get(key) or {}).get("address", "")) for key in ("default_ipv4", "default_ipv6")}
    return Host(
        name=name,
        addresses=tuple(addresses),
        source=source,
        proxy_id=_declared_id(name, variables),
        mac=str(variables.get("l4proxy_mac") or "").lower() or None,
        preferred=frozenset(preferred),
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
