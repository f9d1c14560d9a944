# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables and ranges that may run full, and UDP servers that reply from the wrong address."""

from __future__ import annotations

from collections.abc import Iterator

from ...document.documents import Document
from .. import rule_matching
from ..facts.model import Facts, Socket, format_ports
from ..finding import Finding, fail, skip, warn

# Share of the table above which an ordinary burst fills it.
NEARLY_FULL = 0.9
# Below the kernel's default for 1 GiB of memory (65536 buckets, nf_conntrack-sysctl) a few thousand clients fill it.
SMALL_TABLE = 16384
UDP = 17
# Half of the default range 32768-60999 (ip-sysctl).
SMALL_RANGE = 14116


def conntrack(facts: Facts) -> Iterator[Finding]:
    """Runs only where conntrack holds the marks of replies, or the connections that the kernel forwards."""
    marks = any(peer.tracked for peer in facts.peers)
    if not (marks or facts.kernel_datapath):
        return
    effect = (
        "a connection without an entry has no mark" if marks else "the kernel forwards no connection without an entry"
    )
    admitted = sum(service.connections for document in facts.kernel_datapath for service in document.services)
    table = facts.conntrack
    if table is None:
        yield skip("this kernel has no conntrack table")
    elif table.count >= NEARLY_FULL * table.maximum:
        yield fail(
            "conntrack",
            f"the conntrack table holds {table.count} of at most {table.maximum} connections",
            f"a full table drops new connections, and {effect}",
            _raise_maximum(4 * table.maximum),
        )
    elif table.maximum < SMALL_TABLE:
        yield warn(
            "conntrack",
            f"the conntrack table holds at most {table.maximum} connections",
            "every connection to this host takes an entry, and a full table drops new connections",
            _raise_maximum(4 * SMALL_TABLE),
        )
    elif table.maximum < admitted:
        yield warn(
            "conntrack",
            f"the conntrack table holds at most {table.maximum} connections, but the limits of kernel services admit "
            f"{admitted}",
            "a full table drops new connections to every service and to this host itself",
            f"{_raise_maximum(2 * admitted)}, or lower `limits` of the services",
        )
    elif table.dropped:
        yield warn(
            "conntrack",
            f"{table.dropped} packets were dropped since boot because the conntrack table was full",
            f"{effect}, so {'its replies bypass the proxy' if marks else 'its client times out'}",
            _raise_maximum(4 * table.maximum),
        )


def _raise_maximum(number: int) -> str:
    return f"`sysctl -w net.netfilter.nf_conntrack_max={number}` (and in /etc/sysctl.d)"


def port_range(facts: Facts) -> Iterator[Finding]:
    low, high = (int(part) for part in (facts.settings.get("net.ipv4.ip_local_port_range") or "32768 60999").split())
    if high - low + 1 < SMALL_RANGE:
        yield warn(
            "ip_local_port_range",
            f"there are only {high - low + 1} ephemeral ports ({low}-{high})",
            "they limit how many connections one client can have to one backend at a time, through all proxies",
            '`sysctl -w net.ipv4.ip_local_port_range="32768 60999"` (and in /etc/sysctl.d)',
        )
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        inside = format_ports(port for port in listener.ports if low <= port <= high)
        if listener.is_wildcard and inside:
            yield warn(
                f"{listener.protocol} {inside}",
                f"a service listens on {listener.protocol} port {inside} of every address, which is in the range of "
                f"ephemeral ports ({low}-{high})",
                "the forwarder cannot use that port as the source port towards a backend (EADDRINUSE)",
                "listen on one address instead of all, or on a port outside the range",
            )


def udp_source(facts: Facts) -> Iterator[Finding]:
    """The kernel chooses the source address of a wildcard UDP server's replies; the client used another, perhaps."""
    remedy = "let the server listen on the address that the proxy connects to"
    named = {port for protocol, port in facts.ports if protocol == "udp"}
    for document in facts.return_path:
        rules = list(rule_matching.lookups(document))
        by_port = [(rule.family, rule.sport) for rule in rules if rule.ip_proto == UDP and rule.sport]
        ports = named | {port for _family, sport in by_port for port in range(sport[0], sport[1] + 1)}
        by_address = {rule.family for rule in rules if rule.src and not rule.fwmark}
        for server in _wildcard_servers(facts, ports):
            what = f"a server listens on UDP port {server.port} of every address"
            covered = any(family == server.family and low <= server.port <= high for family, (low, high) in by_port)
            if server.family in by_address and not covered:
                yield fail(
                    f"udp {server.port}",
                    f"{what}, and the document's rules match only the source address",
                    "the server's replies get their source address after they are routed, so they bypass the proxy",
                    remedy,
                )
            elif _source_is_ambiguous(facts, document, server.family):
                yield warn(
                    f"udp {server.port}",
                    f"{what}, and this host has several addresses towards the proxy",
                    "replies come from the first of those addresses, even if the proxy used another one",
                    remedy,
                )


def _wildcard_servers(facts: Facts, ports: set[int]) -> list[Socket]:
    udp = [server for server in facts.sockets if server.protocol == "udp" and server.is_wildcard]
    return [server for server in udp if server.port in ports]


def _source_is_ambiguous(facts: Facts, document: Document, family: str) -> bool:
    """Whether the interface to a proxy has several addresses and no route of the document names the source."""
    links = {peer.dev for peer in facts.peers if peer.family == family}
    addresses = [found.value for found in facts.addresses or () if found.family == family and found.value.dev in links]
    several = len([address for address in addresses if not address.address.startswith("fe80:")]) > len(links)
    return several and not any(route.src for route in document.routes if route.family == family)
