# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts of a healthy backend and a healthy proxy, for tables of hosts with one difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry, rule_matching
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import model as facts
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import (
    Backend,
    Facts,
    Peer,
    Socket,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall import iptables_rules
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall.model import Ruleset
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import KernelObject, Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer

from .. import fakes

CLIENT = "198.51.100.254"
CLIENTS = {"ipv4": CLIENT, "ipv6": "2001:db8:ffff::fffe"}
A, B, ROUTER = "198.18.0.11", "198.18.0.21", "198.18.0.1"
RETURN_PATH = documents.load(fakes.RETURN_PATH)


def local_delivery(*selectors: dict[str, Any]) -> documents.Document:
    """A document of local delivery with a rule for each of these selectors."""
    common = {"family": "ipv4", "priority": 1100, "action": "lookup", "table": 20100}
    routes = [{"family": "ipv4", "table": 20100, "dst": "default", "type": "local", "dev": "lo"}]
    rules = [{**common, **selector} for selector in selectors]
    return documents.load({"schema": 1, "owner": "local_delivery", "protocol": 201, "rules": rules, "routes": routes})


LOCAL_DELIVERY = local_delivery(*({"src": B, "ip_proto": name} for name in ("tcp", "udp", "icmp")))
BY_SOCKET = local_delivery({"fwmark": 11, "fwmask": 255})


LOCAL = RouteAnswer("local", dev="lo", table=255)
BY_ROUTER = RouteAnswer("unicast", via=ROUTER, dev="eth0", src=B, table=254)
BY_PROXY = RouteAnswer("unicast", via=A, dev="eth0", table=20111)
SETTINGS = {"net.ipv4.ip_local_port_range": "32768\t60999"}
PEER = Peer(
    "a", "ipv4", A, 20111, id=11, mask=255, tracked=True, dev="eth0", own=B, mac="02:00:00:00:00:11",
    declared=("02:00:00:00:00:11",), arrival=LOCAL, unmarked=BY_ROUTER,
)  # fmt: skip

RUNS = facts.Unit("loaded", "active", "enabled")
UNITS = {"l4proxy-keeper.service": RUNS, "l4proxy-forwarder.service": RUNS}
UNITS["systemd-networkd.service"] = facts.Unit("not-found", "inactive", "")

REPLY = rule_matching.Reply("return_path", RETURN_PATH.rules[0], B, CLIENT, A, mark=11)
BY_OTHER = {REPLY: BY_ROUTER}
RECEIVED = [
    rule_matching.Reply("local_delivery", rule, B, CLIENT, "local", ip_proto=rule.ip_proto, iif="eth0")
    for rule in LOCAL_DELIVERY.rules
]


def owned(one: documents.Document) -> dict[str, tuple[KernelObject, ...]]:
    """The document's rules and routes as the kernel lists them."""
    rules = tuple(KernelObject(rule, one.protocol, rule.family) for rule in one.rules)
    routes = tuple(KernelObject(route, one.protocol, route.family, route.table) for route in one.routes)
    return {"rules": rules, "routes": routes}


COMMON: dict[str, Any] = {
    "clients": CLIENTS, "links": {"lo": True, "eth0": True}, "settings": SETTINGS, "ruleset": Ruleset(),
    "redirected": {}, "units": UNITS, "addresses": (),
}  # fmt: skip


BACKEND = Facts(
    documents=(RETURN_PATH,), own=frozenset({B}), peers=(PEER,), replies={REPLY: BY_PROXY},
    conntrack=facts.Conntrack(100, 262144), **owned(RETURN_PATH), **COMMON,
)  # fmt: skip

PROXY = Facts(
    documents=(LOCAL_DELIVERY,),
    own=frozenset({A}),
    backends=(Backend("ipv4", B, "eth0"),),
    replies=dict.fromkeys(RECEIVED, LOCAL),
    forwarder=facts.Forwarder(
        "f.json", None, (Socket("tcp", "0.0.0.0", 80),), (B,), 1, 1 << 13, (Socket("tcp", B, 8080),), 998
    ),
    sockets=(Socket("tcp", "0.0.0.0", 80),),
    **owned(LOCAL_DELIVERY),
    **COMMON,
)


GIVEN = {"clients_given": frozenset({"ipv4"})}
SERVED = {"ports": (("tcp", 8080),)}
PUBLISHED = "PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"


def foreign_rule(protocol: int = 0, **values: Any) -> KernelObject:
    rule = Rule(**{"family": "ipv4", **values})
    return KernelObject(rule, protocol, rule.family)


def foreign_route(protocol: int = 3, **values: Any) -> KernelObject:
    route = Route(**{"family": "ipv4", **values})
    return KernelObject(route, protocol, route.family, route.table, "ip route there")


def backend(**changes: Any) -> Facts:
    return replace(BACKEND, **changes)


def proxy(**changes: Any) -> Facts:
    return replace(PROXY, **changes)


def peer(links: dict[str, bool] | None = None, **changes: Any) -> Facts:
    """The backend with a difference in its proxy, or in a fact beside it."""
    fields = {name: changes.pop(name) for name in ("documents", "conntrack") if name in changes}
    return backend(peers=(replace(PEER, **changes),), links=links or BACKEND.links, **fields)


def setting(facts: Facts, **values: str) -> Facts:
    """With settings of ``net.ipv4``; __ stands for a dot."""
    named = {f"net.ipv4.{key.replace('__', '.')}": value for key, value in values.items()}
    return replace(facts, settings={**facts.settings, **named})


def filtered(facts: Facts, *rules: str, policy: str = "ACCEPT", table: str = "filter", **changes: Any) -> Facts:
    """With packet filters, as iptables-save prints them."""
    chains = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
    saved = [f"*{table}", *(f":{name} {policy if name == 'INPUT' else 'ACCEPT'} [0:0]" for name in chains)]
    ruleset = Ruleset(iptables_rules.parse("\n".join([*saved, *rules, "COMMIT"]), "ipv4"))
    return replace(facts, ruleset=ruleset, **changes)


def with_rules(facts: Facts, *rules: KernelObject, **changes: Any) -> Facts:
    """With foreign rules, in the kernel's order."""
    together = sorted([*rules, *facts.rules], key=lambda found: found.value.priority)
    return replace(facts, rules=tuple(together), **changes)


def listening_on(address: str, missing: tuple[int, ...] = ()) -> Facts:
    """A proxy whose service listens on ports 8000-8010 of an address, without sockets on the ``missing`` ports."""
    return proxy(
        own=PROXY.own | {address},
        forwarder=replace(PROXY.forwarder, listeners=(Socket("tcp", address, 8000, 8010),)),
        sockets=tuple(Socket("tcp", address, port) for port in range(8000, 8011) if port not in missing),
    )


def problems(facts: Facts) -> list[str]:
    """``fail rp_filter`` and the like, for each failure and warning."""
    return [f"{found.status} {found.id}" for found in registry.examine(facts) if found.status in ("fail", "warn")]


def lines(facts: Facts, check: str) -> str:
    """The lines of one check."""
    return "\n".join(found.line for found in registry.examine(facts) if found.id == check)


def reports(rows: list[tuple[Facts, str, str]]) -> Callable[..., None]:
    """A test: in each row the problem is reported, with these words, and always with a subject, a why and a fix."""

    @pytest.mark.parametrize(("facts", "problem", "words"), rows)
    def test(facts: Facts, problem: str, words: str) -> None:
        assert problem in problems(facts)
        check = problem.split()[1]
        assert words in lines(facts, check)
        for found in registry.examine(facts):
            if found.id == check and found.status in ("fail", "warn"):
                assert found.subject, found
                assert found.why, found
                assert found.fix, found

    return test


def is_fine(rows: list[tuple[str, Facts]]) -> Callable[..., None]:
    """A test: in each row the check reports no problem."""

    @pytest.mark.parametrize(("check", "facts"), rows)
    def test(check: str, facts: Facts) -> None:
        assert check not in [problem.split()[1] for problem in problems(facts)]

    return test
