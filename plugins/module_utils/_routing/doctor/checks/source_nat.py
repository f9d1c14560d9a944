# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that hide the clients' addresses: source NAT anywhere between the forwarder's socket and the server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..facts.model import Facts, Socket, spelled
from ..finding import FAIL, WARN, Finding, skip
from ..firewall.model import DNAT, SNAT, Packet, Reached
from .packet_filters import ANY_PORT, NO_RULESET, is_unlisted

GREEN = "while the log, health checks and the probe say that all is well"
# So many backends or ports are named in a finding, the others counted.
NAMED = 8


@dataclass
class Rewrite:
    """A rule that rewrites the source of samples: where they were going, and whether that is sure of any."""

    found: Reached
    family: str
    addresses: set[str] = field(default_factory=set)
    ports: set[tuple[str, int]] = field(default_factory=set)
    sure: bool = False


def source_nat(facts: Facts) -> Iterator[Finding]:
    if is_unlisted(facts):
        yield skip(NO_RULESET)
        return
    for one in _rewrites(facts, _to_backends(facts), ("output", "postrouting")):
        yield _finding(
            one,
            f"what the forwarder sends to {_some(one.addresses)}",
            f"those backends see another address instead of the client's, {GREEN}",
            _exemption(one, "daddr", "-d", sorted(one.addresses)),
        )
    for one in _rewrites(facts, _at_listeners(facts), ("prerouting", "input")):
        yield _finding(
            one,
            f"clients' packets to {_ports(one)} of this proxy",
            "the forwarder takes the new address for the client's, and backends see that one",
            _exemption_of_ports(one),
        )
    for one in _rewrites(facts, _to_containers(facts), ("postrouting",)):
        yield _finding(
            one,
            f"clients' packets that this backend sends on to {_some(one.addresses)}",
            f"the server there (a container, a pod) sees this host instead of the client, {GREEN}",
            _exemption(one, "daddr", "-d", sorted(one.addresses)),
        )
    for one in _rewrites(facts, _at_servers(facts), ("prerouting", "input")):
        yield _finding(
            one,
            f"clients' packets to {_ports(one)} of this backend",
            f"its servers see another address instead of the client's, {GREEN}",
            _exemption_of_ports(one),
        )


def _to_backends(facts: Facts) -> Iterator[Packet]:
    """What the forwarder sends: the sample client is the source, and this host the sender."""
    targets = facts.forwarder.targets if facts.forwarder else ()
    uid = facts.forwarder.uid if facts.forwarder else None
    for backend in facts.backends:
        whole = Packet(
            backend.family,
            facts.clients[backend.family],
            backend.address,
            sport=ANY_PORT,
            iif="",
            oif=backend.dev,
            status="none",
            src_type="unicast",
            dst_type="unicast",
            # For IPv6 nft asks the rules for a packet in the other direction, and ours may say that it is local.
            src_fib="unicast" if backend.family == "ipv4" else None,
            uid=uid,
        )
        named = [one for one in targets if one.address == backend.address]
        for target in named or [Socket("tcp", backend.address, 0), Socket("udp", backend.address, 0)]:
            for port in target.ports:
                yield replace(whole, protocol=target.protocol, dport=port or None)


def _at_listeners(facts: Facts) -> Iterator[Packet]:
    for listener in facts.forwarder.listeners if facts.forwarder else ():
        whole = Packet(
            listener.family,
            facts.clients[listener.family],
            None if listener.is_wildcard else listener.address,
            listener.protocol,
            ANY_PORT,
            src_type="unicast",
            dst_type="local",
        )
        yield from (replace(whole, dport=port) for port in listener.ports)


def _at_servers(facts: Facts) -> Iterator[Packet]:
    """Clients' packets to every port that was named, or that something listens on."""
    for peer in facts.peers:
        if peer.own and peer.dev:
            whole = Packet(
                peer.family,
                facts.clients[peer.family],
                peer.own,
                sport=ANY_PORT,
                iif=peer.dev,
                src_type="unicast",
                dst_type="local",
            )
            for protocol, port in facts.served(peer.own):
                yield replace(whole, protocol=protocol, dport=port)


