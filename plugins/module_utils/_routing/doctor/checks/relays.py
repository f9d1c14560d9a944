# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs of a backend that accept clients for a server and connect to it themselves: it sees them, not the client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..facts.model import Facts, Peer, Relay
from ..facts.unread import require
from ..finding import FAIL, WARN, Finding
from ..firewall.model import DNAT, Packet
from .packet_filters import ANY_PORT

HOST_NETWORK = "run the container in the host's network (--network=host)"
DOCKER = f"{HOST_NETWORK}, or let Docker translate instead (iptables and ip6tables: true, userland-proxy: false)"
DIRECT = "let the server itself listen on that port"
# Program (its first 15 characters, as the kernel names it): the remedy.
PROGRAMS = {
    "docker-proxy": DOCKER,
    "rootlesskit": f"{HOST_NETWORK}, or use another port handler (rootlesskit: --port-driver=implicit with pasta)",
    "rootlessport": f"{HOST_NETWORK}, or use another port handler (--network=pasta)",
    "slirp4netns": f"{HOST_NETWORK}, or use another port handler (--network=pasta)",
    "dockerd": "publish the port of the Swarm service with mode: host; its ingress network hides the clients",
    "kube-proxy": "externalTrafficPolicy: Local for that service; or the pod in the host's network",
    "socat": DIRECT,
    "ssh": DIRECT,
    "autossh": DIRECT,
    "redir": DIRECT,
    "rinetd": DIRECT,
    "stunnel": f"{DIRECT}, or let stunnel send the client's address (transparent = source, or protocol = proxy)",
    "stunnel4": f"{DIRECT}, or let stunnel send the client's address (transparent = source, or protocol = proxy)",
    "systemd-socket-": f"{DIRECT}, or hand it the socket itself in the place of systemd-socket-proxyd",
    "systemd-socket-proxyd": f"{DIRECT}, or hand it the socket itself in the place of systemd-socket-proxyd",
}
# These listen on a published port only to keep it: a translation takes clients to the ingress, which hides them. Ports
# that they have for themselves.
INGRESS = {"dockerd": (2375, 2376, 2377, 7946), "kube-proxy": (10249, 10256)}


def relayed(facts: Facts) -> Iterator[Finding]:
    """A relay listens where clients come in. One whose port is translated to a container first never sees them."""
    require(facts.ruleset)
    named = set()
    for peer in (one for one in facts.peers if one.own and one.dev):
        for protocol, port in facts.served(peer.own):
            for relay in facts.relays:
                key = (relay.pid, protocol, port)
                is_here = relay.socket.accepts(protocol, peer.own, port) and key not in named
                if is_here and _is_reached(facts, peer, relay, protocol, port):
                    named.add(key)
                    yield _finding(relay, protocol, port, (protocol, port) in facts.ports)


def _is_reached(facts: Facts, peer: Peer, relay: Relay, protocol: str, port: int) -> bool:
    if relay.name in INGRESS:
        return port not in INGRESS[relay.name]
    return not _is_translated(facts, peer, protocol, port)


def _is_translated(facts: Facts, peer: Peer, protocol: str, port: int) -> bool:
    """Whether a client's packet is sent elsewhere, such as to the container itself, before any socket sees it."""
    packet = Packet(peer.family, facts.clients[peer.family], peer.own, protocol, ANY_PORT, port, peer.dev)
    packet = replace(packet, src_type="unicast", dst_type="local")
    rules = facts.ruleset.reached("prerouting", packet) if facts.ruleset else ()
    return any(one.sure and one.rule.effect == DNAT for one in rules)


def _finding(relay: Relay, protocol: str, port: int, sure: bool) -> Finding:
    return Finding(
        FAIL if sure else WARN,
        f"{protocol} {port}",
        f"{relay.name} (process {relay.pid}) listens on {protocol} port {port} and relays to the server from a socket "
        "of its own",
        "this host sees the client, but the server sees the relay (127.0.0.1, or an address of the container network)",
        PROGRAMS[relay.name],
    )
