# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What keeps a proxy's kernel from forwarding services: settings, packet filters and translations of other tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..facts.model import BRIDGED, FORWARDING, TCP_LOOSE, Facts, KernelTarget, conf
from ..finding import Finding, fail, fail_or_warn, skip, warn
from ..firewall.model import DNAT, SNAT, SYNPROXY, UNTRACK, Packet, Reached, Verdict
from .packet_filters import ANY_PORT, CONNTRACK, NO_RULESET, no_ruleset


def forwarding(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel forwards the families of kernel services: on the host, and for IPv4 on each interface."""
    if not facts.applied:
        return
    for family in sorted({family for document in facts.kernel_datapath for family in document.forwarding}):
        links = {link for target in facts.kernel_targets if target.family == family for link in target.links}
        names = [conf("ipv4", link, "forwarding") for link in sorted(links)] if family == "ipv4" else []
        name = FORWARDING[family]
        off = [name] if facts.setting(name) == 0 else [name for name in names if facts.setting(name, 1) == 0]
        for name in off:
            yield fail(
                name,
                f"{name} is 0, so this host does not forward {family} packets",
                "clients of kernel services get no connection, and open ones stop",
                f"`sysctl -w {name}=1`, and remove the setting from /etc/sysctl.d or from the tool that made it",
            )


def tcp_loose(facts: Facts) -> Iterator[Finding]:
    if facts.applied and facts.kernel_targets and facts.setting(TCP_LOOSE, 1) == 0:
        yield fail(
            TCP_LOOSE,
            f"{TCP_LOOSE} is 0, so conntrack ignores connections that another proxy began",
            "when this proxy takes over the virtual address, all open connections of kernel services end",
            f"`sysctl -w {TCP_LOOSE}=1`, and remove the setting from /etc/sysctl.d; a SYN proxy may have needed it",
        )


def forward_filter(facts: Facts) -> Iterator[Finding]:
    """FORWARD rules and policies of others, such as Docker's and firewalld's. Every chain must accept a packet."""
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    reported = set()
    for target in facts.kernel_targets:
        for which, packet in _forwarded(facts, target):
            verdict = facts.filters.verdict("forward", packet)
            if not verdict.accepted and (which, target.family, verdict) not in reported:
                reported.add((which, target.family, verdict))
                yield _dropped(facts, target, which, verdict)


def request(facts: Facts, target: KernelTarget) -> Packet:
    """A client's first packet after the translation."""
    packet = Packet(target.family, facts.clients[target.family], target.target, target.protocol, ANY_PORT)
    packet = replace(packet, dport=target.target_port, iif=target.iif, oif=target.oif, status="dnat", syn="yes")
    return replace(packet, src_type="unicast", dst_type="unicast")


def _forwarded(facts: Facts, target: KernelTarget) -> Iterator[tuple[str, Packet]]:
    """A client's packet after the translation, the reply, and a reply to a connection that another proxy began."""
    client = facts.clients[target.family]
    reply = Packet(target.family, target.target, client, target.protocol, target.target_port, ANY_PORT)
    reply = replace(reply, iif=target.oif, oif=target.iif, status="dnat", state="established")
    yield "clients' packets", request(facts, target)
    yield "replies", replace(reply, syn="no")
    yield "replies after a take-over", replace(reply, syn="no", status="none", state="new")


def _dropped(facts: Facts, target: KernelTarget, which: str, verdict: Verdict) -> Finding:
    doubt = "" if verdict.certain else "; a rule before it that the doctor cannot interpret may accept them"
    resumed = which == "replies after a take-over"
    effect = "when this proxy takes the virtual address over, downloads stop" if resumed else "clients time out"
    command = "ip6tables" if target.family == "ipv6" else "iptables"
    ends = [
        f"-p {target.protocol} {option} {target.target} --{port} {target.target_port}"
        for option, port in (("-d", "dport"), ("-s", "sport"))
    ]
    word = "ip6" if target.family == "ipv6" else "ip"
    nft = [f"{word} {end}addr {target.target} {target.protocol} {end}port {target.target_port}" for end in ("d", "s")]
    if "tables " in verdict.by:
        remedy = " and ".join(f"`{command} -I FORWARD {end} -j ACCEPT`" for end in ends)
    else:
        remedy = " and ".join(f"`nft insert rule TABLE CHAIN {end} accept`" for end in nft)
    return fail_or_warn(
        verdict.certain and not resumed,
        target.target,
        f"a packet filter drops {which} of kernel service {target.service} ({verdict.by}{doubt})",
        f"the kernel forwards them, and every chain at the forward hook must accept them, so {effect}",
        f"accept both directions, also in the tool that makes that rule: {remedy}",
    )


def others_forward(facts: Facts) -> Iterator[Finding]:
    """What others forward on a host that did not forward before its services: source NAT (Docker, a VPN), bridges."""
    for name in (BRIDGED[family] for family in sorted(facts.only_services)):
        if facts.bridges and facts.setting(name):
            yield warn(
                name,
                f"{name} is 1, so frames between the ports of {', '.join(facts.bridges)} pass the forward hook, and "
                "the nft table of kernel services drops them",
                "guests of this host cannot reach each other or the network",
                f"`sysctl -w {name}=0`, also in /etc/sysctl.d",
            )
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    for chain in facts.filters.chains.values():
        families = [family for family in sorted(facts.only_services) if chain.family in ("inet", family)]
        for rule in chain.rules if families and chain.hook in ("", "postrouting") else ():
            if rule.effect == SNAT:
                yield warn(
                    chain.table,
                    f"`{rule.text}` in chain {chain.table} {chain.name} is for packets that this host forwards for "
                    "others, but these are dropped",
                    "this host did not forward before its kernel services, so their nft table drops everything else; "
                    "the tool of that rule (Docker, a VPN) has come later",
                    "if it should forward: set `datapath: forwarder` for the services of this proxy and run `site`; "
                    f"`sysctl -w {' '.join(f'{FORWARDING[family]}=1' for family in families)}`, also in /etc/sysctl.d; "
                    "then set `datapath` back and run `site`",
                )


def virtual_address(facts: Facts) -> Iterator[Finding]:
    """Rules of others for the address and port of a kernel service: translations, NOTRACK, SYN proxies."""
    if no_ruleset(facts):
        yield skip(NO_RULESET)
        return
    reported = set()
    for target in facts.kernel_targets:
        packet = Packet(target.family, facts.clients[target.family], target.address, target.protocol, ANY_PORT)
        packet = replace(packet, dport=target.port, iif=target.iif, state=None, src_type="unicast", syn="yes")
        packet = replace(packet, dst_type="local" if target.address in facts.own else "unicast")
        for reached in _conflicts(facts, packet):
            key = (target.endpoint, reached.chain.table, reached.chain.name, reached.rule.text)
            if key not in reported:
                reported.add(key)
                yield _conflict(target, reached)


def _conflicts(facts: Facts, packet: Packet) -> Iterable[Reached]:
    for hook, state in (("prerouting", packet.state), ("input", "untracked"), ("forward", "untracked")):
        for reached in facts.filters.reached(hook, replace(packet, state=state)):
            early = reached.rule.effect == UNTRACK and reached.base.priority < CONNTRACK
            translates = reached.rule.effect == DNAT and hook == "prerouting"
            if early or translates or (reached.rule.effect == SYNPROXY and packet.protocol == "tcp"):
                yield reached


def _conflict(target: KernelTarget, reached: Reached) -> Finding:
    chain, rule = reached.chain, reached.rule
    verb, effect = {
        DNAT: ("translates", "clients reach another server, and the limits, lists and health checks do not apply"),
        UNTRACK: ("disables conntrack for", "the kernel cannot translate them, so clients reach this host itself"),
        SYNPROXY: ("answers in place of", "connections then end when another proxy takes the virtual address over"),
    }[rule.effect]
    where = f"{target.protocol} port {target.port} of {target.address}"
    return fail_or_warn(
        reached.certain,
        f"{target.protocol} {target.port}",
        f"`{rule.text}` in chain {chain.table} {chain.name} {verb} {where}, which belong to kernel service "
        f"{target.service}",
        effect,
        f"exclude {where} from that rule, or set `datapath: forwarder` for the service",
    )
