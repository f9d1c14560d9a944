# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each check: one thing is different from a whole host, and that check complains, in words that name it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import finding, registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import model as facts
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import unread
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import (
    Backend,
    Conntrack,
    Drift,
    Relay,
    Socket,
    Unit,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall import iptables_rules
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall.model import Ruleset
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import (
    Address,
    KernelObject,
    Mark,
    Rule,
    Setting,
    Sysctl,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.plan import Change
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing import fakes
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor import cases
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor.cases import BACKEND, PROXY

ACCEPTED = replace(cases.RETURN_PATH, sysctls=(Sysctl("net.ipv4.tcp_fwmark_accept", "1"),))
NO_ROUTE = RouteAnswer("unreachable", error="ENETUNREACH")
REFUSED = RouteAnswer("refused", error="EXDEV")
# By its source alone, without a mark: the strategy "address".
BY_ADDRESS = documents.load(
    {
        **fakes.RETURN_PATH,
        "marks": [],
        "rules": [{"family": "ipv4", "priority": 1100, "src": cases.B, "action": "lookup", "table": 20111}],
    }
)
WITH_SOURCE = documents.load(
    {**fakes.RETURN_PATH, "routes": [{**fakes.RETURN_PATH["routes"][0], "src": "198.18.0.33"}]}
)
BY_SOCKET = documents.load(
    {
        "schema": 1,
        "owner": "local_delivery",
        "protocol": 201,
        "rules": [
            {"family": "ipv4", "priority": 1100, "fwmark": 11, "fwmask": 255, "action": "lookup", "table": 20100}
        ],
        "routes": [{"family": "ipv4", "table": 20100, "dst": "default", "type": "local", "dev": "lo"}],
    }
)


def drifted(kind: str, verb: str, before=None, after=None) -> facts.Facts:
    return replace(BACKEND, drift=(Drift("return_path", (Change(kind, verb, before, after),)),))


def filtered(whole: facts.Facts, *rules: str, policy: str = "ACCEPT", table: str = "filter", **more) -> facts.Facts:
    """With a packet filter in the words of iptables-save."""
    chains = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
    saved = "\n".join([f"*{table}", *(f":{name} {policy if name == 'INPUT' else 'ACCEPT'} [0:0]" for name in chains)])
    ruleset = Ruleset(iptables_rules.parse("\n".join([saved, *rules, "COMMIT"]), "ipv4"))
    return replace(whole, ruleset=ruleset, **more)


def with_rules(whole: facts.Facts, *rules, **more) -> facts.Facts:
    """Rules of others, in the kernel's order."""
    together = sorted([*rules, *whole.rules], key=lambda found: found.value.priority)
    return replace(whole, rules=tuple(together), **more)


def ranged(address: str, but: tuple[int, ...] = ()) -> facts.Facts:
    """A proxy whose service listens on ports 8000-8010 of an address, with no socket on some of them."""
    there = tuple(Socket("tcp", address, port) for port in range(8000, 8011) if port not in but)
    return replace(
        PROXY,
        own=PROXY.own | {address},
        forwarder=replace(PROXY.forwarder, listeners=(Socket("tcp", address, 8000, 8010),)),
        sockets=there,
    )


GIVEN = {"clients_given": frozenset({"ipv4"})}
SERVED = {"ports": (("tcp", 8080),)}
TWO_ADDRESSES = tuple(KernelObject(Address("ipv4", one, "eth0"), 0, "ipv4") for one in (cases.B, "198.18.0.33"))
DOCKER_PROXY = Relay(Socket("tcp", "0.0.0.0", 8080), "docker-proxy", 7)
CONTAINER = {"translated": {"172.17.0.2": "docker0"}}
SWARM = Socket("tcp", "0.0.0.0", 2377)
PUBLISHED = (
    "-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"
)
UDP_SERVER = {"ports": (("udp", 53),), "sockets": (Socket("udp", "0.0.0.0", 53),)}
BY_OTHER = {cases.REPLY: cases.BY_ROUTER}
KEEPER, NETWORKD = "l4proxy-keeper.service", "systemd-networkd.service"
# (facts, status, check, words it says)
COMPLAINTS = [
    (replace(BACKEND, unread={"the packet filters": "nft hangs"}), "warn", "unread", "filters could not be read: nft"),
    (replace(BACKEND, missing={"nftables": "marks cannot be set"}), "fail", "packages", "apt-get install nftables"),
    (replace(BACKEND, documents=(), peers=(), replies={}), "fail", "documents", "no state document"),
    (replace(BACKEND, faults=("x.json: is not JSON",)), "fail", "documents", "x.json: is not JSON"),
    (cases.peer(wanted_dev="eth1"), "fail", "links", "interface eth1 does not exist"),
    (replace(cases.peer(wanted_dev="eth1"), links={"eth0": True, "eth1": False}), "fail", "links", "eth1 is down"),
    (cases.peer(is_local=True, dev=None), "fail", "proxy_on_link", "is this host's own"),
    (cases.peer(dev=None, own=None), "fail", "proxy_on_link", "198.18.0.11) is not on a link"),
    (
        replace(cases.peer(wanted_dev="eth1"), links={"eth0": True, "eth1": True}),
        "fail",
        "proxy_on_link",
        "is on eth0, but the document expects it on eth1",
    ),
    (cases.peer(mac="02:00:00:00:00:aa"), "fail", "proxy_mac", "but 198.18.0.11 is at 02:00:00:00:00:aa"),
    (cases.peer(router=cases.ROUTER, router_mac=cases.PEER.mac), "warn", "proxy_mac", "of the router too (198.18.0.1)"),
    (
        cases.peer(router=cases.ROUTER, router_mac=cases.PEER.mac, beside=("198.18.0.22",)),
        "fail",
        "proxy_mac",
        "of the router too (198.18.0.1, 198.18.0.22)",
    ),
    (cases.peer(mac=None), "warn", "proxy_mac", "does not answer on eth0"),
    (cases.peer(unmarked=NO_ROUTE, arrival=REFUSED), "fail", "default_route", "ENETUNREACH"),
    (
        replace(cases.peer(unmarked=NO_ROUTE, arrival=REFUSED), documents=(ACCEPTED,)),
        "warn",
        "default_route",
        "A UDP reply is routed once without its mark",
    ),
    (
        cases.setting(cases.peer(arrival=REFUSED), conf__eth0__rp_filter="1"),
        "fail",
        "rp_filter",
        "rp_filter on eth0 is 1 (strict",
    ),
    (
        cases.setting(cases.peer(arrival=REFUSED), conf__all__rp_filter="2"),
        "fail",
        "rp_filter",
        "rp_filter on eth0 is 2 (loose",
    ),
    (
        cases.setting(
            replace(PROXY, documents=(BY_SOCKET,), **cases.owned(BY_SOCKET), replies={}), conf__all__src_valid_mark="1"
        ),
        "fail",
        "src_valid_mark",
        "src_valid_mark on eth0 is 1",
    ),
    (
        replace(PROXY, own=frozenset({cases.A, cases.B})),
        "fail",
        "own_traffic",
        "198.18.0.21 is an address of this host itself and the source of `ip rule 1100: from 198.18.0.21 ipproto tcp",
    ),
    (
        with_rules(PROXY, cases.foreign_rule(priority=9, ip_proto=6, table=20100)),
        "fail",
        "own_traffic",
        "`ip rule 9: from all ipproto tcp lookup 20100` would deliver what this host sends to the host itself",
    ),
    (
        replace(BACKEND, routes=(*BACKEND.routes, cases.foreign_route(table=20111, via="198.18.0.1", metric=5))),
        "fail",
        "taken",
        "table 20111 already holds routes of another owner (proto boot)",
    ),
    (
        with_rules(BACKEND, cases.foreign_rule(priority=1100, fwmark=11, fwmask=255, table=7)),
        "fail",
        "taken",
        "rule priority 1100 already has these selectors",
    ),
    (
        with_rules(BACKEND, cases.foreign_rule(3, priority=100, table=254), replies=BY_OTHER),
        "fail",
        "rule_before",
        "`ip rule 100: from all lookup 254` (proto boot) is asked before our rule at priority 1100",
    ),
    (
        with_rules(BACKEND, cases.foreign_rule(priority=5, src="198.18.0.0/24", action="prohibit"), applied=False),
        "fail",
        "rule_before",
        "prohibit",
    ),
    # Ours will be put in front of it; where no number is free, they cannot be.
    (
        with_rules(BACKEND, cases.foreign_rule(priority=5, table=254), applied=False),
        "warn",
        "rule_before",
        "lookup 254",
    ),
    (
        with_rules(BACKEND, cases.foreign_rule(priority=1, table=254), applied=False),
        "fail",
        "rule_before",
        "lookup 254",
    ),
    # Ours will be put in front of it; where no number is free, they cannot be.
    (
        with_rules(PROXY, cases.foreign_rule(priority=5, table=254), applied=False),
        "warn",
        "rule_before",
        "lookup 254",
    ),
    (
        with_rules(PROXY, cases.foreign_rule(priority=1, table=254), applied=False),
        "fail",
        "rule_before",
        "lookup 254",
    ),
    (
        with_rules(BACKEND, cases.foreign_rule(priority=2000, fwmark=0x10B, fwmask=0xFFF, table=7)),
        "warn",
        "mark_shared",
        "our bits (0xb/0xff)",
    ),
    (with_rules(PROXY, cases.foreign_rule(priority=9, src=cases.B, table=20100)), "fail", "arp", "ip rule 9: from"),
    (
        filtered(BACKEND, f"-A INPUT -s {cases.A}/32 -j ACCEPT", policy="DROP", **SERVED, **GIVEN),
        "fail",
        "firewall",
        "admits proxy a but drops clients such as 198.51.100.254 at tcp port 8080",
    ),
    (filtered(BACKEND, policy="DROP", **SERVED), "warn", "firewall", "drops clients such as 198.51.100.254"),
    (
        filtered(BACKEND, "-A INPUT -m set --match-set ok src -j ACCEPT", policy="DROP", **SERVED, **GIVEN),
        "warn",
        "firewall",
        "a rule before it is not understood here",
    ),
    (filtered(PROXY, policy="DROP", replies={}, **GIVEN), "fail", "firewall", "drops clients such as 198.51.100.254"),
    (
        filtered(PROXY, "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", policy="DROP"),
        "fail",
        "firewall",
        "drops replies of backend 198.18.0.21",
    ),
    (
        filtered(PROXY, "-A POSTROUTING -o eth0 -j MASQUERADE", table="nat"),
        "fail",
        "source_nat",
        "iptables nat POSTROUTING rewrites the source address of what the forwarder sends to 198.18.0.21. Those",
    ),
    (
        filtered(
            PROXY,
            "-A POSTROUTING -p udp -m set --match-set x dst -j SNAT --to-source 192.0.2.1",
            table="nat",
            applied=False,
            forwarder=None,
        ),
        "warn",
        "source_nat",
        "may rewrite",
    ),
    (
        filtered(PROXY, "-A INPUT -p tcp -m tcp --dport 80 -j SNAT --to-source 192.0.2.1", table="nat"),
        "fail",
        "source_nat",
        "clients' packets to tcp port 80 of this proxy",
    ),
    (
        filtered(BACKEND, PUBLISHED, "-A POSTROUTING ! -o lo -j MASQUERADE", table="nat", **CONTAINER, **SERVED),
        "fail",
        "source_nat",
        "clients' packets that this backend sends on to 172.17.0.2. The server there",
    ),
    (
        filtered(BACKEND, "-A INPUT -p tcp -m tcp --dport 8080 -j SNAT --to-source 192.0.2.1", table="nat", **SERVED),
        "fail",
        "source_nat",
        "clients' packets to tcp port 8080 of this backend",
    ),
    (
        filtered(BACKEND, "-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff", table="mangle"),
        "warn",
        "mark_clobbered",
        "may overwrite bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -j CONNMARK --set-xmark 0x80/0x80", table="mangle"),
        "fail",
        "mark_clobbered",
        "overwrites bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p tcp --dport 22 -j CONNMARK --set-xmark 0x1/0x3", table="mangle"),
        "warn",
        "mark_clobbered",
        "may overwrite bits 0xff",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack", table="raw", ports=(("udp", 53),)),
        "fail",
        "untracked",
        "-j CT --notrack` in chain iptables raw PREROUTING keeps from conntrack udp port 53 of this backend",
    ),
    (
        filtered(
            BACKEND,
            "-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK",
            table="raw",
            sockets=(Socket("udp", "0.0.0.0", 53),),
        ),
        "warn",
        "untracked",
        "return_path_strategy: address",
    ),
    (filtered(BACKEND, "-A OUTPUT -j NOTRACK", table="raw"), "fail", "untracked", "keeps from conntrack every port"),
    (
        filtered(BACKEND, "-A INPUT -p tcp -m tcp --dport 8080 -j SYNPROXY --mss 1460", **SERVED),
        "fail",
        "untracked",
        "answers in the place of the server at tcp port 8080",
    ),
    (replace(BACKEND, conntrack=Conntrack(950, 1000)), "fail", "conntrack", "holds 950 of at most 1000"),
    (replace(BACKEND, conntrack=Conntrack(1, 4096)), "warn", "conntrack", "at most 4096"),
    (replace(BACKEND, conntrack=Conntrack(1, 262144, 7)), "warn", "conntrack", "7 packets were dropped"),
    (
        replace(BACKEND, contest=facts.Contest(3, "return_path", ("add ip rule 1100",), "systemd-networkd")),
        "fail",
        "contested",
        "systemd-networkd undoes what the keeper puts back, 3 times in a row: add ip rule 1100",
    ),
    (
        drifted("sysctl", "replace", Setting("net.ipv4.x", "1"), Sysctl("net.ipv4.x", "0")),
        "fail",
        "settings",
        "set sysctl net.ipv4.x: 1 -> 0",
    ),
    (replace(BACKEND, redirected={"192.0.2.7": cases.ROUTER}), "fail", "redirected", "replies to 192.0.2.7 go to"),
    (replace(BACKEND, documents=(WITH_SOURCE,)), "fail", "addresses", "198.18.0.33 is not an address of this host"),
    (drifted("address", "add", None, Address("ipv4", "198.18.0.33", "eth0")), "fail", "addresses", "add ip addr"),
    (replace(BACKEND, drift=(Drift("return_path", blocked=("waiting for x",)),)), "fail", "waiting", "waiting for x"),
    (drifted("route", "add", None, cases.RETURN_PATH.routes[0]), "fail", "routes", "add ip route default via"),
    (
        drifted(
            "route", "replace", replace(cases.RETURN_PATH.routes[0], via=cases.ROUTER), cases.RETURN_PATH.routes[0]
        ),
        "fail",
        "routes",
        "(there is: ip route default via 198.18.0.1",
    ),
    (drifted("rule", "add", None, Rule("ipv4", 1101, "unreachable", fwmark=11)), "fail", "rules", "unreachable"),
    (drifted("marks", "add", (), (Mark("a", 11, 255),)), "fail", "marks", "nft table of marks: a (0xb)"),
    (replace(PROXY, forwarder=replace(PROXY.forwarder, error="is bad")), "fail", "forwarder", "f.json is bad"),
    (replace(PROXY, forwarder=replace(PROXY.forwarder, pid=None)), "fail", "forwarder", "does not run"),
    (replace(PROXY, forwarder=replace(PROXY.forwarder, capabilities=0)), "fail", "forwarder", "no CAP_NET_RAW"),
    (replace(PROXY, forwarder=replace(PROXY.forwarder, stopped=True)), "fail", "forwarder", "is stopped by a signal"),
    (replace(PROXY, sockets=()), "fail", "listening", "nothing listens on 0.0.0.0 tcp port 80"),
    (
        ranged("198.18.0.11", but=(8003, 8007, 8008)),
        "fail",
        "listening",
        "nothing listens on 198.18.0.11 tcp port 8003, 8007-8008, which",
    ),
    (replace(PROXY, sockets=(Socket("tcp", "127.0.0.1", 80),)), "fail", "listening", "0.0.0.0 tcp port 80"),
    (
        replace(ranged("198.18.0.100"), addresses=(), own=frozenset()),
        "warn",
        "listening",
        "has a service listen on 198.18.0.100, which is not an address of this host",
    ),
    (
        replace(PROXY, forwarder=replace(PROXY.forwarder, backends=("198.18.0.9",))),
        "fail",
        "families",
        "names backend 198.18.0.9",
    ),
    (replace(BACKEND, replies=BY_OTHER), "fail", "lookup", "says unicast via 198.18.0.1 dev eth0 table 254"),
    (replace(PROXY, replies=dict.fromkeys(cases.TAKEN_IN, NO_ROUTE)), "fail", "lookup", "should be taken in (local)"),
    (
        replace(BACKEND, documents=(BY_ADDRESS,), replies={}, **cases.owned(BY_ADDRESS), **UDP_SERVER),
        "fail",
        "udp_source",
        "go by the source address alone",
    ),
    (
        replace(BACKEND, addresses=TWO_ADDRESSES, **UDP_SERVER),
        "warn",
        "udp_source",
        "this host has several",
    ),
    (
        replace(BACKEND, relays=(DOCKER_PROXY,), **SERVED),
        "fail",
        "relayed",
        "docker-proxy (process 7) listens on tcp port 8080",
    ),
    (
        replace(
            BACKEND, relays=(Relay(Socket("udp", cases.B, 53), "socat", 7),), sockets=(Socket("udp", cases.B, 53),)
        ),
        "warn",
        "relayed",
        "let the server itself listen on that port",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80", table="nat"),
        "warn",
        "containers",
        "sends published ports to containers",
    ),
    (cases.setting(PROXY, ip_forward="1"), "warn", "ip_forward", "this proxy routes ipv4"),
    (
        replace(cases.setting(PROXY, ip_forward="1"), backends=(Backend("ipv4", "172.17.0.2", "docker0", True),)),
        "fail",
        "ip_forward",
        "backend 172.17.0.2 is behind docker0, a bridge of this host",
    ),
    (cases.setting(PROXY, ip_local_port_range="40000 41000"), "warn", "port_range", "1001 ephemeral ports"),
    (
        cases.setting(PROXY, ip_local_port_range="32 60999"),
        "warn",
        "port_range",
        "tcp port 80 of every address is inside the range",
    ),
    (
        cases.setting(ranged("::"), ip_local_port_range="8005 40000"),
        "warn",
        "port_range",
        "tcp port 8005-8010 of every address is inside the range",
    ),
    (
        filtered(ranged("0.0.0.0"), "-A INPUT -p tcp -m tcp --dport 8004 -j DROP", **GIVEN),
        "fail",
        "firewall",
        "drops clients such as 198.51.100.254 at tcp port 8004 (",
    ),
    (cases.setting(BACKEND, conf__all__accept_redirects="1"), "warn", "accept_redirects", "eth0 accepts ipv4"),
    (cases.setting(PROXY, conf__eth0__send_redirects="1"), "warn", "send_redirects", "eth0 sends redirects"),
    (replace(BACKEND, units={KEEPER: Unit("loaded", "inactive", "disabled")}), "warn", "keeper", "is inactive and"),
    (replace(BACKEND, units={KEEPER: Unit("not-found", "inactive", "")}), "warn", "keeper", "is not installed"),
    (
        replace(BACKEND, units={**cases.UNITS, NETWORKD: Unit("loaded", "active", "enabled")}),
        "warn",
        "networkd",
        "ManageForeignRoutingPolicyRules=no",
    ),
]


