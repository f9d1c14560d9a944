# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual IPs of a fleet: which proxies share which addresses, and what VRRP needs on one of them. Pure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Callable

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, raise_all
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address, HostAddress, usable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._same_services import VIRTUAL_IPS as VARIABLE

REQUIRED = ("name", "addresses", "proxies")
KEYS = (*REQUIRED, "interface", "vrid", "advert", "preempt")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
# Seconds between advertisements; VRRPv3 has 12 bits for hundredths of a second.
ADVERT, ADVERT_LEAST, ADVERT_MOST = 0.5, 0.1, 40
# The first proxy has the highest priority. The distance lets a lower one wait until a higher one has taken the address.
PRIORITY, PRIORITY_STEP = 254, 20
MOST_PROXIES = PRIORITY // PRIORITY_STEP
ANNOUNCE = "for an address without a shared link, use l4proxy_announce"


@dataclass(frozen=True)
class VirtualIp:
    """One entry of the variable. ``path`` names it in errors; ``proxies`` are in order of priority."""

    path: str
    name: str
    addresses: tuple[Address, ...]
    proxies: tuple[str, ...]
    interface: str | None
    vrid: int
    advert: float
    preempt: bool


def virtual_ips(fleet: Fleet, proxy: str) -> dict[str, Any]:
    """Derive what VRRP needs on one proxy.

    :returns: ``virtual_ips``: each with ``name``, ``vrid``, ``advert``, ``preempt``, ``priority`` and ``families``, of
        which each has ``family``, ``interface``, ``source``, ``peers`` (addresses by proxy) and ``addresses``;
        ``warnings``: sentences.
    :raises DerivationError: with every fault, those of other proxies included.
    """
    found = read(fleet, proxy)
    raise_all([*_shared_addresses(found), *(fault for one in found for fault in _taken(fleet, one))])
    errors: list[str] = []
    links = _links(fleet, proxy, found, errors)
    errors += _vrid_clashes(found, links)
    raise_all(errors)
    mine = [one for one in found if proxy in one.proxies]
    return {
        "virtual_ips": [_of_proxy(fleet, proxy, one, links) for one in mine],
        "warnings": [sentence for one in mine for sentence in _warnings(fleet, proxy, one, links)],
    }


def virtual_addresses(fleet: Fleet, proxy: str) -> dict[str, list[str]]:
    """Return the addresses that a proxy may have, by name of the virtual IP; empty without any.

    :raises DerivationError: faults of the variable itself.
    """
    return {one.name: [str(each) for each in one.addresses] for one in read(fleet, proxy) if proxy in one.proxies}


# -- the variable --------------------------------------------------------------------------------------------------


def read(fleet: Fleet, proxy: str) -> list[VirtualIp]:
    """Return the virtual IPs as ``proxy`` evaluates them, without proxies that are being removed.

    :raises DerivationError: with every fault of the variable itself.
    """
    value = fleet.variable(proxy, VARIABLE)
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DerivationError([f"{VARIABLE}: must be a list, each entry with {', '.join(REQUIRED)}"])
    errors: list[str] = []
    entries = []
    for number, entry in enumerate(value):
        path = f"{VARIABLE}[{number}]"
        faults = list(_faults(fleet, path, entry))
        errors += faults
        if not faults:
            entries.append(_entry(fleet, path, entry))
    names = [one.name for one in entries]
    errors += [
        f"{one.path}.name: {one.name!r} is also the name of {VARIABLE}[{names.index(one.name)}]; choose another one"
        for at, one in enumerate(entries)
        if one.name in names[:at]
    ]
    raise_all(errors)
    return [one for one in entries if one.proxies]


def _entry(fleet: Fleet, path: str, entry: Mapping[str, Any]) -> VirtualIp:
    addresses = tuple(ip_address(str(value)) for value in entry["addresses"])
    return VirtualIp(
        path=path,
        name=entry["name"],
        addresses=addresses,
        proxies=tuple(name for name in entry["proxies"] if name not in fleet.removed),
        interface=entry.get("interface"),
        # From the name, so that it stays when addresses change: a change of the vrid moves all of them.
        vrid=entry.get("vrid") or 1 + zlib.crc32(entry["name"].encode()) % 255,
        advert=float(entry.get("advert", ADVERT)),
        preempt=entry.get("preempt", False),
    )


