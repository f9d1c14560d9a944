# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that hide the clients' addresses: source NAT anywhere between the forwarder's socket and the server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Callable

from ..facts.model import Facts, Socket, format_ports
from ..finding import Finding, fail_or_warn, skip
from ..firewall.model import DNAT, SNAT, Packet, Reached
from .kernel_datapath import request
from .packet_filters import ANY_PORT, NO_RULESET, no_ruleset

UNNOTICED = "although logs, health checks and the probe report no problem"
# A finding names at most this many backends or ports, and counts the others.
MAX_NAMED = 8


@dataclass
class Rewrite:
    """A rule that rewrites the source of sample packets, with the destinations and ports of those packets."""

    reached: Reached
    family: str
    addresses: set[str] = field(default_factory=set)
    ports: set[tuple[str, int]] = field(default_factory=set)
    certain: bool = False

    @property
    def text(self) -> str:
        return f"`{self.reached.rule.text}` in chain {self.reached.chain.table} {self.reached.chain.name}"


@dataclass(frozen=True)
class Stage:
    """A part of the path where source NAT can happen: sample packets there, and the hooks that they pass.

    ``traffic`` names the packets in a finding, ``effect`` is its ``why``, ``exemption`` makes its ``fix``.
    """

    packets: Callable[[Facts], Iterable[Packet]]
    hooks: tuple[str, ...]
    traffic: Callable[[Rewrite], str]
    effect: str
    exemption: Callable[[Rewrite], str]


def source_nat(facts: Facts) -> Iterator[Finding]:
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    for stage in STAGES:
        for rewrite in _rewrites(facts, stage.packets(facts), stage.hooks):
            verb = "rewrites" if rewrite.certain else "may rewrite"
            yield fail_or_warn(
                rewrite.certain,
                rewrite.reached.chain.table,
                f"{rewrite.text} {verb} the source address of {stage.traffic(rewrite)}",
                stage.effect,
                stage.exemption(rewrite),
            )


def _to_backends(facts: Facts) -> Iterator[Packet]:
    """What the forwarder sends: from the sample client's address, and by a socket of this host."""
    targets = facts.forwarder.targets if facts.forwarder else ()
    uid = facts.forwarder.uid if facts.forwarder else None
    for backend in facts.backends:
        base = Packet(
            backend.family,
            facts.clients[backend.family],
            backend.address,
            sport=ANY_PORT,
            iif="",
            oif=backend.dev,
            status="none",
            src_type="unicast",
            dst_type="unicast",
            # For IPv6 nft looks up the reverse direction, where our own rules may make the source local.
            src_fib="unicast" if backend.family == "ipv4" else None,
            uid=uid,
        )
        named = [target for target in targets if target.address == backend.address]
        for target in named or [Socket("tcp", backend.address, 0), Socket("udp", backend.address, 0)]:
            for port in target.ports:
                yield replace(base, protocol=target.protocol, dport=port or None)


def _forwarded(facts: Facts) -> Iterable[Packet]:
    """Clients' packets that the kernel forwards, as they leave towards a backend."""
    return (replace(request(facts, target), src_fib="unicast") for target in facts.kernel_targets)


def _to_listeners(facts: Facts) -> Iterator[Packet]:
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        base = Packet(
            listener.family,
            facts.clients[listener.family],
            None if listener.is_wildcard else listener.address,
            listener.protocol,
            ANY_PORT,
            src_type="unicast",
            dst_type="local",
        )
        yield from (replace(base, dport=port) for port in listener.ports)


def _to_servers(facts: Facts) -> Iterator[Packet]:
    """Clients' packets to every port that the caller named, or else that a socket listens on."""
    for peer in facts.peers:
        if peer.own and peer.dev:
            base = Packet(
                peer.family,
                facts.clients[peer.family],
                peer.own,
                sport=ANY_PORT,
                iif=peer.dev,
                src_type="unicast",
                dst_type="local",
            )
            for protocol, port in facts.served(peer.own):
                yield replace(base, protocol=protocol, dport=port)


def _to_containers(facts: Facts) -> Iterator[Packet]:
    """Clients' packets after DNAT, as they leave towards the container."""
    for packet in _to_servers(facts):
        for reached in facts.filters.reached("prerouting", packet):
            rule = reached.rule
            dev = facts.translated.get(rule.to) if rule.effect == DNAT else None
            if dev:
                yield replace(packet, dst=rule.to, dport=None, oif=dev, dst_type="unicast", src_fib="unicast")