@pytest.mark.parametrize("whole", [BACKEND, PROXY, replace(BACKEND, applied=False), replace(PROXY, applied=False)])
def test_of_a_whole_host_nothing_is_said(whole):
    assert cases.complaints(whole) == []


@pytest.mark.parametrize(("broken", "status", "check", "words"), COMPLAINTS, ids=[row[2] for row in COMPLAINTS])
def test_a_fault_is_named(broken, status, check, words):
    assert (status, check) in cases.complaints(broken)
    assert words in cases.told(broken, check)


def test_every_check_has_a_row():
    assert {row[2] for row in COMPLAINTS} == {check.id for check in registry.CHECKS}


def test_every_complaint_has_a_reason_and_a_remedy():
    for broken, _status, check, _words in COMPLAINTS:
        for one in registry.examine(broken):
            if one.id == check and one.status in ("fail", "warn"):
                assert one.subject, one
                assert one.why, one
                assert one.fix, one


OTHER_BITS = [
    (with_rules(BACKEND, cases.foreign_rule(priority=5, fwmark=0xB, fwmask=0xFF, table=7)), "mark_shared", "0xff00"),
    (
        with_rules(BACKEND, cases.foreign_rule(priority=5, fwmark=0xB0B, fwmask=0xFFFF, table=7)),
        "mark_shared",
        "0xff0000",
    ),
    (
        filtered(BACKEND, "-A PREROUTING -j CONNMARK --set-xmark 0x80/0x80", table="mangle"),
        "mark_clobbered",
        "0xff00",
    ),
]


