# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every other check stands on: packages, documents, interfaces, and neighbours that are who they should be."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts.model import Facts, Peer
from ..finding import FAIL, WARN, Finding, fail, skip, warn


def unread(facts: Facts) -> Iterator[Finding]:
    for name, reason in facts.unread.items():
        yield warn(
            name,
            f"{name} could not be read: {reason}",
            "the checks that need it are left out",
            "make that work and run `l4proxy doctor` again; report it where it looks like a defect of the doctor",
        )


def packages(facts: Facts) -> Iterator[Finding]:
    for package, lost in facts.missing.items():
        if facts.applied:
            yield fail(
                package,
                f"{package} is not installed",
                f"without it {lost}",
                f"`apt-get install {package}`, or keeper_manage_packages: true",
            )
        else:
            yield skip(f"{package} is not installed yet, so {lost} before this run")


def documents(facts: Facts) -> Iterator[Finding]:
    for fault in facts.faults:
        yield fail(
            "documents",
            fault,
            "the keeper passes such a file over, so what it describes is not restored at boot",
            "run the role that writes it again",
        )
    if not facts.documents and not facts.faults:
        yield fail(
            "documents",
            "there is no state document on this host",
            "it is neither a proxy nor a backend, and nothing here sends replies back or takes them in",
            "`ansible-playbook -i INVENTORY trueip.l4proxy.site`, or --directory if the documents are elsewhere",
        )


def links(facts: Facts) -> Iterator[Finding]:
    wanted = {peer.wanted_dev for peer in facts.peers} | {route.dev for one in facts.documents for route in one.routes}
    for name in sorted(name for name in wanted if name):
        state = facts.links.get(name)
        if not state:
            yield fail(
                name,
                f"interface {name} {'is down' if name in facts.links else 'does not exist'}",
                "the document sends replies out of it",
                f"`ip link set {name} up`" if name in facts.links else "run the site playbook again with fresh facts",
            )


def proxy_on_link(facts: Facts) -> Iterator[Finding]:
    for peer in facts.peers:
        if peer.is_local:
            yield fail(
                peer.name,
                f"{peer.via}, the address of proxy {peer.name}, is this host's own",
                "a host cannot be its own next hop",
                "give the proxy's address as l4proxy_address in its host_vars",
            )
        elif peer.dev is None:
            yield fail(
                peer.name,
                f"proxy {peer.name} ({peer.via}) is not on a link of this host",
                "a next hop has to be a direct neighbour, so replies cannot be sent to the proxy",
                "give the proxy an address in a subnet of this host, and name it as l4proxy_address in its host_vars",
            )
        elif peer.wanted_dev and peer.dev != peer.wanted_dev and facts.links.get(peer.wanted_dev):
            yield fail(
                peer.name,
                f"proxy {peer.name} ({peer.via}) is on {peer.dev}, but the document expects it on {peer.wanted_dev}",
                "replies would leave by an interface on which the proxy is not",
                "run the return_path role again, so that the document is derived from fresh facts",
            )


def _behind_the_router(peer: Peer) -> Finding:
    """Where only the two are known to share a MAC, the proxy may be the router itself, and then all is well."""
    shared = ", ".join((str(peer.router), *peer.beside))
    return Finding(
        FAIL if peer.beside else WARN,
        peer.name,
        f"proxy {peer.name} ({peer.via}) is at {peer.mac} on {peer.dev}, which is the MAC of the router too ({shared})",
        "where the router answers ARP for its neighbours (isolated ports, proxy_arp_pvlan, a cloud's network), packets "
        "of the proxy cannot be told from others, and replies go to the router instead of the proxy",
        "join the proxy and this backend by a link on which each answers for itself, or by a tunnel of their own, and "
        "name the addresses there as l4proxy_address; where the proxy is the router, "
        "l4proxy_ignore_findings: [proxy_mac]",
    )


def proxy_mac(facts: Facts) -> Iterator[Finding]:
    for peer in facts.peers:
        if peer.mac and peer.declared and peer.mac not in peer.declared:
            yield fail(
                peer.name,
                f"proxy {peer.name} is expected at {peer.declared[0]}, but {peer.via} is at {peer.mac}",
                "packets of that MAC are not marked, so their replies bypass the proxy",
                "correct l4proxy_mac in the host_vars of the proxy (or leave it out), and run the return_path role",
            )
        elif peer.mac and peer.mac == peer.router_mac:
            yield _behind_the_router(peer)
        elif facts.applied and peer.dev and peer.has_mac and not peer.mac and "python3-pyroute2" not in facts.missing:
            yield warn(
                peer.name,
                f"proxy {peer.name} ({peer.via}) does not answer on {peer.dev}",
                "it is down, or it is not where the document says; no reply can reach it",
                f"look at {peer.name}; its address is l4proxy_address in its host_vars",
            )
