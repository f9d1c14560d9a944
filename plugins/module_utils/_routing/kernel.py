# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes, neighbours, links and addresses of the kernel. The only importer of pyroute2 (0.7.2 and 0.9.7).

Everything concerns the network namespace that the calling thread is in when the ``Kernel`` is made.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import text
from .errors import MissingPackage
from .model import FAMILIES, MAX_U32, Route, Rule
from .route_query import RouteAnswer, route_get

PYROUTE2_ERROR: str | None = None
try:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError
except ImportError:
    PYROUTE2_ERROR = traceback.format_exc()
    IPRoute = None
    NetlinkError = OSError

__all__ = ["PYROUTE2_ERROR", "Found", "Kernel", "NetlinkError", "RouteAnswer", "reason", "route_get"]

AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# FR_ACT_* of linux/fib_rules.h, RTN_* and RT_SCOPE_* of linux/rtnetlink.h
ACTIONS = {1: "lookup", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST, SCOPE_NOWHERE = 0, 253, 254, 255
RTM_F_CLONED = 0x200
FIB_RULE_INVERT = 0x2
# What a rule can select by and we never write: such a rule is not one of ours, whatever its protocol number.
OTHER_SELECTORS = ("FRA_OIFNAME", "FRA_TUN_ID", "FRA_L3MDEV", "FRA_UID_RANGE", "FRA_GOTO", "FRA_FLOW")
# NUD_* of linux/neighbour.h: REACHABLE, STALE, DELAY, PROBE, PERMANENT have a usable address.
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
NTF_USE = 0x01


@dataclass(frozen=True)
class Found:
    """An object of the kernel with its owner. ``value`` is None for one the model cannot say; ``text`` describes it."""

    value: Any
    protocol: int
    family: str = ""
    table: int = 0
    text: str = ""


def reason(error: Exception) -> str:
    """An error number in words: ``Network is unreachable (ENETUNREACH)``."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if not isinstance(code, int):
        return str(error)
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


class Kernel:
    """A context manager over one netlink socket."""

    def __init__(self) -> None:
        if PYROUTE2_ERROR:
            raise MissingPackage("python3-pyroute2", "rules and routes need Python's pyroute2")
        self._netlink = IPRoute()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._netlink.close()

    # --- rules

    def rules(self) -> list[Found]:
        """All policy rules, of every owner."""
        return [_rule(message, family) for family in FAMILIES for message in self._netlink.get_rules(family=AF[family])]

    def add_rule(self, rule: Rule, protocol: int) -> None:
        """NetlinkError (EEXIST) when it is there already."""
        self._netlink.rule("add", **_rule_arguments(rule, protocol))

    def remove_rule(self, rule: Rule, protocol: int) -> None:
        """Remove exactly this rule; NetlinkError (ENOENT) when it is not there.

        The kernel takes a selector left out of the request for "any", and removes the first rule that fits: for
        ``from X`` that may be ``from X ipproto tcp``. Such a bystander is put back.
        """
        before = self._owned_rules(protocol)
        if rule not in before:
            raise NetlinkError(errno.ENOENT, os.strerror(errno.ENOENT))
        bystanders: list[Rule] = []
        while rule in self._owned_rules(protocol):
            self._netlink.rule("del", **_rule_arguments(rule, protocol))
            left = self._owned_rules(protocol)
            bystanders += [other for other in before if other not in left and other not in (rule, *bystanders)]
        for other in bystanders:
            self.add_rule(other, protocol)

    def _owned_rules(self, protocol: int) -> list[Rule]:
        return [found.value for found in self.rules() if found.protocol == protocol and found.value is not None]

    # --- routes

    def routes(self) -> list[Found]:
        """All routes outside the tables main, local and default, of every owner."""
        found = []
        for family in FAMILIES:
            for message in self._netlink.get_routes(family=AF[family]):
                table = message.get_attr("RTA_TABLE") or message["table"]
                if table not in (0, 253, 254, 255) and not message["flags"] & RTM_F_CLONED:
                    found.append(_route(message, family, table))
        return found

    def set_route(self, route: Route, protocol: int) -> None:
        """Add the route, or replace the one of the same table, destination and metric."""
        self._netlink.route("replace", **_route_arguments(route, protocol))

    def remove_route(self, route: Route, protocol: int) -> None:
        """NetlinkError (ESRCH) when it is not there."""
        arguments = _route_arguments(route, protocol)
        if route.family == "ipv4":
            arguments["scope"] = SCOPE_NOWHERE  # any: a route's scope may be another's choice
        self._netlink.route("del", **arguments)

    def forget_redirects(self) -> None:
        """Drop the routes IPv6 has learnt from redirects (and path MTUs). (IPv4: net.ipv4.route.flush does it.)"""
        for message in list(self._netlink.get_routes(family=socket.AF_INET6)):
            if not message["flags"] & RTM_F_CLONED:
                continue
            arguments = {"dst": message.get_attr("RTA_DST"), "dst_len": message["dst_len"], "flags": RTM_F_CLONED}
            try:
                self._netlink.route(
                    "del",
                    family=socket.AF_INET6,
                    table=message.get_attr("RTA_TABLE"),
                    oif=message.get_attr("RTA_OIF"),
                    **arguments,
                )
            except NetlinkError as error:
                if error.code != errno.ESRCH:  # it may expire by itself meanwhile
                    raise

    # --- links, addresses, neighbours

    def links(self) -> list[str]:
        """Names of the interfaces that are up."""
        up = [message for message in self._netlink.get_links() if message["flags"] & 1]
        return [message.get_attr("IFLA_IFNAME") for message in up]

    def addresses(self) -> list[str]:
        """The host's own addresses, of both families."""
        return [
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            for message in self._netlink.get_addr()
            if message.get_attr("IFA_ADDRESS")
        ]

    def on_link(self, address: str, dev: str | None = None) -> str | None:
        """The interface on which an address is a direct neighbour; None when it is behind a router, or nowhere."""
        try:
            answer = route_get(address, oif=dev)
        except OSError:
            return None
        # Without a table the kernel only assumes so, because an interface was named (ip_route_output_key_hash_rcu).
        return answer.dev if answer.type == "unicast" and answer.via is None and answer.table else None

    def neighbour(self, address: str, wait: float = 2.0) -> str | None:
        """The MAC of an on-link address; None when it does not answer within ``wait`` seconds (0: do not ask it)."""
        dev = self.on_link(address)
        if dev is None:
            return None
        deadline = time.monotonic() + wait
        asked = False
        while True:
            mac = self._known_mac(address, dev)
            if mac or time.monotonic() >= deadline:
                return mac
            if not asked:
                asked = self._ask_neighbour(address, dev)
            time.sleep(0.02)

    def _known_mac(self, address: str, dev: str) -> str | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for message in self._netlink.get_neighbours(family=family, ifindex=socket.if_nametoindex(dev)):
            if message.get_attr("NDA_DST") == address and message["state"] & NUD_USABLE:
                found = message.get_attr("NDA_LLADDR")
                return found.lower() if found else None
        return None

    def _ask_neighbour(self, address: str, dev: str) -> bool:
        # NTF_USE makes the kernel resolve an entry as if it had a packet for it, without sending any.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        index = socket.if_nametoindex(dev)
        self._netlink.neigh("replace", family=family, dst=address, ifindex=index, flags=NTF_USE, state=0)
        return True


def _selectors(attributes: dict[str, Any]) -> Iterator[str]:
    for name in OTHER_SELECTORS:
        if attributes.get(name) not in (None, 0):
            yield name
    for name in ("FRA_SUPPRESS_PREFIXLEN", "FRA_SUPPRESS_IFGROUP"):
        if attributes.get(name, MAX_U32) not in (MAX_U32, -1):
            yield name


def _ports(value: Any) -> tuple[int, int] | None:
    low, _colon, high = str(value or "").partition(":")
    return (int(low), int(high or low)) if low else None


def _rule(message: Any, family: str) -> Found:
    attributes = {pair[0]: pair[1] for pair in message["attrs"]}
    protocol = attributes.get("FRA_PROTOCOL", 0)
    known = message["action"] in ACTIONS and not message["tos"] and not message["flags"] & FIB_RULE_INVERT
    if not known or next(_selectors(attributes), None):
        return Found(None, protocol, family)
    table = attributes.get("FRA_TABLE") or message["table"]
    value = Rule(
        family=family,
        priority=attributes.get("FRA_PRIORITY", 0),
        action=ACTIONS[message["action"]],
        table=table if message["action"] == 1 else None,
        src=_prefix(attributes.get("FRA_SRC"), message["src_len"]),
        dst=_prefix(attributes.get("FRA_DST"), message["dst_len"]),
        iif=attributes.get("FRA_IIFNAME"),
        fwmark=attributes.get("FRA_FWMARK"),
        fwmask=attributes.get("FRA_FWMASK") if "FRA_FWMARK" in attributes else None,
        ip_proto=attributes.get("FRA_IP_PROTO") or None,
        sport=_ports(attributes.get("FRA_SPORT_RANGE")),
        dport=_ports(attributes.get("FRA_DPORT_RANGE")),
    )
    return Found(value, protocol, family, table, text.rule(value))


def _prefix(address: str | None, length: int) -> str | None:
    return f"{address}/{length}" if address else None


def _rule_arguments(rule: Rule, protocol: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"family": AF[rule.family], "priority": rule.priority, "protocol": protocol}
    arguments["action"] = "to_tbl" if rule.action == "lookup" else rule.action
    if rule.action == "lookup":
        arguments["table"] = rule.table
    for name, prefix in (("src", rule.src), ("dst", rule.dst)):
        if prefix:
            address, _slash, length = prefix.partition("/")
            arguments.update({name: address, f"{name}_len": int(length)})
    for name, value in (("fwmark", rule.fwmark), ("fwmask", rule.fwmask), ("ip_proto", rule.ip_proto)):
        if value is not None:
            arguments[name] = value
    if rule.iif:
        arguments["iifname"] = rule.iif
    for name, ports in (("sport_range", rule.sport), ("dport_range", rule.dport)):
        if ports:
            arguments[name] = f"{ports[0]}:{ports[1]}"
    return arguments


def _route(message: Any, family: str, table: int) -> Found:
    kind = ROUTE_TYPES.get(message["type"])
    index = message.get_attr("RTA_OIF")
    described = {
        "dst": _prefix(message.get_attr("RTA_DST"), message["dst_len"]) or "default",
        "via": message.get_attr("RTA_GATEWAY"),
        "dev": _link_name(index) if index else None,
    }
    value = None
    if kind and not message.get_attr("RTA_MULTIPATH") and not message["tos"]:
        value = Route(
            family=family,
            table=table,
            type=kind,
            src=message.get_attr("RTA_PREFSRC"),
            metric=message.get_attr("RTA_PRIORITY") or 0,
            **described,
        )
    line = text.route(value) if value else f"{text.command(family)} route {described['dst']} table {table}"
    return Found(value, message["proto"], family, table, line)


def _link_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"  # it vanished between the two questions


def _route_arguments(route: Route, protocol: int) -> dict[str, Any]:
    address, _slash, length = ("", "", "0") if route.dst == "default" else route.dst.partition("/")
    arguments: dict[str, Any] = {
        "family": AF[route.family],
        "table": route.table,
        "dst": address or ("0.0.0.0" if route.family == "ipv4" else "::"),
        "dst_len": int(length),
        "type": route.type,
        "proto": protocol,
    }
    if route.family == "ipv4":
        on_link = SCOPE_LINK if route.type == "unicast" and not route.via else SCOPE_UNIVERSE
        arguments["scope"] = SCOPE_HOST if route.type == "local" else on_link
    if route.metric:
        arguments["priority"] = route.metric
    if route.via:
        arguments["gateway"] = route.via
    if route.dev:
        arguments["oif"] = socket.if_nametoindex(route.dev)
    if route.src:
        arguments["prefsrc"] = route.src
    return arguments