@pytest.mark.parametrize(("broken", "check", "mask"), OTHER_BITS)
def test_bits_that_nobody_there_has_are_offered(broken, check, mask):
    assert f"l4proxy_numbers: {{mark_mask: {mask}}}" in cases.told(broken, check)


def test_where_all_bits_are_written_none_are_offered():
    broken = filtered(BACKEND, "-A PREROUTING -j CONNMARK --set-mark 1", table="mangle")
    assert "l4proxy_numbers" not in cases.told(broken, "mark_clobbered")


# What looks alike and is fine.
FINE = [
    ("rp_filter", cases.setting(BACKEND, conf__eth0__rp_filter="1")),
    ("proxy_mac", cases.peer(mac=None, has_mac=False)),
    ("default_route", cases.peer(tracked=False, unmarked=NO_ROUTE)),
    ("conntrack", replace(cases.peer(tracked=False), conntrack=Conntrack(999, 1000))),
    ("redirected", replace(BACKEND, redirected={"192.0.2.7": cases.A})),
    ("proxy_mac", cases.peer(router=cases.ROUTER, router_mac="02:00:00:00:00:01", beside=("198.18.0.12",))),
    ("rule_before", with_rules(BACKEND, cases.foreign_rule(priority=0, table=255))),
    ("rule_before", with_rules(BACKEND, cases.foreign_rule(priority=32766, table=254))),
    ("rule_before", with_rules(BACKEND, cases.foreign_rule(priority=5, fwmark=0x10000, fwmask=0x10000, table=7))),
    (
        "rule_before",
        with_rules(
            BACKEND, cases.foreign_rule(priority=5, table=254, suppress_prefixlength=0), applied=False
        ),
    ),
    ("rule_before", with_rules(PROXY, cases.foreign_rule(priority=9, src=cases.B, table=20100))),
    ("mark_shared", with_rules(BACKEND, cases.foreign_rule(priority=5, fwmark=0x10000, fwmask=0xFF0000, table=7))),
    ("own_traffic", with_rules(PROXY, cases.foreign_rule(priority=9, fwmark=1, table=20100))),
    ("own_traffic", with_rules(PROXY, cases.foreign_rule(priority=9, table=20100, suppress_prefixlength=0))),
    (
        "arp",
        cases.setting(
            with_rules(PROXY, cases.foreign_rule(priority=9, src=cases.B, table=20100)), conf__all__arp_ignore="1"
        ),
    ),
    ("firewall", filtered(BACKEND, policy="DROP")),
    ("firewall", filtered(BACKEND, "-A INPUT -p tcp --dport 8080 -j ACCEPT", policy="DROP", **SERVED, **GIVEN)),
    *(
        ("source_nat", filtered(PROXY, f"-A POSTROUTING {rule}", table="nat"))
        for rule in (
            "-s 10.8.0.0/24 -o eth0 -j MASQUERADE",
            "-o wg0 -j MASQUERADE",
            "-m iprange --src-range 10.8.0.1-10.8.0.99 -j MASQUERADE",
            "-m iprange --dst-range 10.8.0.1-10.8.0.99 -o eth0 -j MASQUERADE",
            "-m conntrack --ctstate DNAT -j MASQUERADE",
            "-m conntrack --ctstatus DNAT -j MASQUERADE",
            "-d 10.0.0.0/8 -j MASQUERADE",
            "-p udp -j MASQUERADE",
            "-p tcp -m tcp --dport 25 -j MASQUERADE",
            "-m addrtype --src-type LOCAL -j MASQUERADE",
            "-m mark --mark 0x4000/0x4000 -j MASQUERADE",
            "-m owner --uid-owner 33 -j MASQUERADE",
        )
    ),
    *(
        ("source_nat", filtered(BACKEND, PUBLISHED, rule, table="nat", **CONTAINER, **SERVED))
        for rule in (
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
            "-A POSTROUTING -o eth0 -j MASQUERADE",
        )
    ),
    ("source_nat", filtered(BACKEND, "-A POSTROUTING -o eth0 -j MASQUERADE", table="nat", **SERVED)),
    ("source_nat", filtered(BACKEND, "-A PREROUTING -p tcp -j DNAT --to-destination 172.17.0.2", table="nat")),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -j MARK --set-xmark 0x100/0xff00", table="mangle")),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -j MARK --set-mark 0xca6c")),
    ("untracked", filtered(BACKEND, "-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack", table="raw", **SERVED)),
    ("untracked", filtered(BACKEND, "-A PREROUTING -i lo -j NOTRACK", table="raw", **SERVED)),
    ("untracked", filtered(BACKEND, "-A PREROUTING -s 10.0.0.0/8 -j NOTRACK", table="raw", **SERVED)),
    ("untracked", filtered(BACKEND, "-A PREROUTING -j CT --zone 5", table="raw", **SERVED)),
    ("untracked", filtered(cases.peer(tracked=False), "-A PREROUTING -j NOTRACK", table="raw", **SERVED)),
    ("mark_clobbered", filtered(BACKEND, "-A OUTPUT -s 192.0.2.1/32 -j MARK --set-mark 1", table="mangle")),
    ("src_valid_mark", cases.setting(PROXY, conf__all__src_valid_mark="1")),
    ("containers", replace(
        filtered(BACKEND, "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2", table="nat"),
        restores_forwarded=True,
    )),
    ("networkd", replace(
        BACKEND, units={**cases.UNITS, NETWORKD: Unit("loaded", "active", "enabled")}, drop_ins=("x.conf",)
    )),
    ("accept_redirects", cases.setting(BACKEND, conf__all__accept_redirects="1", conf__eth0__forwarding="1")),
    ("relayed", replace(BACKEND, relays=(Relay(Socket("tcp", "127.0.0.1", 8080), "socat", 7),), **SERVED)),
    ("relayed", replace(BACKEND, relays=(Relay(Socket("tcp", "2001:db8::21", 8080), "socat", 7),), **SERVED)),
    ("relayed", replace(BACKEND, relays=(Relay(Socket("tcp", "0.0.0.0", 22), "socat", 7),), **SERVED)),
    ("relayed", filtered(BACKEND, PUBLISHED, table="nat", relays=(DOCKER_PROXY,), **SERVED)),
    ("relayed", replace(BACKEND, relays=(Relay(SWARM, "dockerd", 7),), ports=(("tcp", 2377),))),
    ("forwarder", replace(PROXY, forwarder=None)),
    ("listening", ranged("0.0.0.0")),
    ("listening", ranged("2001:db8::11")),
    ("port_range", ranged("0.0.0.0")),
    ("port_range", cases.setting(ranged("198.18.0.11"), ip_local_port_range="8005 40000")),
    ("firewall", filtered(ranged("0.0.0.0"), "-A INPUT -p tcp -m tcp --dport 9000 -j DROP", **GIVEN)),
    ("udp_source", replace(BACKEND, **UDP_SERVER)),
    ("udp_source", replace(BACKEND, addresses=TWO_ADDRESSES, sockets=UDP_SERVER["sockets"])),
    ("udp_source", replace(BACKEND, addresses=TWO_ADDRESSES, ports=(("udp", 53),))),
]  # fmt: skip


