# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel settings that undo the path: reverse path filter, redirects, forwarding, ARP."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting
from ...document.model import Rule
from .. import rule_matching
from ..facts.model import Facts, conf
from ..finding import Finding, fail, skip, warn

RP_FILTER = {1: "strict", 2: "loose"}


def default_route(facts: Facts) -> Iterator[Finding]:
    """Only where connections keep the mark: a reply is routed once before it is restored, unless its socket has one."""
    by_socket = any(one.name == "net.ipv4.tcp_fwmark_accept" for doc in facts.return_path for one in doc.sysctls)
    complain = warn if by_socket else fail
    which = "a UDP reply" if by_socket else "a reply"
    for peer in facts.peers:
        if peer.tracked and peer.unmarked and peer.unmarked.type not in ("unicast", "local"):
            yield complain(
                peer.name,
                f"there is no {peer.family} route to {facts.clients[peer.family]} before the mark is restored "
                f"({peer.unmarked.error or peer.unmarked.type})",
                f"{which} is routed once without its mark, and one that has no route is never made",
                f"`ip -{peer.family[-1]} route add default via ROUTER` (any route that covers the clients will do), "
                "or return_path_strategy: address",
            )


def rp_filter(facts: Facts) -> Iterator[Finding]:
    named = set()
    for peer in facts.peers:
        if peer.family != "ipv4" or not peer.dev or not peer.arrival or peer.dev in named:
            continue
        named.add(peer.dev)
        mode = facts.highest("ipv4", peer.dev, "rp_filter")
        if mode and peer.arrival.type == "refused" and not _no_route(peer):
            out = peer.unmarked.dev if peer.unmarked else None
            yield fail(
                peer.dev,
                f"rp_filter on {peer.dev} is {mode} ({RP_FILTER.get(mode, 'on')}; the larger of all and {peer.dev}), "
                f"and the route to {facts.clients['ipv4']} leaves by {out}",
                f"packets of clients that arrive through {peer.name} are dropped before they can be marked",
                f"`sysctl -w net.ipv4.conf.{peer.dev}.rp_filter=2` (and in /etc/sysctl.d), or "
                "return_path_strategy: address",
            )


def _no_route(peer) -> bool:
    """Then it is the missing route that is at fault, and told of by ``default_route``."""
    return bool(peer.unmarked) and peer.unmarked.type not in ("unicast", "local")


def src_valid_mark(facts: Facts) -> Iterator[Finding]:
    marked = [rule for one in facts.local_delivery for rule in rule_matching.lookups(one) if rule.fwmark]
    links = sorted({backend.dev for backend in facts.backends if backend.dev}) or sorted(set(facts.links) - {"lo"})
    if marked:
        for link in links:
            if facts.highest("ipv4", link, "src_valid_mark"):
                yield fail(
                    link,
                    f"src_valid_mark on {link} is 1 (the larger of all and {link})",
                    "the mark of a reply is then used in the check of its source as well, and the reply is dropped as "
                    "a martian; Tailscale and wg-quick set it",
                    f"`sysctl -w net.ipv4.conf.all.src_valid_mark=0 net.ipv4.conf.{link}.src_valid_mark=0`, or rules "
                    "by protocol instead of the mark of sockets",
                )


def redirected(facts: Facts) -> Iterator[Finding]:
    if facts.redirected is None:
        yield skip("the routes that redirects have taught cannot be listed without iproute2")
        return
    hops = {peer.via for peer in facts.peers}
    for target, gateway in sorted(facts.redirected.items()):
        if gateway not in hops:
            yield fail(
                target,
                f"replies to {target} go to {gateway}, which an ICMP redirect has taught",
                "what a redirect teaches outranks every policy route for 300 s, and those replies bypass the proxy",
                "`ip route flush cache`, and accept_redirects=0 here and send_redirects=0 on the proxy: "
                "`l4proxy keep --once` on both",
            )


def accept_redirects(facts: Facts) -> Iterator[Finding]:
    for link in sorted({peer.dev for peer in facts.peers if peer.dev}):
        for family in sorted({peer.family for peer in facts.peers if peer.dev == link}):
            if facts.applied and _accepts_redirects(facts, family, link):
                yield warn(
                    link,
                    f"{link} accepts {family} redirects",
                    "one redirect makes the replies to a client bypass the proxy for 300 s",
                    f"`sysctl -w net.{family}.conf.all.accept_redirects=0 net.{family}.conf.{link}.accept_redirects=0`",
                )


def _accepts_redirects(facts: Facts, family: str, link: str) -> bool:
    """IN_DEV_RX_REDIRECTS of linux/inetdevice.h; IPv6 looks at the interface alone (ndisc_redirect_rcv)."""
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
                f"{link} sends redirects (the larger of all and {link})",
                "if this proxy forwards one packet of a backend, it tells the backend to use the router from then on",
                f"`sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{link}.send_redirects=0`",
            )


def ip_forward(facts: Facts) -> Iterator[Finding]:
    """Rules by source and protocol take whatever a backend sends, also what it wants forwarded."""
    by_source = {
        rule.family
        for one in facts.local_delivery
        for rule in rule_matching.lookups(one)
        if rule.src and not rule.fwmark
    }
    for family, name in (("ipv4", "net.ipv4.ip_forward"), ("ipv6", "net.ipv6.conf.all.forwarding")):
        if family not in by_source or not facts.setting(name):
            continue
        hosted = [one for one in facts.backends if one.family == family and one.is_hosted]
        for backend in hosted:
            yield fail(
                backend.address,
                f"{name} is 1 and backend {backend.address} is behind {backend.dev}, a bridge of this host: this host "
                "routes for it",
                "what that backend sends to others is taken in here, so its own way out is cut",
                "`forwarder_local_delivery: socket_mark` for this proxy, and run `site`",
            )
        if not hosted:
            yield warn(
                name,
                f"{name} is 1: this proxy routes {family}",
                "where backends use it as their router, what they send ends here instead of being forwarded",
                f"`forwarder_local_delivery: socket_mark` for this proxy, or `sysctl -w {name}=0`",
            )


def arp(facts: Facts) -> Iterator[Finding]:
    """The kernel looks up the asker's question by addresses and interface, without a protocol (arp_process)."""
    if facts.rules is None:
        yield skip("rules cannot be listed without pyroute2")
        return
    bare = _bare_rules(facts)
    for backend in facts.backends:
        rule = bare.get(backend.address)
        if rule and backend.dev and not facts.highest("ipv4", backend.dev, "arp_ignore"):
            yield fail(
                backend.address,
                f"this host answers ARP requests of {backend.address} for any address, the router's included, because "
                f"of `{formatting.rule(rule)}`",
                "such a rule has no protocol, so ARP takes every address for a local one; the backend then sends its "
                "traffic for others here",
                f"`ip rule del priority {rule.priority} from {rule_matching.host_of(rule.src)} table {rule.table}`, or "
                f"`sysctl -w net.ipv4.conf.{backend.dev}.arp_ignore=1`",
            )


def _bare_rules(facts: Facts) -> dict[str | None, Rule]:
    """Rules that deliver whatever comes from one address, by that address."""
    tables = {(one.family, one.table) for one in facts.routes or () if one.value and one.value.type == "local"}
    found: dict[str | None, Rule] = {}
    for one in facts.rules or ():
        rule = one.value
        delivers = rule and rule.family == "ipv4" and rule.src and (rule.family, rule.table) in tables
        if delivers and not (rule.ip_proto or rule.fwmark or rule.dst or rule.sport or rule.dport):
            found.setdefault(rule_matching.host_of(rule.src), rule)
    return found
