# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses that a proxy announces by BGP, and to whom. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.announced import OWNER, PROTOCOL
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import raise_all
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address, HostAddress, usable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._same_services import VIRTUAL_IPS
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._state_document import state_document
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import (
    key_faults,
    parsed,
    virtual_addresses,
)

VARIABLE = "l4proxy_announce"
FRR, NONE = ENGINES = ("frr", "none")
KEYS = ("addresses", "asn", "peers", "communities", "engine", "router_id")
PEER_KEYS = ("address", "asn", "bfd", "multihop", "ttl_security", "password")
# RFC 6793: AS_TRANS. RFC 7300 and 7607: the first and the last numbers.
RESERVED_ASNS = (23456, 65535, 4294967295)
COMMUNITY = re.compile(r"(\d{1,5}):(\d{1,5})")
PASSWORD = re.compile(r"[!-~]{1,80}")


def announce(fleet: Fleet, proxy: str) -> dict[str, Any]:
    """Derive what one proxy announces.

    :returns: ``document`` for the keeper, ``frr`` for the template of frr.conf (``asn``, ``router_id``,
        ``communities``, ``addresses`` by family, ``peers``), each None without any; ``warnings``: sentences.
    :raises DerivationError: with every fault.
    """
    value = fleet.variable(proxy, VARIABLE)
    if value is None:
        return {"document": None, "frr": None, "warnings": []}
    raise_all(_faults(value))
    addresses = announced_addresses(fleet, proxy)
    peers = [_peer(entry, value["asn"]) for entry in value.get("peers", ())]
    raise_all([*_taken(fleet, proxy, addresses), *_peer_faults(fleet, proxy, value, addresses, peers)])
    families: dict[str, list[str]] = {FAMILY[one.version]: [] for one in sorted(addresses, key=lambda one: one.version)}
    for one in addresses:
        families[FAMILY[one.version]].append(str(one))
    entries = [{"family": family, "address": each} for family, mine in families.items() for each in mine]
    frr = {
        "asn": value.get("asn"),
        "router_id": value.get("router_id") or _router_id(fleet, proxy),
        "communities": list(value.get("communities", ())),
        "addresses": families,
        "peers": peers,
    }
    return {
        "document": state_document(OWNER, PROTOCOL, {"announce": entries}),
        "frr": frr if value.get("engine", FRR) == FRR else None,
        "warnings": list(_warnings(fleet, proxy, addresses)),
    }


def announced_addresses(fleet: Fleet, proxy: str) -> list[Address]:
    """Return the addresses that a proxy announces; none if the variable is faulty."""
    value = fleet.variable(proxy, VARIABLE)
    if value is None or list(_faults(value)):
        return []
    return [ip_address(str(one)) for one in value["addresses"]]


def _peer(entry: Mapping[str, Any], asn: int) -> dict[str, Any]:
    address = ip_address(str(entry["address"]))
    return {"bfd": True, **entry, "address": str(address), "family": FAMILY[address.version], "asn": entry["asn"]} | (
        {"multihop": None} if entry["asn"] == asn else {}  # sessions of one AS have no limit of hops
    )


def _router_id(fleet: Fleet, proxy: str) -> str:
    """Return the proxy's first IPv4 address; without one, a number that only depends on its first IPv6 address."""
    host = fleet.host(proxy)
    found = [*host.of_family(4), *host.of_family(6)]
    if found and found[0].address.version == 4:
        return str(found[0].address)
    digest = hashlib.sha256(str(found[0].address if found else proxy).encode()).digest()
    return str(IPv4Address(int.from_bytes(digest[:4], "big") % 0xDFFFFFFF + 1))


# -- the variable itself -------------------------------------------------------------------------------------------


