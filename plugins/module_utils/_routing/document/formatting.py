# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Describe the objects of documents as text for people: rules, routes and addresses in the syntax of ip(8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._shared.endpoints import join_endpoint
from . import announced
from .announced import Announced
from .kernel_service import KernelService
from .model import (
    DEFAULT_METRIC,
    MAX_U32,
    OWNERS,
    SINGLE_OBJECTS,
    Address,
    Mark,
    Route,
    Rule,
    Sysctl,
    default_scope,
    ip_protocol_name,
)

# The most common ones of rt_protos(5).
KNOWN_PROTOCOLS = {0: "unspec", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp"}


def ip_command(family: str) -> str:
    return "ip" if family == "ipv4" else "ip -6"


def owner_name(protocol: int) -> str:
    """``proto static``, or ``owner return_path (proto 202)`` for our own documents."""
    for owner, number in OWNERS.items():
        if number == protocol:
            return f"owner {owner} (proto {number})"
    if protocol == SINGLE_OBJECTS:
        return f"modules policy_rule and policy_route (proto {protocol})"
    return f"proto {KNOWN_PROTOCOLS.get(protocol, protocol)}"


def _range(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def _host(prefix: str) -> str:
    """The prefix without its length if it is a single address, as ip(8) prints it."""
    return prefix.rsplit("/", 1)[0] if prefix.endswith("/128" if ":" in prefix else "/32") else prefix


def rule(value: Rule) -> str:
    words = [ip_command(value.family), "rule", f"{value.priority}:", "from", _host(value.src) if value.src else "all"]
    if value.dst:
        words += ["to", _host(value.dst)]
    if value.fwmark is not None:
        all_bits = value.fwmask in (None, MAX_U32)
        words += ["fwmark", f"{value.fwmark:#x}" if all_bits else f"{value.fwmark:#x}/{value.fwmask:#x}"]
    for name, link in (("iif", value.iif), ("oif", value.oif)):
        if link:
            words += [name, link]
    if value.uid_range:
        words += ["uidrange", "-".join(map(str, value.uid_range))]
    if value.ip_proto is not None:
        words += ["ipproto", ip_protocol_name(value.ip_proto)]
    for name, ports in (("sport", value.sport), ("dport", value.dport)):
        if ports:
            words += [name, _range(ports)]
    words += [value.action] if value.table is None else [value.action, str(value.table)]
    if value.suppress_prefixlength is not None:
        words += ["suppress_prefixlength", str(value.suppress_prefixlength)]
    return " ".join(words)


def route(value: Route) -> str:
    words = [ip_command(value.family), "route"] + ([] if value.type == "unicast" else [value.type]) + [_host(value.dst)]
    for name, part in (("via", value.via), ("dev", value.dev), ("table", value.table), ("src", value.src)):
        if part is not None:
            words += [name, str(part)]
    if value.metric != DEFAULT_METRIC[value.family]:
        words += ["metric", str(value.metric)]
    if value.scope != default_scope(value.family, value.type, value.via):
        words += ["scope", str(value.scope)]
    words += ["onlink"] if value.onlink else []
    for name, number in (("mtu", value.mtu), ("advmss", value.advmss)):
        if number is not None:
            words += [name, str(number)]
    return " ".join(words)


def address(value: Address) -> str:
    return f"{ip_command(value.family)} addr {value.address} dev {value.dev}"


def mark(value: Mark, engine: str | None = None) -> str:
    words = ["iptables" if engine == "iptables" else "nft", "mark", value.name, f"{value.id:#x}/{value.mask:#x}"]
    if value.transparent:
        words += ["to", "transparent", "sockets"]
    elif value.iif:
        words += ["iif", value.iif]
    elif value.macs or not value.retiring:
        words += ["from", ",".join(value.macs) or "(not yet known)"]
    if not value.conntrack and not value.transparent:
        words += ["without", "conntrack"]
    ports = ",".join(value.last_sender)
    for name, part in (("via", ",".join(value.via)), ("dev", value.oif), ("last sender of", ports)):
        words += [name, part] if part else []
    return " ".join(words)


def mark_set(engine: str | None) -> str:
    """What holds an owner's marks."""
    return "the iptables chains of marks" if engine == "iptables" else "the nft table of marks"


def sysctl(value: Sysctl) -> str:
    return f"sysctl {value.name} = {value.value}"


def service(value: KernelService, verb: str = "forward") -> str:
    """``forward 198.18.0.100:80/tcp to b, c, d``"""
    what = f"{join_endpoint(value.address, value.port)}/{value.protocol}"
    names = ", ".join(server.name for server in value.servers)
    return f"{verb} {'open connections of ' * value.retiring}{what} to {names}"


def service_details(value: KernelService) -> str:
    """The service with all that differs from the defaults."""
    words = [service(value)]
    for server in value.servers:
        words.append(f"{server.name}={join_endpoint(server.address, server.port)}")
        words += [f"weight={server.weight}"] if server.weight != 1 else []
        words += [f"tier={server.tier}"] if server.tier else []
        words += [] if server.enabled else ["disabled"]
    plain = KernelService("", "", "", "", 0, ())
    options = ("balance", "on_all_down", "on_down", "allow", "deny", "connections", "connections_per_client")
    for name in (*options, "rate_per_client", "log"):
        part = getattr(value, name)
        if part != getattr(plain, name):
            words.append(f"{name}={','.join(part) if isinstance(part, tuple) else part}")
    return " ".join(words)


def describe(value: Rule | Route | Mark | Sysctl | Address | Announced | KernelService) -> str:
    """The object as one line."""
    return WRITERS[type(value)](value)


WRITERS: dict[type, Callable[[Any], str]] = {
    Rule: rule,
    Route: route,
    Mark: mark,
    Sysctl: sysctl,
    Address: address,
    Announced: announced.describe,
    KernelService: service,
}
