# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A planned move of a virtual IP: what keeps the streams of the proxy that it leaves alive. Pure.

That proxy keeps the addresses on lo, where its sockets find them, and does not say by ARP that it has them. The others
send it each TCP packet of a connection that they do not have. All of it expires by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.endpoints import split_endpoint

TABLE = "l4proxy_second_chance"
# Connections of one family that begin during the move, at listeners bound to the address; about 100 bytes each.
MOST_CONNECTIONS = 1_000_000
# Before chains of anybody else: packets that are sent on are nobody else's business.
PRIORITY = -310


def plan(
    virtual_ips: Sequence[Mapping[str, Any]],
    leaving: str,
    links: Mapping[str, Sequence[Mapping[str, Any]]],
    services: Sequence[Mapping[str, Any]],
    seconds: int,
    announced: Sequence[str] = (),
) -> dict[str, Any]:
    """Return who holds the virtual IPs of a proxy, and the scripts of their planned move away from it.

    :param virtual_ips: those of the proxy ``leaving``, as _virtual_ips.virtual_ips() returns them.
    :param links: the output of ``ip -json address`` of each proxy that was asked, by name.
    :param services: those of ``l4proxy status --json`` on the proxy ``leaving``.
    :param seconds: after which everything expires.
    :param announced: addresses that all proxies have on lo; routers send their packets elsewhere from now on.
    :returns: ``holders``: lists of proxies by name of the virtual IP; ``held``: names of those that ``leaving`` holds;
        ``addresses``: theirs; ``keep``: commands for `ip -batch` on ``leaving``; ``quiet``: rules for nft there;
        ``others``: rules for nft by proxy.
    """
    holders = {one["name"]: _holders(one, leaving, links) for one in virtual_ips}
    moving = [one for one in virtual_ips if leaving in holders[one["name"]]]
    families = [family for one in moving for family in one["families"]]
    sent_on = [*families, *_announced(announced, leaving, links)]
    return {
        "holders": holders,
        "held": [one["name"] for one in moving],
        "addresses": [address for family in families for address in family["addresses"]],
        "keep": "\n".join(_on_lo(family, seconds) for family in families),
        "quiet": "\n".join(_quiet(families, seconds)),
        "others": {
            name: "\n".join(_send_on(name, sent_on, links, _ports(services), seconds))
            for name in sorted({name for family in sent_on for name in family["peers"]})
            if name in links
        },
    }