def _faults(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{VARIABLE}: must be a dictionary with addresses, asn and peers"
        return
    engine = value.get("engine", FRR)
    required = ("addresses", "asn", "peers") if engine == FRR else ("addresses",)
    yield from key_faults(VARIABLE, value, KEYS, required)
    yield from _each("addresses", value, _address_fault)
    yield from _each("communities", value, _community_fault)
    if engine not in ENGINES:
        yield f"{VARIABLE}.engine: {engine!r} must be {FRR}, or {NONE} if another tool announces the addresses"
    if "asn" in value:
        yield from _asn_faults(f"{VARIABLE}.asn", value["asn"])
    router_id = value.get("router_id", "0.0.0.1")
    if not (isinstance(router_id, str) and isinstance(parsed(router_id), IPv4Address)):
        yield f"{VARIABLE}.router_id: {router_id!r} must be written as an IPv4 address"
    peers = value.get("peers", ())
    if not isinstance(peers, Sequence) or isinstance(peers, str) or (engine == FRR and "peers" in value and not peers):
        yield f"{VARIABLE}.peers: must be a list of the routers, each with address and asn"
        return
    for number, peer in enumerate(peers):
        yield from _entry_faults(f"{VARIABLE}.peers[{number}]", peer)


def _each(key: str, value: Mapping[str, Any], fault: Callable[[Any], str | None]) -> Iterator[str]:
    """Yield the faults of a list, and of what is in it twice."""
    entries = value.get(key, ())
    if not isinstance(entries, Sequence) or isinstance(entries, str) or (key == "addresses" and not entries):
        yield f"{VARIABLE}.{key}: must be a list" if key in value else f"{VARIABLE}.{key}: is empty"
        return
    seen: list[Any] = []
    for number, entry in enumerate(entries):
        why = fault(entry)
        same = parsed(entry) or entry
        if not why and same in seen:
            why = f"{entry} is listed twice; remove one"
        seen.append(same)
        if why:
            yield f"{VARIABLE}.{key}[{number}]: {why}"


def _address_fault(value: Any) -> str | None:
    address = parsed(value)
    if address is None:
        return f"{value!r} is not an IP address; write it without a prefix length"
    if not usable(HostAddress(address)) or address.is_unspecified:
        return f"{address} is not an address that other links can reach; use another one"
    return None


def _community_fault(value: Any) -> str | None:
    match = COMMUNITY.fullmatch(str(value))
    if not match or any(int(part) > 65535 for part in match.groups()):
        return f"{value!r} is not a community such as '65001:80' (two numbers up to 65535; quote it in YAML)"
    return None


def _asn_faults(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**32 or value in RESERVED_ASNS:
        yield f"{path}: {value!r} is not an AS number; use a whole number from 1 to 4294967294, such as 65001"


def _entry_faults(path: str, peer: Any) -> Iterator[str]:
    if not isinstance(peer, Mapping):
        yield f"{path}: must be a dictionary with address and asn"
        return
    yield from key_faults(path, peer, PEER_KEYS, ("address", "asn"))
    why = _address_fault(peer["address"]) if "address" in peer else None
    if why:
        yield f"{path}.address: {why}"
    if "asn" in peer:
        yield from _asn_faults(f"{path}.asn", peer["asn"])
    for key in ("bfd", "ttl_security"):
        if not isinstance(peer.get(key, True), bool):
            yield f"{path}.{key}: {peer[key]!r} must be true or false"
    hops = peer.get("multihop", 2)
    if isinstance(hops, bool) or not isinstance(hops, int) or not 2 <= hops <= 255:
        yield f"{path}.multihop: {hops!r} must be a number of hops from 2 to 255"
    if "multihop" in peer and peer.get("ttl_security"):
        yield f"{path}.ttl_security: cannot be combined with multihop; remove one of them"
    if "password" in peer and not (isinstance(peer["password"], str) and PASSWORD.fullmatch(peer["password"])):
        yield f"{path}.password: must be 1 to 80 printable characters without blanks"


# -- the fleet -----------------------------------------------------------------------------------------------------


def _taken(fleet: Fleet, proxy: str, addresses: Sequence[Address]) -> Iterator[str]:
    virtual = {each: name for name, mine in virtual_addresses(fleet, proxy).items() for each in mine}
    for number, address in enumerate(addresses):
        path = f"{VARIABLE}.addresses[{number}]"
        if str(address) in virtual:
            yield f"{path}: {address} is also in {VIRTUAL_IPS} ({virtual[str(address)]}); remove it from one of them"
        for name in dict.fromkeys([*fleet.proxies, *fleet.backends]):
            if address in fleet.own_addresses(name):
                yield (
                    f"{path}: {address} is an address of {name}; choose one that no host has, or, if another tool has "
                    f"put it on lo there, remove it: {proxy} gets it as a local route"
                )


def _peer_faults(
    fleet: Fleet, proxy: str, value: Mapping[str, Any], addresses: Sequence[Address], peers: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    interfaces = fleet.host(proxy).interfaces
    own = [one for interface in interfaces for one in interface.addresses]
    known: list[str] = []
    for number, peer in enumerate(peers):
        path, address = f"{VARIABLE}.peers[{number}].address", ip_address(peer["address"])
        if peer["address"] in known:
            yield f"{path}: {address} is listed twice; remove one"
        known.append(peer["address"])
        if address in addresses or any(one.address == address for one in own):
            yield f"{path}: {address} is an address of {proxy} itself; use the router's address"
        elif _must_be_near(peer, value) and interfaces and not any(one.holds(address) for one in own):
            listed = ", ".join(f"{one.address}/{one.prefix}" for one in own)
            yield f"{path}: {address} is on no link of {proxy} ({listed}); correct it, or set multihop: 2"
    versions = {address.version for address in addresses}
    if value.get("engine", FRR) == FRR:
        for version in sorted(versions - {ip_address(peer["address"]).version for peer in peers}):
            yield (
                f"{VARIABLE}.peers: no IPv{version} peer, but an IPv{version} address is to be announced; add the "
                f"router's IPv{version} address as another peer"
            )


def _must_be_near(peer: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether a session only works on a shared link; one within an AS may be routed."""
    return not peer.get("multihop") and peer["asn"] != value.get("asn")


def _warnings(fleet: Fleet, proxy: str, addresses: Sequence[Address]) -> Iterator[str]:
    listening = [parsed(host) for service in fleet.services_of_proxy(proxy) for host, _port in service.listen]
    for address in addresses:
        wildcard = ip_address("0.0.0.0" if address.version == 4 else "::")
        if address not in listening and wildcard not in listening:
            yield f"{VARIABLE}: no service of {proxy} listens on {address}; add it to `listen` of one"
