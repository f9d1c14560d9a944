# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel settings and routes that break the path: reverse path filter, redirects, forwarding, ARP."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting
from ...document.model import Rule
from ...netlink.route_query import RouteAnswer
from .. import rule_matching
from ..facts.model import FORWARDING, Facts, Peer, conf
from ..finding import Finding, fail, fail_or_warn, skip, warn

RP_FILTER = {1: "strict", 2: "loose"}


def _larger(link: str) -> str:
    """Which of two settings the kernel uses, in words."""
    return f"the larger of conf.all and conf.{link}"


def default_route(facts: Facts) -> Iterator[Finding]:
    """With marks kept in conntrack a reply is routed once before it gets its mark, unless its socket has a mark."""
    sysctls = [sysctl for document in facts.return_path for sysctl in document.sysctls]
    by_socket = any(sysctl.name == "net.ipv4.tcp_fwmark_accept" for sysctl in sysctls)
    for peer in facts.peers:
        answer = _missing_route(peer)
        if peer.tracked and answer:
            yield fail_or_warn(
                not by_socket,
                peer.name,
                f"without a mark there is no {peer.family} route to {facts.clients[peer.family]} "
                f"({answer.error or answer.type})",
                f"the kernel routes {'a UDP' if by_socket else 'each'} reply once before it gets its mark, and without "
                "a route it sends no reply",
                f"`ip -{peer.family[-1]} route add default via ROUTER` (any route that covers the clients will do), "
                "or return_path_strategy: address",
            )


def _missing_route(peer: Peer) -> RouteAnswer | None:
    """The kernel's answer for a packet to the client without a mark, if it is that there is no route."""
    answer = peer.unmarked
    return answer if answer and answer.type not in ("unicast", "local") else None


def rp_filter(facts: Facts) -> Iterator[Finding]:
    reported: set[str] = set()
    for peer in facts.peers:
        if peer.family != "ipv4" or not peer.dev or not peer.arrival or peer.dev in reported:
            continue
        reported.add(peer.dev)
        mode = facts.highest("ipv4", peer.dev, "rp_filter")
        # Without any route to the client, default_route is the check that reports.
        if mode and peer.arrival.type == "refused" and not _missing_route(peer):
            out = peer.unmarked.dev if peer.unmarked else None
            yield fail(
                peer.dev,
                f"rp_filter on {peer.dev} is {mode} ({RP_FILTER.get(mode, 'on')}; {_larger(peer.dev)}), "
                f"but the route to {facts.clients['ipv4']} leaves by {out}",
                f"clients' packets that arrive through {peer.name} are dropped before they can be marked",
                f"`sysctl -w net.ipv4.conf.{peer.dev}.rp_filter=2` (and in /etc/sysctl.d), or "
                "return_path_strategy: address",
            )
    yield from _kernel_rp_filter(facts, reported)


def _kernel_rp_filter(facts: Facts, reported: set[str]) -> Iterator[Finding]:
    """The same for packets that the kernel of a proxy forwards."""
    for target in facts.kernel_targets:
        mode = facts.highest("ipv4", target.iif, "rp_filter") if target.family == "ipv4" and target.iif else 0
        if mode and target.iif not in reported and target.arrival and target.arrival.type == "refused":
            reported.add(str(target.iif))
            yield fail(
                str(target.iif),
                f"rp_filter on {target.iif} is {mode} ({RP_FILTER.get(mode, 'on')}; {_larger(str(target.iif))}), "
                f"but the route to {facts.clients['ipv4']} leaves by another interface",
                f"clients' packets to {target.address} arrive there, and are dropped before they are forwarded",
                f"`sysctl -w net.ipv4.conf.{target.iif}.rp_filter=2` (and in /etc/sysctl.d)",
            )


def src_valid_mark(facts: Facts) -> Iterator[Finding]:
    lookups = [rule for document in facts.local_delivery for rule in rule_matching.lookups(document)]
    if not any(rule.fwmark for rule in lookups):
        return
    links = sorted({backend.dev for backend in facts.backends if backend.dev}) or sorted(set(facts.links) - {"lo"})
    for link in links:
        if facts.highest("ipv4", link, "src_valid_mark"):
            yield fail(
                link,
                f"src_valid_mark on {link} is 1 ({_larger(link)}); Tailscale and wg-quick set it",
                "the kernel then also uses a reply's mark to validate its source, and drops the reply as a martian",
                f"`sysctl -w net.ipv4.conf.all.src_valid_mark=0 net.ipv4.conf.{link}.src_valid_mark=0`, or "
                "forwarder_local_delivery: rules",
            )