@pytest.mark.parametrize(("check", "whole"), FINE, ids=[row[0] for row in FINE])
def test_what_looks_alike_is_fine(check, whole):
    assert check not in [name for _status, name in cases.complaints(whole)]


@pytest.mark.parametrize("check", registry.CHECKS, ids=lambda check: check.id)
@pytest.mark.parametrize("whole", [BACKEND, PROXY, replace(BACKEND, applied=False)], ids=["backend", "proxy", "early"])
def test_a_check_that_raises_is_a_finding_and_not_the_end(monkeypatch, check, whole):
    def broken(_facts):
        yield finding.fail("x", "found before it raised", "w", "f")
        raise KeyError("dst")

    others = [one.id for one in registry.examine(whole, [check.id])]
    monkeypatch.setattr(
        registry, "CHECKS", tuple(replace(one, run=broken) if one is check else one for one in registry.CHECKS)
    )
    found = registry.examine(whole)
    assert [one.id for one in found if one.id != check.id] == others
    own = [one for one in found if one.id == check.id]
    assert [one.status for one in own] == (["fail", "warn"] if check.concerns(whole) else [])
    if own:
        assert own[1].what.startswith(f"check {check.id} failed: KeyError: 'dst' (test_checks.py, line ")
        assert f"l4proxy_ignore_findings: [{check.id}]" in own[1].fix