def _faults(fleet: Fleet, path: str, entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"{path}: must be a dictionary with {', '.join(REQUIRED)}"
        return
    yield from key_faults(path, entry, KEYS, REQUIRED)
    if "addresses" in entry:
        yield from (f"{path}.addresses: {fault}" for fault in _address_faults(entry["addresses"]))
    if "proxies" in entry:
        yield from (f"{path}.proxies: {fault}" for fault in _proxies_faults(fleet, entry["proxies"]))
    for key, (valid, rule) in VALUES.items():
        if key in entry and not valid(entry[key]):
            yield f"{path}.{key}: {entry[key]!r} {rule}"


def key_faults(path: str, value: Mapping[str, Any], known: Sequence[str], required: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each key that is unknown or missing."""
    yield from (f"{path}.{key}: unknown key; the keys are {', '.join(known)}" for key in value if key not in known)
    yield from (f"{path}.{key}: is missing" for key in required if key not in value)


def _is_advert(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and ADVERT_LEAST <= value <= ADVERT_MOST and round(value * 100) == round(value * 100, 6)


# What a key with a single value may have, and what is said otherwise.
VALUES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "name": (
        lambda value: isinstance(value, str) and NAME.fullmatch(value),
        "must be 1 to 32 letters, digits, _ or -, and begin with a letter or digit",
    ),
    "interface": (lambda value: isinstance(value, str) and value, "is not the name of an interface, such as eth1"),
    "vrid": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255,
        "is not a virtual router id; use a whole number from 1 to 255",
    ),
    "advert": (
        _is_advert,
        f"must be {ADVERT_LEAST} to {ADVERT_MOST} seconds, in hundredths; the default is {ADVERT}",
    ),
    "preempt": (lambda value: isinstance(value, bool), "must be true or false"),
}


def _address_faults(value: Any) -> Iterator[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        yield "must be a list of IP addresses"
        return
    for number, one in enumerate(value):
        address = parsed(one)
        if address is None:
            yield f"{one!r} is not an IP address; write it without a prefix length"
            continue
        if not usable(HostAddress(address)) or address.is_unspecified:
            yield f"{address} is not an address that clients of other links can reach; use another one"
        if address in [parsed(other) for other in value[:number]]:
            yield f"{address} is listed twice; remove one"


def parsed(value: Any) -> Address | None:
    """Return the address that a value of the inventory is, None if it is none."""
    try:
        return ip_address(str(value))
    except ValueError:
        return None


def _proxies_faults(fleet: Fleet, value: Any) -> Iterator[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        yield "must be a list of proxies, that with the highest priority first"
        return
    for number, name in enumerate(value):
        if name not in fleet.proxies and name not in fleet.removed:
            yield f"{name!r} is not in the group proxies; use one of {', '.join(fleet.proxies)}"
        if name in value[:number]:
            yield f"{name!r} is listed twice; remove one"
    if len(value) > MOST_PROXIES:
        yield f"{len(value)} proxies are more than {MOST_PROXIES}; for so many, use l4proxy_announce"


# -- addresses that are taken --------------------------------------------------------------------------------------


def _shared_addresses(found: Sequence[VirtualIp]) -> Iterator[str]:
    owners: dict[Address, VirtualIp] = {}
    for one in found:
        for address in one.addresses:
            other = owners.setdefault(address, one)
            if other is not one:
                yield f"{one.path}.addresses: {address} is also an address of {other.name}; remove it from one of them"


def _taken(fleet: Fleet, one: VirtualIp) -> Iterator[str]:
    for name in dict.fromkeys([*fleet.proxies, *fleet.backends]):
        host = fleet.host(name)
        own = {each.address for each in _own(fleet, name) if name not in one.proxies or not _alone(each)}
        for address in one.addresses:
            if address in own or str(address) == str(fleet.variable(name, "ansible_host")):
                yield (
                    f"{one.path}.addresses: {address} is {host.name}'s own address; choose one in the same subnet that "
                    "no host has"
                )


def _own(fleet: Fleet, name: str) -> list[HostAddress]:
    """Return all addresses of a host: also those on interfaces at which backends do not reach it."""
    host = fleet.host(name)
    facts = [each for interface in host.interfaces for each in interface.addresses]
    # Declared ones last: facts have the interface and the prefix length.
    return sorted(facts or host.addresses, key=lambda each: (each.secondary, str(each.address) not in host.preferred))


def _alone(address: HostAddress) -> bool:
    """Return whether it has no subnet, as an address that VRRP has put on the interface."""
    return address.prefix == address.address.max_prefixlen


# -- links ---------------------------------------------------------------------------------------------------------

# By proxy, name of the virtual IP and family: the proxy's own address on the link.
Links = dict[tuple[str, str, int], HostAddress]


def _families(one: VirtualIp) -> list[int]:
    return sorted({address.version for address in one.addresses})


def _links(fleet: Fleet, proxy: str, found: Sequence[VirtualIp], errors: list[str]) -> Links:
    links: Links = {}
    for one in found:
        for name in one.proxies:
            for version in _families(one):
                try:
                    link = _link(fleet, proxy, name, one, version)
                except DerivationError as error:
                    errors.extend(error.errors)
                else:
                    links.update({(name, one.name, version): link} if link else {})
    return links


def _link(fleet: Fleet, proxy: str, name: str, one: VirtualIp, version: int) -> HostAddress | None:
    """Return the address of the proxy ``name`` in the subnet of the virtual addresses of one family.

    :returns: None if that proxy did not answer, and no earlier run has stored its address on ``proxy``.
    """
    own = [each for each in _own(fleet, name) if each.address.version == version]
    wanted = [address for address in one.addresses if address.version == version]
    if not own and not fleet.host(name).interfaces:
        return _stored(fleet, name, one, version)
    if not own:
        raise DerivationError(
            [f"{one.path}.addresses: {wanted[0]} is IPv{version}, but {name} has no IPv{version} address; add one"]
        )
    near = [each for each in own if not _alone(each) and all(each.holds(address) for address in wanted)]
    near = [each for each in near if each.address not in wanted]
    if not near:
        listed = ", ".join(f"{each.address}/{each.prefix}" for each in own if not _alone(each)) or "no subnet"
        addresses = ", ".join(map(str, wanted))
        raise DerivationError(
            [f"{one.path}.addresses: {addresses}: not in one subnet of {name}, which has {listed}; {ANNOUNCE}"]
        )
    devices = list(dict.fromkeys(str(each.device) for each in near))
    if one.interface is not None and (one.interface in devices or name == proxy):
        devices = [device for device in devices if device == one.interface]
        if not devices:
            raise DerivationError(
                [f"{one.path}.interface: {one.interface} of {name} has no address in the subnet of {wanted[0]}"]
            )
    if len(devices) > 1 and name == proxy:
        raise DerivationError(
            [f"{one.path}.interface: {name} has the subnet of {wanted[0]} on {' and '.join(devices)}; set one of them"]
        )
    return next(each for each in near if str(each.device) in devices)


def _stored(fleet: Fleet, name: str, one: VirtualIp, version: int) -> HostAddress | None:
    document: Mapping[str, Any] = fleet.known.get("virtual_ip") or {}
    for stored in document.get("virtual_ips", ()):
        for family in stored["families"] if stored["name"] == one.name else ():
            address = family["peers"].get(name)
            if family["family"] == FAMILY[version] and address:
                return HostAddress(ip_address(address))
    return None


def _vrid_clashes(found: Sequence[VirtualIp], links: Links) -> Iterator[str]:
    users: dict[tuple[int, Any], VirtualIp] = {}
    named = {one.name: one for one in found}
    for (_name, title, _version), link in links.items():
        if link.prefix is None:
            continue
        one = named[title]
        other = users.setdefault((one.vrid, ip_network((link.address, link.prefix), strict=False)), one)
        if other is not one:
            yield f"{one.path}.vrid: {one.vrid} is also the vrid of {other.name} on the same link; set another one"


# -- one proxy -----------------------------------------------------------------------------------------------------


def _of_proxy(fleet: Fleet, proxy: str, one: VirtualIp, links: Links) -> dict[str, Any]:
    families = []
    for version in _families(one):
        link = links[proxy, one.name, version]
        peers = {
            name: str(links[name, one.name, version].address)
            for name in one.proxies
            if name != proxy and (name, one.name, version) in links
        }
        families.append(
            {
                "family": FAMILY[version],
                "interface": link.device,
                "source": str(link.address),
                "peers": peers,
                "addresses": [str(address) for address in one.addresses if address.version == version],
            }
        )
    return {
        "name": one.name,
        "vrid": one.vrid,
        "advert": one.advert,
        "preempt": one.preempt,
        "priority": PRIORITY - PRIORITY_STEP * one.proxies.index(proxy),
        "families": families,
    }


def _warnings(fleet: Fleet, proxy: str, one: VirtualIp, links: Links) -> Iterator[str]:
    if len(one.proxies) == 1:
        yield f"{one.path}.proxies: only {proxy}, so no other proxy takes over the addresses of {one.name}; add one"
    for name in one.proxies:
        if any((name, one.name, version) not in links for version in _families(one)):
            yield (
                f"{name} did not answer, and no earlier run has stored its address on {proxy}: it is left out of the "
                f"VRRP peers of {one.name}. Start it and run the playbook again"
            )
