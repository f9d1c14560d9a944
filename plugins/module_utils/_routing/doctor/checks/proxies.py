# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a backend reaches its proxies directly, and at the MAC addresses that its document expects."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts.model import Facts, Peer
from ..finding import Finding, fail, fail_or_warn, warn


def proxy_on_link(facts: Facts) -> Iterator[Finding]:
    for peer in facts.peers:
        if peer.is_local:
            yield fail(
                peer.name,
                f"{peer.via}, the address of proxy {peer.name}, is this host's own",
                "a host cannot be its own next hop",
                "set l4proxy_address in the proxy's host_vars to the proxy's address",
            )
        elif peer.dev is None:
            yield fail(
                peer.name,
                f"proxy {peer.name} ({peer.via}) is not directly connected to this host",
                "a next hop must be a direct neighbour, so replies cannot be sent to the proxy",
                "give the proxy an address in a subnet of this host, and set l4proxy_address in its host_vars to it",
            )
        elif peer.wanted_dev and peer.dev != peer.wanted_dev and facts.links.get(peer.wanted_dev):
            yield fail(
                peer.name,
                f"proxy {peer.name} ({peer.via}) is on {peer.dev}, but the document expects it on {peer.wanted_dev}",
                "replies leave through an interface that does not reach the proxy",
                "run the return_path role again, which derives the document from new facts",
            )


def _same_mac_as_router(peer: Peer) -> Finding:
    """Only a warning while proxy and router alone share the MAC: the proxy may be the router itself, which is fine."""
    others = ", ".join((str(peer.router), *peer.same_mac))
    return fail_or_warn(
        bool(peer.same_mac),
        peer.name,
        f"proxy {peer.name} ({peer.via}) has the same MAC as the router on {peer.dev}: {peer.mac} (also {others})",
        "where the router answers ARP for its neighbours (isolated ports, proxy_arp_pvlan, a cloud's network), the "
        "proxy's packets look like the router's, and replies go to the router instead of the proxy",
        "connect the proxy and this backend by a link or tunnel on which each answers ARP for itself, and use those "
        "addresses as l4proxy_address; if the proxy is the router, l4proxy_ignore_findings: [proxy_mac]",
    )


def proxy_mac(facts: Facts) -> Iterator[Finding]:
    for peer in facts.peers:
        if peer.mac and peer.declared and peer.mac not in peer.declared:
            yield fail(
                peer.name,
                f"proxy {peer.name} should have MAC {peer.declared[0]}, but {peer.via} is at {peer.mac}",
                "packets from that MAC get no mark, so their replies bypass the proxy",
                "correct or remove l4proxy_mac in the proxy's host_vars, and run the return_path role",
            )
        elif peer.mac and peer.mac == peer.router_mac:
            yield _same_mac_as_router(peer)
        elif facts.applied and peer.dev and peer.has_mac and not peer.mac and "python3-pyroute2" not in facts.missing:
            yield warn(
                peer.name,
                f"proxy {peer.name} ({peer.via}) does not answer ARP or ND on {peer.dev}",
                "the proxy is down or has another address, so no reply reaches it",
                f"check that {peer.name} is up; its address is l4proxy_address in its host_vars",
            )


def proxy_silent(facts: Facts) -> Iterator[Finding]:
    for silent in facts.silent:
        yield warn(
            silent.proxy,
            f"proxy {silent.proxy} has not answered the keeper at {silent.address} since {silent.since}",
            "connections through it have stopped, except those that another proxy has taken over (datapath: kernel)",
            f"check that {silent.proxy} is up and connected; its address is l4proxy_address in its host_vars",
        )
