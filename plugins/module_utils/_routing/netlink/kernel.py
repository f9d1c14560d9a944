# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes, addresses, links and neighbours of the kernel. The only importer of pyroute2 (0.7.2 to 0.9.7).

pyroute2 adds and removes routes. Everything else uses netlink messages of our own, because pyroute2 needs seconds and
tens of megabytes for thousands of rules or routes and some milliseconds for its set-up, and 0.7.2 does not return the
owner of an address.

A ``Kernel`` works in the network namespace in which the calling thread created it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import traceback
from typing import Any

from ..document.announced import ANNOUNCED, GRACEFUL, Announced
from ..document.model import FAMILIES, Address, KernelObject, Route, Rule
from ..errors import MissingPackage
from . import address_messages, neighbour_messages, route_messages, rule_messages
from .messages import AF, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, link_index
from .route_messages import RTNH_F_ONLINK
from .route_query import RouteAnswer, route_get

PYROUTE2_ERROR: str | None = None
try:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError
except ImportError:
    PYROUTE2_ERROR = traceback.format_exc()
    IPRoute = None
    NetlinkError = OSError

__all__ = ["PYROUTE2_ERROR", "Kernel", "KernelObject", "NetlinkError", "RouteAnswer", "reason", "route_get"]

SCOPE_NUMBERS = {name: number for number, name in route_messages.SCOPES.items()}
SCOPE_NOWHERE = 255
# unspec, default, main, local: the kernel's own, and those shared by all
COMMON_TABLES = (0, 253, 254, 255)


def reason(error: Exception) -> str:
    """The text of an error number: ``Network is unreachable (ENETUNREACH)``."""
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if not isinstance(code, int):
        return str(error)
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


