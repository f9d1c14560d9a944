# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that would take what the host itself sends: such a rule cuts the host off. Pure.

A table with a local default route delivers every packet that is looked up in it to this host. What a host sends is
looked up as well, with ``lo`` as the incoming interface; so is, by the reverse path filter, what it receives. A rule
for such a table is safe when it asks for a mark, for the interface that a packet came in by, or for a source that is
no address of this host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from . import formatting
from .model import Route, Rule, network

# A prefix with fewer bits than this is no bound: 0.0.0.0/1 and 128.0.0.0/1 together are every address.
FEWEST_BITS = {"ipv4": 8, "ipv6": 16}
# What a socket that is not bound yet has for a source.
UNBOUND = {"ipv4": ipaddress.ip_address("0.0.0.0"), "ipv6": ipaddress.ip_address("::")}
BOUND_IT = "give it src (a backend's address) or fwmark"

# (family, table): the prefix lengths of its local routes that are as wide as a default route
Local = Mapping[tuple[str, int], tuple[int, ...]]


class OwnSource(NamedTuple):
    """A rule whose source is an ``address`` of this host."""

    rule: Rule
    address: str


def local_tables(routes: Iterable[Route]) -> Local:
    """The tables that deliver to this host whatever is looked up in them."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for route in routes:
        length = _length(route.dst)
        if route.type == "local" and length < FEWEST_BITS[route.family]:
            found[route.family, route.table] = (*found.get((route.family, route.table), ()), length)
    return found


def _length(prefix: str | None) -> int:
    return 0 if prefix in (None, "default") else int(prefix.rpartition("/")[2])


def delivers(rule: Rule, local: Local) -> bool:
    """Whether the packets that a rule takes are delivered to this host, whatever their destination."""
    if rule.action != "lookup" or rule.table is None:
        return False
    ignored = -1 if rule.suppress_prefixlength is None else rule.suppress_prefixlength
    return any(length > ignored for length in local.get((rule.family, rule.table), ()))


def unbounded(rule: Rule, local: Local) -> str | None:
    """Why a rule takes more than packets of the path, whatever addresses this host has; None when it does not."""
    if not delivers(rule, local) or rule.fwmark or _is_narrow(rule.dst, rule.family):
        return None
    table = f"table {rule.table} has a local default route"
    if rule.iif not in (None, "lo"):
        if rule.src or rule.ip_proto or rule.dst:
            return None
        return (
            f"would take every packet that comes in by {rule.iif} ({table}), and this host would answer ARP there for "
            "every address; give it src (a backend's address), ip_proto or fwmark"
        )
    if _is_narrow(rule.src, rule.family) and UNBOUND[rule.family] not in network(rule.src):
        return None
    return f"would deliver what this host sends to the host itself ({table}) and cut it off; {BOUND_IT}"


def _is_narrow(prefix: str | None, family: str) -> bool:
    return _length(prefix) >= FEWEST_BITS[family]


def from_own(rules: Iterable[Rule], local: Local, own: Collection[str]) -> list[OwnSource]:
    """The rules that deliver what comes from an address of this host (``own``) to the host itself."""
    found = []
    for rule in rules:
        if rule.src and delivers(rule, local) and not _is_of_a_transparent_socket(rule):
            source = network(rule.src)
            address = _held(source, own)
            # A prefix may have this host among others; then it matters whether what the host sends is meant as well.
            if address and (source.num_addresses == 1 or rule.iif in (None, "lo")):
                found.append(OwnSource(rule, address))
    return found


def _held(source: ipaddress.IPv4Network | ipaddress.IPv6Network, own: Collection[str]) -> str | None:
    """An address of this host within a prefix."""
    if source.num_addresses == 1:
        address = source.network_address
        return str(address) if address.is_loopback or str(address) in own else None
    addresses = (ipaddress.ip_address(one) for one in own)
    return next((str(one) for one in addresses if one.version == source.version and one in source), None)


def _is_of_a_transparent_socket(rule: Rule) -> bool:
    """The one bound that is narrow enough: what the host sends, of one protocol and port, with a mark."""
    return bool(rule.iif == "lo" and rule.fwmark and rule.ip_proto and (rule.sport or rule.dport))


def by_address(found: Iterable[OwnSource]) -> list[tuple[str, list[Rule]]]:
    """The addresses, each with its rules."""
    rules: dict[str, list[Rule]] = {}
    for one in found:
        rules.setdefault(one.address, []).append(one.rule)
    return list(rules.items())


def sentences(found: Iterable[OwnSource]) -> list[str]:
    """What is wrong with them and what to do, a sentence an address."""
    return [_sentence(address, rules) for address, rules in by_address(found)]


def _sentence(address: str, rules: list[Rule]) -> str:
    more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
    sent = any(rule.iif in (None, "lo") for rule in rules)
    harm = "would deliver to the host what it sends from there, and cut it off" if sent else "can take no reply"
    return (
        f"{address} is an address of this host itself, so `{formatting.rule(rules[0])}`{more} {harm}; take {address} "
        "out of the backends of this proxy, or off this host"
    )


def all_unbounded(rules: Iterable[Rule], local: Local) -> list[tuple[Rule, str]]:
    """The rules that are not bounded, with the reason."""
    found = ((rule, unbounded(rule, local)) for rule in rules)
    return [(rule, reason) for rule, reason in found if reason]
