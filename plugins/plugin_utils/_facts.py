# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of a host's interfaces, from ``ansible.builtin.setup`` and ``/proc/net/if_inet6``. Pure.

Facts have no address flags, and the IPv6 default route prefers the temporary address, which changes daily. The flags
are in ``/proc/net/if_inet6``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Union

Address = Union[IPv4Address, IPv6Address]

# linux/if_addr.h: changes daily; another machine has it; not to be used for new connections.
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED = 0x01, 0x08, 0x20
LEFT_OUT = ((IFA_F_TEMPORARY, "temporary"), (IFA_F_DADFAILED, "a duplicate of another machine's"))


@dataclass(frozen=True)
class HostAddress:
    """One address of a host. ``prefix`` and ``device`` are None if only the address is known.

    :ivar secondary: whether the host's other addresses come first: an IPv4 secondary or a deprecated IPv6 address.
    """

    address: Address
    prefix: int | None = None
    device: str | None = None
    secondary: bool = False

    def holds(self, other: Address) -> bool:
        """Return whether ``other`` is in the subnet of this address."""
        if self.prefix is None or other.version != self.address.version:
            return False
        return other in ip_network((self.address, self.prefix), strict=False)


def usable(address: HostAddress) -> bool:
    """Return whether other hosts can reach an address: it is not local to this host or link."""
    return not (address.address.is_loopback or address.address.is_link_local or address.address.is_multicast)


@dataclass(frozen=True)
class Interface:
    """An interface, or a label of one (``eth0:1``, whose device is ``eth0``), with its usable addresses.

    :ivar left_out: addresses that are not used, each with the reason, such as "temporary".
    """

    name: str
    device: str
    addresses: tuple[HostAddress, ...]
    left_out: tuple[tuple[Address, str], ...] = ()


def read_flags(inet6: str) -> dict[tuple[str, Address], int]:
    """Read ``/proc/net/if_inet6``. A line has address, index, prefix length, scope, flags (all hexadecimal) and device.

    :returns: flags by device and address; empty for any other text.
    """
    rows = [row for row in map(str.split, inet6.splitlines()) if len(row) == 6 and len(row[0]) == 32]
    return {(row[5], IPv6Address(int(row[0], 16))): int(row[4], 16) for row in rows}


def read_interfaces(facts: Mapping[str, Any], inet6: str = "") -> list[Interface]:
    """Return the interfaces of a host, including those without a usable address.

    :param facts: ``ansible_facts`` as the ``network`` subset of ``ansible.builtin.setup`` leaves it. A label is an
        entry of its own there: without a device, and with ``_`` in place of ``:`` and ``-``.
    :param inet6: the content of ``/proc/net/if_inet6``.
    """
    flags = read_flags(inet6)
    devices = {key: str(entry["device"]) for key, entry in _entries(facts) if "device" in entry}
    interfaces = []
    for key, entry in _entries(facts):
        device = devices.get(key) or _device_of_label(key, entry, devices)
        if device:
            name = device if key in devices else f"{device}:{key[len(device) + 1 :]}"
            interfaces.append(_interface(name, device, entry, flags))
    return sorted(interfaces, key=lambda one: one.name)


def _entries(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((str(key), entry) for key, entry in facts.items() if isinstance(entry, Mapping))


def _device_of_label(key: str, entry: Mapping[str, Any], devices: Mapping[str, str]) -> str | None:
    if not any(True for _row in _rows(entry)):
        return None
    return max((device for spelled, device in devices.items() if key.startswith(f"{spelled}_")), key=len, default=None)


def _rows(entry: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield (address as facts have it, whether it is secondary) of an entry."""
    for key, secondary in (("ipv4", False), ("ipv4_secondaries", True), ("ipv6", False)):
        value = entry.get(key) or ()
        for row in [value] if isinstance(value, Mapping) else value:
            # The entries of locally_reachable_ips are text.
            if isinstance(row, Mapping) and "address" in row:
                yield row, secondary


def _interface(name: str, device: str, entry: Mapping[str, Any], flags: Mapping[tuple[str, Address], int]) -> Interface:
    addresses, left_out = [], []
    for row, secondary in _rows(entry):
        address = ip_address(str(row["address"]))
        flagged = flags.get((device, address), 0)
        reasons = [why for flag, why in LEFT_OUT if flagged & flag]
        later = secondary or name != device or bool(flagged & IFA_F_DEPRECATED)
        one = HostAddress(address, _prefix_of(row), device, later)
        if reasons:
            left_out.append((address, reasons[-1]))
        elif usable(one):
            addresses.append(one)
    return Interface(name, device, tuple(addresses), tuple(left_out))


def _prefix_of(entry: Mapping[str, Any]) -> int:
    if entry.get("prefix") not in (None, ""):
        return int(entry["prefix"])
    return ip_network(f"0.0.0.0/{entry['netmask']}").prefixlen


def addresses_of(interfaces: Iterable[Interface], name: str | None = None) -> list[HostAddress] | None:
    """Return the addresses of all interfaces, or of one (its labels included), or of one label.

    IPv6 addresses have no labels, so a label includes those of its device.

    :returns: each address once; None if there is no interface of that name.
    """
    addresses: dict[tuple[Address, str | None], HostAddress] = {}
    known = name is None
    for interface in interfaces:
        known = known or name in (interface.name, interface.device)
        for one in interface.addresses:
            of_label = one.address.version == 6 and name is not None and name.startswith(f"{interface.device}:")
            if name in (None, interface.name, interface.device) or of_label:
                addresses.setdefault((one.address, one.device), one)
    return list(addresses.values()) if known else None


def fact_addresses(facts: Mapping[str, Any], inet6: str = "") -> list[HostAddress]:
    """Return every usable address in the network facts of one host; see :func:`read_interfaces`."""
    return addresses_of(read_interfaces(facts, inet6)) or []
