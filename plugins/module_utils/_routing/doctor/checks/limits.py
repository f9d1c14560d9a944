# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables and ranges that run full."""

from __future__ import annotations

from collections.abc import Iterator

from ...document.documents import Document
from .. import rule_matching
from ..facts.model import Facts, spelled
from ..finding import Finding, fail, skip, warn

# Share of the table above which an ordinary burst fills it.
NEARLY_FULL = 0.9
# The kernel's own default on a machine with 1 GiB of memory (nf_conntrack-sysctl: 65536 buckets from there on); with
# less, a few thousand clients fill the table.
SMALL_TABLE = 16384
UDP = 17
# Half of the default range 32768-60999 (ip-sysctl).
SMALL_RANGE = 14116


def conntrack(facts: Facts) -> Iterator[Finding]:
    """Only where connections keep the mark."""
    if not any(peer.tracked for peer in facts.peers):
        return
    table = facts.conntrack
    if table is None:
        yield skip("this kernel shows no conntrack table")
    elif table.count >= NEARLY_FULL * table.most:
        yield fail(
            "conntrack",
            f"the conntrack table holds {table.count} of at most {table.most} connections",
            "once it is full, packets of new connections are dropped, and a connection without an entry has no mark",
            f"`sysctl -w net.netfilter.nf_conntrack_max={4 * table.most}` (and in /etc/sysctl.d)",
        )
    elif table.most < SMALL_TABLE:
        yield warn(
            "conntrack",
            f"the conntrack table holds at most {table.most} connections",
            "every connection to this host takes an entry from now on, and a full table drops new ones",
            f"`sysctl -w net.netfilter.nf_conntrack_max={SMALL_TABLE * 4}` (and in /etc/sysctl.d)",
        )
    elif table.dropped:
        yield warn(
            "conntrack",
            f"{table.dropped} packets were dropped since boot because the conntrack table was full",
            "a connection without an entry has no mark, and its replies bypass the proxy",
            f"`sysctl -w net.netfilter.nf_conntrack_max={4 * table.most}` (and in /etc/sysctl.d)",
        )


def port_range(facts: Facts) -> Iterator[Finding]:
    low, high = (int(part) for part in (facts.settings.get("net.ipv4.ip_local_port_range") or "32768 60999").split())
    if high - low + 1 < SMALL_RANGE:
        yield warn(
            "ip_local_port_range",
            f"there are {high - low + 1} ephemeral ports ({low}-{high})",
            "so many connections at once one client can have to one backend, shared by all proxies",
            '`sysctl -w net.ipv4.ip_local_port_range="32768 60999"` (and in /etc/sysctl.d)',
        )
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        inside = spelled(port for port in listener.ports if low <= port <= high)
        if listener.is_wildcard and inside:
            yield warn(
                f"{listener.protocol} {inside}",
                f"the service on {listener.protocol} port {inside} of every address is inside the range of "
                f"ephemeral ports ({low}-{high})",
                "a client that uses that port itself cannot keep it towards the backend (EADDRINUSE)",
                "listen on the address that clients use, or on a port below the range",
            )


def udp_source(facts: Facts) -> Iterator[Finding]:
    """A wildcard UDP server answers from the address the kernel picks, not from the one it was asked at."""
    remedy = "let the server listen on the address that the proxy connects to"
    for document in facts.return_path:
        rules = list(rule_matching.lookups(document))
        by_port = [(rule.family, rule.sport) for rule in rules if rule.ip_proto == UDP and rule.sport]
        named = {port for protocol, port in facts.ports if protocol == "udp"}
        named |= {port for _family, ports in by_port for port in range(ports[0], ports[1] + 1)}
        by_address = {rule.family for rule in rules if rule.src and not rule.fwmark}
        for server in facts.sockets:
            if server.protocol != "udp" or not server.is_wildcard or server.port not in named:
                continue
            what = f"a server listens on UDP port {server.port} of every address"
            covered = any(family == server.family and ports[0] <= server.port <= ports[1] for family, ports in by_port)
            if server.family in by_address and not covered:
                yield fail(
                    f"udp {server.port}",
                    f"{what}, and the rules of the document go by the source address alone",
                    "the server's replies get their source only after they are routed, so they bypass the proxy",
                    remedy,
                )
            elif _chooses_another(facts, document, server.family):
                yield warn(
                    f"udp {server.port}",
                    f"{what}, and this host has several towards the proxy",
                    "its replies come from the first of them, which is wrong when the proxy asked another",
                    remedy,
                )


def _chooses_another(facts: Facts, document: Document, family: str) -> bool:
    """Whether a proxy's interface has several addresses, and no route of the document says which is the source."""
    links = {peer.dev for peer in facts.peers if peer.family == family}
    addresses = [one.value for one in facts.addresses or () if one.family == family and one.value.dev in links]
    several = len([one for one in addresses if not one.address.startswith("fe80:")]) > len(links)
    return several and not any(route.src for route in document.routes if route.family == family)
