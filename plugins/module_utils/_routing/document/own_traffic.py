# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find rules that would match the host's own traffic and cut it off. Pure.

A table with a local default route delivers every packet that is looked up in it to this host. Packets that the host
sends are looked up as well, with ``lo`` as the incoming interface; so are, by the reverse path filter, packets that it
receives. A rule for such a table is safe if it selects by a mark, by the interface that a packet arrived on, or by a
source that is not an address of this host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from . import formatting
from .model import Route, Rule, network

# A prefix with fewer bits is no restriction: 0.0.0.0/1 and 128.0.0.0/1 together are every address.
FEWEST_BITS = {"ipv4": 8, "ipv6": 16}
# The source address of a socket that is not bound yet.
UNBOUND = {"ipv4": ipaddress.ip_address("0.0.0.0"), "ipv6": ipaddress.ip_address("::")}
REMEDY = "add src (a backend's address) or fwmark"

# (family, table): the prefix lengths of its local routes that are as wide as a default route
Local = Mapping[tuple[str, int], tuple[int, ...]]


class OwnSource(NamedTuple):
    """A rule whose source is an ``address`` of this host."""

    rule: Rule
    address: str


def local_tables(routes: Iterable[Route]) -> Local:
    """The tables that deliver every packet that is looked up in them to this host."""
    tables: dict[tuple[str, int], tuple[int, ...]] = {}
    for route in routes:
        length = _length(route.dst)
        if route.type == "local" and length < FEWEST_BITS[route.family]:
            tables[route.family, route.table] = (*tables.get((route.family, route.table), ()), length)
    return tables


def _length(prefix: str | None) -> int:
    return 0 if prefix in (None, "default") else int(prefix.rpartition("/")[2])


def delivers(rule: Rule, local: Local) -> bool:
    """Whether the packets that a rule matches are delivered to this host, whatever their destination."""
    if rule.action != "lookup" or rule.table is None:
        return False
    ignored = -1 if rule.suppress_prefixlength is None else rule.suppress_prefixlength
    return any(length > ignored for length in local.get((rule.family, rule.table), ()))


def unbounded(rule: Rule, local: Local) -> str | None:
    """Why a rule matches too much, whatever addresses this host has; None if it does not."""
    if not delivers(rule, local) or rule.fwmark or _is_narrow(rule.dst, rule.family):
        return None
    table = f"table {rule.table} has a local default route"
    if rule.iif not in (None, "lo"):
        if rule.src or rule.ip_proto or rule.dst:
            return None
        return (
            f"would match every packet that arrives on {rule.iif} ({table}), and this host would answer ARP there for "
            "every address; add src (a backend's address), ip_proto or fwmark"
        )
    if _is_narrow(rule.src, rule.family) and UNBOUND[rule.family] not in network(rule.src):
        return None
    return f"would deliver all packets that this host sends to the host itself ({table}) and cut it off; {REMEDY}"


def _is_narrow(prefix: str | None, family: str) -> bool:
    return _length(prefix) >= FEWEST_BITS[family]


def from_own(rules: Iterable[Rule], local: Local, own: Collection[str]) -> list[OwnSource]:
    """The rules that deliver packets from an address of this host (``own``) to the host itself."""
    taking = []
    for rule in rules:
        if rule.src and delivers(rule, local) and not _is_of_a_transparent_socket(rule):
            source = network(rule.src)
            address = _held(source, own)
            # A wider prefix may contain this host among others; then only a rule for packets that it sends does harm.
            if address and (source.num_addresses == 1 or rule.iif in (None, "lo")):
                taking.append(OwnSource(rule, address))
    return taking


def _held(source: ipaddress.IPv4Network | ipaddress.IPv6Network, own: Collection[str]) -> str | None:
    """An address of this host within a prefix, None if there is none."""
    if source.num_addresses == 1:
        address = source.network_address
        return str(address) if address.is_loopback or str(address) in own else None
    addresses = (ipaddress.ip_address(text) for text in own)
    return next((str(each) for each in addresses if each.version == source.version and each in source), None)


def _is_of_a_transparent_socket(rule: Rule) -> bool:
    """Whether the rule is narrow enough for an own source: sent packets of one protocol and port, with a mark."""
    return bool(rule.iif == "lo" and rule.fwmark and rule.ip_proto and (rule.sport or rule.dport))


def by_address(own_sources: Iterable[OwnSource]) -> list[tuple[str, list[Rule]]]:
    """The addresses, each with its rules."""
    rules: dict[str, list[Rule]] = {}
    for each in own_sources:
        rules.setdefault(each.address, []).append(each.rule)
    return list(rules.items())


def sentences(own_sources: Iterable[OwnSource]) -> list[str]:
    """What is wrong and what to do, a sentence for each address."""
    return [_sentence(address, rules) for address, rules in by_address(own_sources)]


def _sentence(address: str, rules: list[Rule]) -> str:
    more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
    sent = any(rule.iif in (None, "lo") for rule in rules)
    harm = "would deliver packets sent from it to the host itself and cut it off" if sent else "cannot match any reply"
    return (
        f"{address} is an address of this host itself, so `{formatting.rule(rules[0])}`{more} {harm}; remove "
        f"{address} from the backends of this proxy, or from this host"
    )


def all_unbounded(rules: Iterable[Rule], local: Local) -> list[tuple[Rule, str]]:
    """The rules that match too much, each with the reason."""
    reasons = ((rule, unbounded(rule, local)) for rule in rules)
    return [(rule, reason) for rule, reason in reasons if reason]