class Kernel:
    """A context manager for one netlink socket."""

    def __init__(self) -> None:
        if PYROUTE2_ERROR:
            raise MissingPackage("python3-pyroute2", "rules and routes need Python's pyroute2")
        self._messages = Netlink(strict=True)
        self._pyroute2: Any = None
        self._owned: dict[int, rule_messages.OwnedRules] = {}

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._messages.close()
        if self._pyroute2:
            self._pyroute2.close()

    @property
    def _netlink(self) -> Any:
        """pyroute2's socket, opened when it is needed: most runs change no route."""
        self._pyroute2 = self._pyroute2 or IPRoute()
        return self._pyroute2

    # --- rules

    def rules(self) -> list[KernelObject]:
        """All policy rules, of every owner, in the order in which the kernel evaluates them; IPv4 first."""
        return [
            rule_messages.decode(body, family)
            for family in FAMILIES
            for body in self._messages.dump(rule_messages.RTM_GETRULE, rule_messages.listing(family))
        ]

    def add_rule(self, rule: Rule, protocol: int) -> None:
        """OSError (EEXIST) if it exists already."""
        body = rule_messages.encode(rule, protocol)
        self._messages.change(rule_messages.RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)
        if protocol in self._owned:
            self._owned[protocol].add(rule)

    def remove_rule(self, rule: Rule, protocol: int) -> None:
        """Remove exactly this rule. OSError (ENOENT) if it does not exist.

        If the kernel could remove another rule instead, rules that were removed by mistake are added again.
        """
        owned = self._known_rules(protocol)
        if rule not in owned:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if owned.is_ambiguous(rule):
            self._remove_ambiguous(rule, protocol)
        else:
            self._delete(rule, protocol)
        owned.discard(rule)

    def _remove_ambiguous(self, rule: Rule, protocol: int) -> None:
        before = left = self._owned_rules(protocol)
        while rule in left:
            self._delete(rule, protocol)
            left = self._owned_rules(protocol)
        for other in before:
            if other not in left and other != rule:
                self.add_rule(other, protocol)

    def _delete(self, rule: Rule, protocol: int) -> None:
        self._messages.change(rule_messages.RTM_DELRULE, 0, rule_messages.encode(rule, protocol))

    def _known_rules(self, protocol: int) -> rule_messages.OwnedRules:
        """The owner's rules, read once and then updated; the lock keeps other processes from changing them."""
        if protocol not in self._owned:
            self._owned[protocol] = rule_messages.OwnedRules(self._owned_rules(protocol))
        return self._owned[protocol]

    def _owned_rules(self, protocol: int) -> list[Rule]:
        return [each.value for each in self.rules() if each.protocol == protocol and each.value is not None]

    # --- routes

    def routes(self, protocol: int = 0, table: int = 0) -> list[KernelObject]:
        """The routes of a protocol (0: any) in a table (0: all tables except main, local and default)."""
        listed: list[KernelObject] = []
        for family in FAMILIES:
            decoded = (route_messages.decode(body, family) for body in self._list_routes(family, protocol, table))
            listed += [
                route
                for route in decoded
                if route
                and (route.table == table if table else route.table not in COMMON_TABLES)
                and protocol in (0, route.protocol)
            ]
        return listed

    def _list_routes(self, family: str, protocol: int, table: int) -> list[bytes]:
        try:
            return self._messages.dump(route_messages.RTM_GETROUTE, route_messages.listing(family, protocol, table))
        except FileNotFoundError:
            return []  # the table does not exist yet

    def set_route(self, route: Route, protocol: int) -> None:
        """Add the route, or replace the one with the same table, destination and metric."""
        self._netlink.route("replace", **_route_arguments(route, protocol))

    def remove_route(self, route: Route, protocol: int) -> None:
        """NetlinkError (ESRCH) if it does not exist."""
        arguments = _route_arguments(route, protocol)
        if route.family == "ipv4":
            arguments["scope"] = SCOPE_NOWHERE  # any scope, in case someone else chose it
        self._netlink.route("del", **arguments)

    def add_announced(self, value: Announced, protocol: int) -> None:
        self.set_route(value.local_route, protocol)

    def remove_announced(self, value: Announced, protocol: int) -> None:
        """Remove the tokens first: routers must not send clients here any more. What does not exist is no error."""
        for route in (value.token(ANNOUNCED), value.token(GRACEFUL), value.local_route):
            try:
                self.remove_route(route, protocol)
            except NetlinkError as error:
                if getattr(error, "code", None) not in (errno.ESRCH, errno.ENOENT):
                    raise

    def forget_redirects(self) -> None:
        """Remove IPv6 routes learnt from redirects (and path MTUs). For IPv4, net.ipv4.route.flush does it."""
        for body in self._messages.dump(route_messages.RTM_GETROUTE, route_messages.listing("ipv6", learnt=True)):
            if route_messages.is_learnt(body):
                # It may have expired meanwhile.
                with contextlib.suppress(ProcessLookupError):
                    self._messages.change(route_messages.RTM_DELROUTE, 0, body)

    # --- links, addresses, neighbours

    def add_address(self, address: Address, protocol: int) -> None:
        """OSError (EEXIST) if it exists already, ENODEV if its interface does not exist."""
        body = address_messages.encode(address, protocol, link_index(address.dev))
        self._messages.change(address_messages.RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)

    def remove_address(self, address: Address, protocol: int) -> None:
        """OSError (EADDRNOTAVAIL) if it does not exist."""
        body = address_messages.encode(address, protocol, link_index(address.dev))
        self._messages.change(address_messages.RTM_DELADDR, 0, body)

    def addresses(self) -> list[KernelObject]:
        """The host's own addresses, of both families; the protocol is that of one of our owners, or 0."""
        request = address_messages.BODY.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        decoded = map(address_messages.decode, self._messages.dump(address_messages.RTM_GETADDR, request))
        return [address for address in decoded if address is not None]

    def links(self) -> dict[str, bool]:
        """The names of all interfaces, and whether each is up."""
        bodies = self._messages.dump(neighbour_messages.RTM_GETLINK, neighbour_messages.links())
        return dict(map(neighbour_messages.link, bodies))

    def sender_identity(self, dev: str) -> str:
        """How the senders on a link are distinguished: MAC, DECLARED_MAC, LINK or NOTHING of neighbour_messages."""
        request = neighbour_messages.links(link_index(dev))
        return neighbour_messages.sender_identity(self._messages.get(neighbour_messages.RTM_GETLINK, request))

    def on_link(self, address: str, dev: str | None = None) -> str | None:
        """The interface on which an address is a direct neighbour; None if it is behind a router or unreachable.

        The host's policy rules apply, as they do to packets that the kernel sends.
        """
        try:
            answer = route_get(address, oif=dev)
        except OSError:
            return None
        # Without a table the kernel only assumed it, because an interface was given (ip_route_output_key_hash_rcu).
        return answer.dev if answer.type == "unicast" and answer.via is None and answer.table else None

    def source_towards(self, address: str) -> str | None:
        """The source address that this host uses by default for a destination; None if no route leads there."""
        try:
            return route_get(address).src
        except OSError:
            return None

    def neighbour(self, address: str, wait: float = 2.0) -> str | None:
        """The MAC of an on-link address; None if it does not answer in ``wait`` seconds (0: only read the table)."""
        dev = self.on_link(address)
        if dev is None:
            return None
        deadline = time.monotonic() + wait
        requested = False
        while True:
            mac = self._known_mac(address, dev)
            if mac or time.monotonic() >= deadline:
                return mac
            if not requested:
                requested = self._resolve_neighbour(address, dev)
            time.sleep(0.02)

    def _known_mac(self, address: str, dev: str) -> str | None:
        request = neighbour_messages.neighbour(address, link_index(dev))
        try:
            return neighbour_messages.mac(self._messages.get(neighbour_messages.RTM_GETNEIGH, request))
        except FileNotFoundError:
            return None

    def _resolve_neighbour(self, address: str, dev: str) -> bool:
        body = neighbour_messages.neighbour(address, link_index(dev), neighbour_messages.NTF_USE)
        self._messages.change(neighbour_messages.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
        return True


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
    metrics = {
        name: getattr(route, name) for name in route_messages.METRICS.values() if getattr(route, name) is not None
    }
    if metrics:
        arguments["metrics"] = metrics
    return arguments
