# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts of a whole backend and a whole proxy, for tables that change one thing and see who complains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry, rule_matching
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import model as facts
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import (
    Backend,
    Facts,
    Peer,
    Socket,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall.model import Ruleset
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import KernelObject, Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing import fakes

CLIENT = "198.51.100.254"
CLIENTS = {"ipv4": CLIENT, "ipv6": "2001:db8:ffff::fffe"}
A, B, ROUTER = "198.18.0.11", "198.18.0.21", "198.18.0.1"
RETURN_PATH = documents.load(fakes.RETURN_PATH)
LOCAL_DELIVERY = documents.load(
    {
        "schema": 1,
        "owner": "local_delivery",
        "protocol": 201,
        "rules": [
            {"family": "ipv4", "priority": 1100, "src": B, "ip_proto": name, "action": "lookup", "table": 20100}
            for name in ("tcp", "udp", "icmp")
        ],
        "routes": [{"family": "ipv4", "table": 20100, "dst": "default", "type": "local", "dev": "lo"}],
    }
)
LOCAL = RouteAnswer("local", dev="lo", table=255)
BY_ROUTER = RouteAnswer("unicast", via=ROUTER, dev="eth0", src=B, table=254)
BY_PROXY = RouteAnswer("unicast", via=A, dev="eth0", table=20111)
SETTINGS = {"net.ipv4.ip_local_port_range": "32768\t60999"}
PEER = Peer(
    "a", "ipv4", A, 20111, id=11, mask=255, tracked=True, dev="eth0", own=B, mac="02:00:00:00:00:11",
    declared=("02:00:00:00:00:11",), arrival=LOCAL, unmarked=BY_ROUTER,
)  # fmt: skip
UNITS = {
    "l4proxy-keeper.service": facts.Unit("loaded", "active", "enabled"),
    "l4proxy-forwarder.service": facts.Unit("loaded", "active", "enabled"),
    "systemd-networkd.service": facts.Unit("not-found", "inactive", ""),
}
REPLY = rule_matching.Reply("return_path", RETURN_PATH.rules[0], B, CLIENT, A, mark=11)
TAKEN_IN = [
    rule_matching.Reply("local_delivery", rule, B, CLIENT, "local", ip_proto=rule.ip_proto, iif="eth0")
    for rule in LOCAL_DELIVERY.rules
]


def owned(one: documents.Document) -> dict[str, tuple[KernelObject, ...]]:
    """The document's rules and routes as the kernel lists them."""
    rules = tuple(KernelObject(rule, one.protocol, rule.family) for rule in one.rules)
    routes = tuple(KernelObject(route, one.protocol, route.family, route.table) for route in one.routes)
    return {"rules": rules, "routes": routes}


COMMON: dict[str, Any] = {
    "clients": CLIENTS,
    "links": {"lo": True, "eth0": True},
    "settings": SETTINGS,
    "ruleset": Ruleset(),
    "redirected": {},
    "units": UNITS,
    "addresses": (),
}
BACKEND = Facts(
    documents=(RETURN_PATH,),
    own=frozenset({B}),
    peers=(PEER,),
    replies={REPLY: BY_PROXY},
    conntrack=facts.Conntrack(100, 262144),
    **owned(RETURN_PATH),
    **COMMON,
)
PROXY = Facts(
    documents=(LOCAL_DELIVERY,),
    own=frozenset({A}),
    backends=(Backend("ipv4", B, "eth0"),),
    replies=dict.fromkeys(TAKEN_IN, LOCAL),
    forwarder=facts.Forwarder(
        "f.json", None, (Socket("tcp", "0.0.0.0", 80),), (B,), 1, 1 << 13, (Socket("tcp", B, 8080),), 998
    ),
    sockets=(Socket("tcp", "0.0.0.0", 80),),
    **owned(LOCAL_DELIVERY),
    **COMMON,
)


def foreign_rule(protocol: int = 0, **values: Any) -> KernelObject:
    rule = Rule(**{"family": "ipv4", **values})
    return KernelObject(rule, protocol, rule.family)


def foreign_route(protocol: int = 3, **values: Any) -> KernelObject:
    route = Route(**{"family": "ipv4", **values})
    return KernelObject(route, protocol, route.family, route.table, "ip route there")


def peer(**changes: Any) -> Facts:
    """The backend with one thing different about its proxy."""
    return replace(BACKEND, peers=(replace(PEER, **changes),))


def setting(whole: Facts, **values: str) -> Facts:
    """With settings of ``net.ipv4``; __ stands for a dot."""
    named = {f"net.ipv4.{key.replace('__', '.')}": value for key, value in values.items()}
    return replace(whole, settings={**whole.settings, **named})


def complaints(looked_at: Facts) -> list[tuple[str, str]]:
    """(status, id) of what is wrong."""
    return [(one.status, one.id) for one in registry.examine(looked_at) if one.status in ("fail", "warn")]


def told(looked_at: Facts, check: str) -> str:
    """All lines of one check."""
    return "\n".join(one.line for one in registry.examine(looked_at) if one.id == check)