def _holders(one: Mapping[str, Any], leaving: str, links: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the proxies that have any address of a virtual IP on an interface other than lo."""
    wanted = {address for family in one["families"] for address in family["addresses"]}
    members = [leaving, *dict.fromkeys(name for family in one["families"] for name in family["peers"])]
    return [
        name
        for name in members
        if any(
            address.get("local") in wanted
            for link in links.get(name, ())
            if link.get("ifname") != "lo"
            for address in link.get("addr_info", ())
        )
    ]


def _announced(
    addresses: Sequence[str], leaving: str, links: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return families like those of a virtual IP, with the proxies that share a link with ``leaving``.

    The other proxies already have connections at these addresses. At a listener bound to one, nft does not tell them
    from connections of ``leaving``, so there nothing is sent on.
    """
    found = []
    for version in {ip_address(address).version for address in addresses}:
        for own, network in _on_links(links[leaving], version):
            peers = {
                name: other
                for name, listed in links.items()
                for other, at in _on_links(listed, version)
                if name != leaving and at == network
            }
            if peers:
                mine = [address for address in addresses if ip_address(address).version == version]
                found.append(
                    {"family": f"ipv{version}", "source": own, "peers": peers, "addresses": mine, "bound": False}
                )
                break
    return found


def _on_links(links: Sequence[Mapping[str, Any]], version: int) -> list[tuple[str, Any]]:
    """Return (address, network) of a host's addresses that others on its links reach."""
    return [
        (str(info["local"]), ip_network((info["local"], info["prefixlen"]), strict=False))
        for link in links
        if link.get("link_type") == "ether"
        for info in link.get("addr_info", ())
        if info.get("scope") == "global" and ip_address(info["local"]).version == version
    ]


def _on_lo(family: Mapping[str, Any], seconds: int) -> str:
    bits = 32 if family["family"] == "ipv4" else 128
    # Not preferred: nothing chooses it as the source of a new connection. Without a route of its prefix: the kernel
    # keeps the one of an IPv6 address with a lifetime when the address has gone.
    lives = f"scope host valid_lft {seconds} preferred_lft 0 noprefixroute"
    return "\n".join(f"address replace {address}/{bits} dev lo {lives}" for address in family["addresses"])


def _without_table(kind: str) -> list[str]:
    return [f"add table {kind} {TABLE}", f"delete table {kind} {TABLE}"]


def _addresses(kind: str, addresses: Iterable[str], seconds: int) -> str:
    elements = ", ".join(f"{address} timeout {seconds}s" for address in addresses)
    return f"set addresses {{ type {kind}_addr; flags timeout; elements = {{ {elements} }}; }}"


def _quiet(families: Sequence[Mapping[str, Any]], seconds: int) -> list[str]:
    """Return rules for nft that keep a host from answering ARP for addresses on lo, and from asking in their name."""
    mine = [family for family in families if family["family"] == "ipv4"]
    if not mine:
        return []
    return [
        *_without_table("arp"),
        f"table arp {TABLE} {{",
        _addresses("ipv4", [address for family in mine for address in family["addresses"]], seconds),
        "chain input { type filter hook input priority 0; arp daddr ip @addresses drop; }",
        "chain output { type filter hook output priority 0;",
        *(
            f"oifname {family['interface']} arp saddr ip @addresses arp saddr ip set {family['source']}"
            for family in mine
        ),
        "}",
        "}",
    ]


def _ports(services: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return (address, first and last port) of each TCP listener of the forwarder."""
    found = []
    for service in services:
        if service.get("protocol") == "tcp" and service.get("datapath") != "kernel":
            for listener in service["listen"]:
                host, ports = split_endpoint(listener)
                first, _dash, last = str(ports).partition("-")
                found.append((host, int(first), int(last or first)))
    return found


def _send_on(
    name: str,
    families: Sequence[Mapping[str, Any]],
    links: Mapping[str, Sequence[Mapping[str, Any]]],
    ports: Sequence[tuple[str, int, int]],
    seconds: int,
) -> list[str]:
    """Return rules for nft with which a proxy sends packets of connections that it does not have to another one."""
    lines: list[str] = []
    for field, kind in (("ip", "ipv4"), ("ip6", "ipv6")):
        lines += _without_table(field)
        mine = [family for family in families if family["family"] == kind and name in family["peers"]]
        if not mine:
            continue
        connection = f"{field} saddr . tcp sport . {field} daddr . tcp dport"
        lines += [
            f"table {field} {TABLE} {{",
            _addresses(kind, [address for family in mine for address in family["addresses"]], seconds),
            f"set own {{ type {kind}_addr . inet_service . {kind}_addr . inet_service;",
            f"size {MOST_CONNECTIONS}; flags dynamic, timeout; timeout {seconds}s; }}",
            f"chain prerouting {{ type filter hook prerouting priority {PRIORITY};",
            f"{field} daddr @addresses meta l4proto tcp jump streams; }}",
            "chain streams {",
            # Only from clients: two proxies that both lack a connection would send its packets to and fro.
            f"ether saddr {{ {', '.join(_macs(links))} }} return",
        ]
        for family in mine:
            to = f"dup to {family['source']} device {_device(name, family, links)} drop"
            sent_on = [one for one in ports if family.get("bound", True) or ip_address(one[0]).is_unspecified]
            for address in family["addresses"]:
                lines += _of_address(address, field, connection, sent_on, to)
        lines += ["}", "}"]
    return lines


def _of_address(address: str, field: str, connection: str, ports: Sequence[tuple[str, int, int]], to: str) -> list[str]:
    """Return the rules for the ports of one address.

    At a wildcard listener, only `socket` says whether there is a connection, and needs no memory. It finds a listener
    bound to the address as well as a connection, so there each connection that begins is stored.
    """
    parsed = ip_address(address)
    version = f"{field} daddr {address} tcp dport"
    wild = _port_set(one for one in ports if _is(one[0], parsed, wildcard=True))
    bound = _port_set(one for one in ports if _is(one[0], parsed, wildcard=False))
    begins = "tcp flags & (syn | ack) == syn"
    lines = []
    if bound:
        lines += [
            f"{version} {bound} {begins} add @own {{ {connection} }} return",
            f"{version} {bound} {begins} return",
            f"{version} {bound} {connection} @own return",
            f"{version} {bound} {to}",
        ]
    if wild:
        lines += [
            f"{version} {wild} {begins} return",
            f"{version} {wild} socket wildcard 1 {to}",
            *(f"{version} {wild} socket transparent {value} return" for value in (0, 1)),
            f"{version} {wild} {to}",
        ]
    return lines


def _is(host: str, address: Any, wildcard: bool) -> bool:
    listener = ip_address(host)
    return listener.version == address.version and (listener.is_unspecified if wildcard else listener == address)


def _port_set(ports: Iterable[tuple[str, int, int]]) -> str:
    """Return a set for nft; empty without ports. Ranges that touch or overlap become one."""
    merged: list[list[int]] = []
    for _host, first, last in sorted(ports, key=lambda one: one[1:]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in merged]
    return f"{{ {', '.join(texts)} }}" if texts else ""


def _macs(links: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the MAC addresses of all proxies that were asked."""
    found = {
        link.get("address") for all_links in links.values() for link in all_links if link.get("link_type") == "ether"
    }
    return sorted(str(mac) for mac in found if mac)


def _device(name: str, family: Mapping[str, Any], links: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the interface of a proxy that has the address at which the others know it."""
    for link in links[name]:
        if any(address.get("local") == family["peers"][name] for address in link.get("addr_info", ())):
            return str(link["ifname"])
    return str(family.get("interface"))