@pytest.mark.parametrize("whole", [BACKEND, PROXY], ids=["backend", "proxy"])
@pytest.mark.parametrize(
    "name", ["links", "settings", "peers", "backends", "replies", "rules", "routes", "addresses", "redirected",
             "ruleset", "sockets", "relays", "arp", "conntrack", "units", "contest", "drop_ins", "forwarder", "drift",
             "own", "translated"],
)  # fmt: skip
def test_a_fact_that_could_not_be_read_makes_no_fault_up(whole, name):
    found = registry.examine(replace(whole, **{name: unread.Unread("it hangs")}))
    assert [one.line for one in found if one.status in ("fail", "warn")] == []
    skipped = {one.id for one in found if one.status == "skip"}
    assert all(one.what == "it hangs" for one in found if one.id in skipped)
    if name == "ruleset":
        filters = {"firewall", "source_nat", "mark_clobbered", "untracked", "relayed", "containers", "marks"}
        concerned = {one.id for one in registry.CHECKS if one.concerns(whole)}
        assert skipped == filters & concerned, "none of them may say that all is well"


# Without pyroute2 or nft; (facts, checks that say that they could not look)
BLIND = [
    (replace(BACKEND, rules=None, routes=None), {"own_traffic", "taken"}),
    (replace(PROXY, rules=None, routes=None), {"own_traffic", "taken", "arp"}),
    (replace(BACKEND, ruleset=None), {"firewall", "source_nat", "mark_clobbered", "untracked", "containers"}),
    (replace(BACKEND, redirected=None, conntrack=None, units=None), {"redirected", "conntrack", "keeper"}),
    (replace(BACKEND, missing={"python3-pyroute2": "x"}, applied=False), {"packages"}),
]


@pytest.mark.parametrize(("blind", "checks"), BLIND)
def test_what_cannot_be_looked_at_is_said_and_no_fault(blind, checks):
    skipped = {one.id for one in registry.examine(blind) if one.status == "skip"}
    assert skipped == checks
    assert cases.complaints(blind) == []
