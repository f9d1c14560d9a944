# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Relay programs on a backend: they connect to the server from their own address, so it does not see the client's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..facts.model import Facts, Peer, Relay
from ..facts.relay_programs import REMEDIES
from ..facts.unread import require
from ..finding import Finding, fail_or_warn
from ..firewall.model import DNAT, Packet
from .packet_filters import ANY_PORT

# These listen on a published port only to reserve it: DNAT takes clients to their ingress network, which hides the
# clients. The ports are those that the programs use themselves.
INGRESS = {"dockerd": (2375, 2376, 2377, 7946), "kube-proxy": (10249, 10256)}


def relayed(facts: Facts) -> Iterator[Finding]:
    """A relay whose port DNAT sends to a container receives no clients, so it is not reported."""
    require(facts.ruleset)
    reported = set()
    for peer in facts.peers:
        own = peer.own
        if not (own and peer.dev):
            continue
        for protocol, port in facts.served(own):
            for relay in facts.relays:
                key = (relay.pid, protocol, port)
                accepts = relay.socket.accepts(protocol, own, port) and key not in reported
                if accepts and _receives_clients(facts, peer, relay, protocol, port):
                    reported.add(key)
                    yield _finding(relay, protocol, port, (protocol, port) in facts.ports)


def _receives_clients(facts: Facts, peer: Peer, relay: Relay, protocol: str, port: int) -> bool:
    if relay.name in INGRESS:
        return port not in INGRESS[relay.name]
    return not _is_translated(facts, peer, protocol, port)


def _is_translated(facts: Facts, peer: Peer, protocol: str, port: int) -> bool:
    """Whether DNAT sends a client's packet elsewhere, such as to the container, before any socket receives it."""
    packet = Packet(peer.family, facts.clients[peer.family], peer.own, protocol, ANY_PORT, port, peer.dev)
    packet = replace(packet, src_type="unicast", dst_type="local")
    rules = facts.ruleset.reached("prerouting", packet) if facts.ruleset else ()
    return any(reached.certain and reached.rule.effect == DNAT for reached in rules)


def _finding(relay: Relay, protocol: str, port: int, certain: bool) -> Finding:
    return fail_or_warn(
        certain,
        f"{protocol} {port}",
        f"{relay.name} (process {relay.pid}) listens on {protocol} port {port} and connects to the server from a "
        "socket of its own",
        "the server sees the relay's address (127.0.0.1, or one of the container network) instead of the client's",
        REMEDIES[relay.name],
    )