def _rewrites(facts: Facts, packets: Iterable[Packet], hooks: tuple[str, ...]) -> list[Rewrite]:
    """The rules that rewrite the source of these packets, one Rewrite for each rule and family.

    Packets that differ only in their port are first tried without one, because most rulesets rewrite none of them.
    """
    by_rule: dict[tuple[str, str, str, str], Rewrite] = {}
    untouched: dict[Packet, bool] = {}
    for packet in packets:
        any_port = replace(packet, dport=None)
        if any_port not in untouched:
            untouched[any_port] = not any(True for _reached in _source_rules(facts, any_port, hooks))
        for reached in () if untouched[any_port] else _source_rules(facts, packet, hooks):
            key = (packet.family, reached.chain.table, reached.chain.name, reached.rule.text)
            rewrite = by_rule.setdefault(key, Rewrite(reached, packet.family))
            rewrite.addresses.add(packet.dst or "")
            rewrite.ports |= {(packet.protocol, packet.dport)} if packet.dport else set()
            rewrite.certain = rewrite.certain or reached.certain
    return list(by_rule.values())


def _source_rules(facts: Facts, packet: Packet, hooks: tuple[str, ...]) -> Iterator[Reached]:
    for hook in hooks:
        yield from (reached for reached in facts.filters.reached(hook, packet) if reached.rule.effect == SNAT)


def _addresses(rewrite: Rewrite) -> str:
    addresses = sorted(rewrite.addresses)
    more = f" and {len(addresses) - MAX_NAMED} more" if len(addresses) > MAX_NAMED else ""
    return ", ".join(addresses[:MAX_NAMED]) + more


def _ports(rewrite: Rewrite) -> str:
    ports: dict[str, list[int]] = {}
    for protocol, port in rewrite.ports:
        ports.setdefault(protocol, []).append(port)
    return " and ".join(f"{protocol} port {format_ports(numbers)}" for protocol, numbers in sorted(ports.items()))


def _exempt_addresses(rewrite: Rewrite) -> str:
    chain = rewrite.reached.chain
    command, table = chain.table.split()
    addresses = sorted(rewrite.addresses)
    if "tables" in command:
        line = f"{command} -t {table} -I {chain.name} -d {','.join(addresses)} -j ACCEPT"
    else:
        daddr = addresses[0] if len(addresses) == 1 else f"'{{ {', '.join(addresses)} }}'"
        family = "ip" if rewrite.family == "ipv4" else "ip6"
        line = f"nft insert rule {chain.table} {chain.name} {family} daddr {daddr} accept"
    return f"limit that rule to the source network it is meant for, or exempt proxied packets in its config: `{line}`"


def _exempt_ports(rewrite: Rewrite) -> str:
    chain = rewrite.reached.chain
    command, table = chain.table.split()
    lines = []
    for protocol, port in sorted(rewrite.ports)[:MAX_NAMED]:
        if "tables" in command:
            lines.append(f"`{command} -t {table} -I {chain.name} -p {protocol} --dport {port} -j ACCEPT`")
        else:
            lines.append(f"`nft insert rule {chain.table} {chain.name} {protocol} dport {port} accept`")
    return f"remove that rule, or exempt the service: {', '.join(lines)}"


STAGES = (
    Stage(
        _to_backends,
        ("output", "postrouting"),
        lambda rewrite: f"what the forwarder sends to {_addresses(rewrite)}",
        f"those backends see another address instead of the client's, {UNNOTICED}",
        _exempt_addresses,
    ),
    Stage(
        _forwarded,
        ("postrouting",),
        lambda rewrite: f"what the kernel forwards to {_addresses(rewrite)}",
        "those backends see another address instead of the client's, and no connection outlives this proxy",
        _exempt_addresses,
    ),
    Stage(
        _to_listeners,
        ("prerouting", "input"),
        lambda rewrite: f"clients' packets to {_ports(rewrite)} of this proxy",
        "the forwarder and the backends see the new address instead of the client's",
        _exempt_ports,
    ),
    Stage(
        _to_containers,
        ("postrouting",),
        lambda rewrite: f"clients' packets that this backend sends on to {_addresses(rewrite)}",
        f"the server there (a container, a pod) sees this host's address instead of the client's, {UNNOTICED}",
        _exempt_addresses,
    ),
    Stage(
        _to_servers,
        ("prerouting", "input"),
        lambda rewrite: f"clients' packets to {_ports(rewrite)} of this backend",
        f"the servers see another address instead of the client's, {UNNOTICED}",
        _exempt_ports,
    ),
)