def _to_containers(facts: Facts) -> Iterator[Packet]:
    """Clients' packets that DNAT sends on, as they leave for where the server is."""
    for packet in _at_servers(facts):
        for one in facts.ruleset.reached("prerouting", packet):
            dev = facts.translated.get(one.rule.to) if one.rule.effect == DNAT else None
            if dev:
                yield replace(packet, dst=one.rule.to, dport=None, oif=dev, dst_type="unicast", src_fib="unicast")


def _rewrites(facts: Facts, packets: Iterable[Packet], hooks: tuple[str, ...]) -> list[Rewrite]:
    """The rules that rewrite the source of these packets. Packets that differ in their port alone are walked once
    without it first: most rulesets have no rule for any."""
    found: dict[tuple[str, str, str, str], Rewrite] = {}
    free: dict[Packet, bool] = {}
    for packet in packets:
        any_port = replace(packet, dport=None)
        if any_port not in free:
            free[any_port] = not any(True for _one in _sources(facts, any_port, hooks))
        for one in () if free[any_port] else _sources(facts, packet, hooks):
            key = (packet.family, one.chain.table, one.chain.name, one.rule.text)
            rewrite = found.setdefault(key, Rewrite(one, packet.family))
            rewrite.addresses.add(packet.dst or "")
            rewrite.ports |= {(packet.protocol, packet.dport)} if packet.dport else set()
            rewrite.sure = rewrite.sure or one.sure
    return list(found.values())


def _sources(facts: Facts, packet: Packet, hooks: tuple[str, ...]) -> Iterator[Reached]:
    for hook in hooks:
        yield from (one for one in facts.ruleset.reached(hook, packet) if one.rule.effect == SNAT)


def _finding(one: Rewrite, which: str, why: str, fix: str) -> Finding:
    chain, verb = one.found.chain, "rewrites" if one.sure else "may rewrite"
    what = f"`{one.found.rule.text}` in chain {chain.table} {chain.name} {verb} the source address of {which}"
    return Finding(FAIL if one.sure else WARN, chain.table, what, why, fix)


def _some(addresses: Iterable[str]) -> str:
    known = sorted(addresses)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(known[:NAMED]) + more


def _ports(one: Rewrite) -> str:
    by_protocol = {protocol: [port for name, port in one.ports if name == protocol] for protocol, _port in one.ports}
    return " and ".join(f"{protocol} port {spelled(ports)}" for protocol, ports in sorted(by_protocol.items()))


def _exemption(one: Rewrite, nft_word: str, iptables_word: str, values: list[str]) -> str:
    chain = one.found.chain
    command, table = chain.table.split()
    if "tables" in command:
        line = f"{command} -t {table} -I {chain.name} {iptables_word} {','.join(values)} -j ACCEPT"
    else:
        listed = values[0] if len(values) == 1 else f"'{{ {', '.join(values)} }}'"
        word = f"{'ip' if one.family == 'ipv4' else 'ip6'} {nft_word}"
        line = f"nft insert rule {chain.table} {chain.name} {word} {listed} accept"
    return f"give that rule the network it is for as a source, or exempt our packets where it is configured: `{line}`"


def _exemption_of_ports(one: Rewrite) -> str:
    chain = one.found.chain
    command, table = chain.table.split()
    lines = []
    for protocol, port in sorted(one.ports)[:NAMED]:
        if "tables" in command:
            lines.append(f"`{command} -t {table} -I {chain.name} -p {protocol} --dport {port} -j ACCEPT`")
        else:
            lines.append(f"`nft insert rule {chain.table} {chain.name} {protocol} dport {port} accept`")
    return f"take that rule out, or exempt the service: {', '.join(lines)}"
