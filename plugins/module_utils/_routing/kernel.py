# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes, addresses, links and neighbours of the kernel. The only importer of pyroute2 (0.7.2 to 0.9.7).

Rules and addresses are netlink messages of our own: pyroute2 needs seconds and tens of megabytes for the thousands of
rules that local delivery makes of hundreds of backends, and 0.7.2 does not know whose an address is.

Everything concerns the network namespace that the calling thread is in when the ``Kernel`` is made.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import traceback
from typing import Any

from . import address_messages, rule_messages, text
from .errors import MissingPackage
from .model import FAMILIES, Address, Found, Route, Rule
from .netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, link_index, link_name
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
# RTN_*, RT_SCOPE_* and RTNH_F_* of linux/rtnetlink.h
ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
SCOPES = {0: "global", 253: "link", 254: "host"}
SCOPE_NUMBERS = {name: number for number, name in SCOPES.items()}
SCOPE_NOWHERE = 255
RTNH_F_ONLINK = 0x4
RTM_F_CLONED = 0x200
# What a route can have and we never write: such a route is not one of ours.
OTHER_DETAILS = ("RTA_MULTIPATH", "RTA_VIA", "RTA_NH_ID", "RTA_ENCAP", "RTA_FLOW")
METRICS = {"RTAX_MTU": "mtu", "RTAX_ADVMSS": "advmss"}
# unspec, default, main, local: the kernel's own, and everybody's
COMMON_TABLES = (0, 253, 254, 255)
# NUD_* of linux/neighbour.h: REACHABLE, STALE, DELAY, PROBE, PERMANENT have a usable address.
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
NTF_USE = 0x01


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
        self._messages = Netlink()
        self._owned: dict[int, rule_messages.OwnedRules] = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._netlink.close()
        self._messages.close()

    # --- rules

    def rules(self) -> list[Found]:
        """All policy rules, of every owner, in the order in which the kernel asks them (a family after the other)."""
        return [
            rule_messages.decode(body, family)
            for family in FAMILIES
            for body in self._messages.dump(rule_messages.RTM_GETRULE, rule_messages.listing(family))
        ]

    def add_rule(self, rule: Rule, protocol: int) -> None:
        """OSError (EEXIST) when it is there already."""
        body = rule_messages.encode(rule, protocol)
        self._messages.change(rule_messages.RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)
        self._remembered(protocol).add(rule)

    def remove_rule(self, rule: Rule, protocol: int) -> None:
        """Remove exactly this rule; OSError (ENOENT) when it is not there.

        Where the kernel could take another one in its place, it is seen which ones went, and they are put back.
        """
        owned = self._remembered(protocol)
        if rule not in owned:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if owned.in_danger(rule):
            self._remove_among(rule, protocol)
        else:
            self._delete(rule, protocol)
        owned.discard(rule)

    def _remove_among(self, rule: Rule, protocol: int) -> None:
        before = left = self._owned_rules(protocol)
        while rule in left:
            self._delete(rule, protocol)
            left = self._owned_rules(protocol)
        for other in before:
            if other not in left and other != rule:
                self.add_rule(other, protocol)

    def _delete(self, rule: Rule, protocol: int) -> None:
        self._messages.change(rule_messages.RTM_DELRULE, 0, rule_messages.encode(rule, protocol))

    def _remembered(self, protocol: int) -> rule_messages.OwnedRules:
        """The owner's rules: read once, then followed; whoever changes them holds the lock of all owners."""
        if protocol not in self._owned:
            self._owned[protocol] = rule_messages.OwnedRules(self._owned_rules(protocol))
        return self._owned[protocol]

    def _owned_rules(self, protocol: int) -> list[Rule]:
        return [found.value for found in self.rules() if found.protocol == protocol and found.value is not None]

    # --- routes

    def routes(self, common: bool = False) -> list[Found]:
        """All routes of every owner; those of the tables main, local and default only where ``common`` says so."""
        found = []
        for family in FAMILIES:
            for message in self._netlink.get_routes(family=AF[family]):
                table = message.get_attr("RTA_TABLE") or message["table"]
                if (common or table not in COMMON_TABLES) and not message["flags"] & RTM_F_CLONED:
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

    def add_address(self, address: Address, protocol: int) -> None:
        """OSError (EEXIST) when it is there already, ENODEV when its interface is not."""
        body = address_messages.encode(address, protocol, link_index(address.dev))
        self._messages.change(address_messages.RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)

    def remove_address(self, address: Address, protocol: int) -> None:
        """OSError (EADDRNOTAVAIL) when it is not there."""
        body = address_messages.encode(address, protocol, link_index(address.dev))
        self._messages.change(address_messages.RTM_DELADDR, 0, body)

    def addresses(self) -> list[Found]:
        """The host's own addresses, of both families; the protocol is that of an owner of ours, or 0."""
        question = address_messages.BODY.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        found = map(address_messages.decode, self._messages.dump(address_messages.RTM_GETADDR, question))
        return [address for address in found if address is not None]

    def links(self) -> dict[str, bool]:
        """The names of all interfaces, and whether each is up."""
        return {message.get_attr("IFLA_IFNAME"): bool(message["flags"] & 1) for message in self._netlink.get_links()}

    def on_link(self, address: str, dev: str | None = None) -> str | None:
        """The interface on which an address is a direct neighbour; None when it is behind a router, or nowhere.

        As the host's rules have it, as the kernel itself asks: a rule for all that the host sends has its say.
        """
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
        for message in self._netlink.get_neighbours(family=family, ifindex=link_index(dev)):
            if message.get_attr("NDA_DST") == address and message["state"] & NUD_USABLE:
                found = message.get_attr("NDA_LLADDR")
                return found.lower() if found else None
        return None

    def _ask_neighbour(self, address: str, dev: str) -> bool:
        # NTF_USE makes the kernel resolve an entry as if it had a packet for it, without sending any.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        index = link_index(dev)
        self._netlink.neigh("replace", family=family, dst=address, ifindex=index, flags=NTF_USE, state=0)
        return True