def redirected(facts: Facts) -> Iterator[Finding]:
    if facts.redirected is None:
        yield skip("routes learned from ICMP redirects cannot be listed without iproute2")
        return
    hops = {peer.via for peer in facts.peers}
    for target, gateway in sorted(facts.redirected.items()):
        if gateway not in hops:
            yield fail(
                target,
                f"replies to {target} go to {gateway}, because of an ICMP redirect",
                "a learned redirect overrides every policy route for 300 s, so these replies bypass the proxy",
                "`ip route flush cache`, then set accept_redirects=0 here and send_redirects=0 on the proxy: "
                "`l4proxy keep --once` on both",
            )


def accept_redirects(facts: Facts) -> Iterator[Finding]:
    for link in sorted({peer.dev for peer in facts.peers if peer.dev}):
        for family in sorted({peer.family for peer in facts.peers if peer.dev == link}):
            if facts.applied and _accepts_redirects(facts, family, link):
                yield warn(
                    link,
                    f"{link} accepts {family} redirects",
                    "one ICMP redirect makes the replies to a client bypass the proxy for 300 s",
                    f"`sysctl -w net.{family}.conf.all.accept_redirects=0 net.{family}.conf.{link}.accept_redirects=0`",
                )


def _accepts_redirects(facts: Facts, family: str, link: str) -> bool:
    """IN_DEV_RX_REDIRECTS of linux/inetdevice.h; for IPv6 only the interface's own setting counts."""
    own, every = (facts.setting(conf(family, name, "accept_redirects")) for name in (link, "all"))
    if family == "ipv6":
        return bool(own)
    forwards = facts.setting(conf("ipv4", link, "forwarding"))
    return bool(own and every) if forwards else bool(own or every)


def send_redirects(facts: Facts) -> Iterator[Finding]:
    for link in sorted({backend.dev for backend in facts.backends if backend.dev and backend.family == "ipv4"}):
        if facts.applied and facts.highest("ipv4", link, "send_redirects"):
            yield warn(
                link,
                f"{link} sends ICMP redirects ({_larger(link)})",
                "when this proxy forwards a backend's packet, it tells the backend to use the router instead",
                f"`sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{link}.send_redirects=0`",
            )


def ip_forward(facts: Facts) -> Iterator[Finding]:
    """Rules by source and protocol also take packets that a backend wants forwarded."""
    lookups = [rule for document in facts.local_delivery for rule in rule_matching.lookups(document)]
    by_source = {rule.family for rule in lookups if rule.src and not rule.fwmark}
    # Where kernel services need it, the datapath's own chain decides what is forwarded.
    by_source -= {family for document in facts.kernel_datapath for family in document.forwarding}
    for family, name in FORWARDING.items():
        if family not in by_source or not facts.setting(name):
            continue
        hosted = [backend for backend in facts.backends if backend.family == family and backend.is_hosted]
        for backend in hosted:
            yield fail(
                backend.address,
                f"this host routes for backend {backend.address}: {name} is 1, and the backend is behind "
                f"{backend.dev}, a bridge of this host",
                "everything that the backend sends to others is delivered to this host, so the backend is cut off",
                "set `forwarder_local_delivery: socket_mark` for this proxy, and run `site`",
            )
        if not hosted:
            yield warn(
                name,
                f"this proxy routes {family}: {name} is 1",
                "if backends use it as their router, what they send to others is delivered here instead of forwarded",
                f"set `forwarder_local_delivery: socket_mark` for this proxy, or `sysctl -w {name}=0`",
            )


def arp(facts: Facts) -> Iterator[Finding]:
    """To answer ARP the kernel looks up a route by addresses and interface, without a protocol (arp_process)."""
    if facts.rules is None:
        yield skip("rules cannot be listed without pyroute2")
        return
    rules = _rules_without_protocol(facts)
    for backend in facts.backends:
        rule = rules.get(backend.address)
        if rule and backend.dev and not facts.highest("ipv4", backend.dev, "arp_ignore"):
            yield fail(
                backend.address,
                f"this host answers ARP requests from {backend.address} for every address, including the router's, "
                f"because of `{formatting.rule(rule)}`",
                "the rule has no protocol, so it also applies to ARP, and the backend then sends all its traffic here",
                f"`ip rule del priority {rule.priority} from {rule_matching.host_of(rule.src)} table {rule.table}`, or "
                f"`sysctl -w net.ipv4.conf.{backend.dev}.arp_ignore=1`",
            )


def _rules_without_protocol(facts: Facts) -> dict[str | None, Rule]:
    """By source address, the rules that deliver everything from that address to this host."""
    routes = [found for found in facts.routes or () if found.value and found.value.type == "local"]
    tables = {(route.family, route.table) for route in routes}
    by_source: dict[str | None, Rule] = {}
    for found in facts.rules or ():
        rule = found.value
        delivers = rule and rule.family == "ipv4" and rule.src and (rule.family, rule.table) in tables
        if delivers and not (rule.ip_proto or rule.fwmark or rule.dst or rule.sport or rule.dport):
            by_source.setdefault(rule_matching.host_of(rule.src), rule)
    return by_source