def _prefix(address: str | None, length: int) -> str | None:
    return f"{address}/{length}" if address else None


def _route(message: Any, family: str, table: int) -> Found:
    index = message.get_attr("RTA_OIF")
    described = {
        "dst": _prefix(message.get_attr("RTA_DST"), message["dst_len"]) or "default",
        "via": message.get_attr("RTA_GATEWAY"),
        "dev": link_name(index) if index else None,
    }
    kind, scope = ROUTE_TYPES.get(message["type"]), SCOPES.get(message["scope"])
    metrics = dict((message.get_attr("RTA_METRICS") or {"attrs": []})["attrs"])
    value = None
    plain = kind and scope and not message["tos"] and not any(message.get_attr(name) for name in OTHER_DETAILS)
    if plain and set(metrics) <= set(METRICS):
        value = Route(
            family=family,
            table=table,
            type=kind,
            src=message.get_attr("RTA_PREFSRC"),
            metric=message.get_attr("RTA_PRIORITY") or 0,
            scope=scope,
            onlink=bool(message["flags"] & RTNH_F_ONLINK),
            **described,
            **{METRICS[name]: number for name, number in metrics.items()},
        )
    line = text.route(value) if value else f"{text.command(family)} route {described['dst']} table {table}"
    return Found(value, message["proto"], family, table, line)


def _route_arguments(route: Route, protocol: int) -> dict[str, Any]:
    address, _slash, length = ("", "", "0") if route.dst == "default" else route.dst.partition("/")
    arguments: dict[str, Any] = {
        "family": AF[route.family],
        "table": route.table,
        "dst": address or ("0.0.0.0" if route.family == "ipv4" else "::"),
        "dst_len": int(length),
        "type": route.type,
        "proto": protocol,
        "scope": SCOPE_NUMBERS[route.scope],
        "flags": RTNH_F_ONLINK if route.onlink else 0,
    }
    named = {"priority": route.metric, "gateway": route.via, "prefsrc": route.src}
    arguments.update({name: value for name, value in named.items() if value})
    if route.dev:
        arguments["oif"] = link_index(route.dev)
    metrics = {name: getattr(route, name) for name in METRICS.values() if getattr(route, name) is not None}
    if metrics:
        arguments["metrics"] = metrics
    return arguments
