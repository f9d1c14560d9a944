# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules and routes read back as written, and route lookups answer for the intended packet."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import model
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel

from tests.support.addresses import address_of
from tests.support.routing import local_delivery

HOSTS = ["client", "router", "a", "b"]


def test_removing_a_wide_rule_keeps_the_narrow_rule(lab, b):
    """The kernel would remove the first rule that matches ``from X``."""
    narrow = model.Rule("ipv4", 1100, table=20100, src="198.18.0.99/32", ip_proto=6)
    wide = model.Rule("ipv4", 1100, table=20100, src="198.18.0.99/32")
    with b.inside(), kernel.Kernel() as netlink:
        for rule in (narrow, wide):
            netlink.add_rule(rule, 202)
        netlink.remove_rule(wide, 202)
        assert owned_rules(netlink) == [narrow]
        with pytest.raises(FileNotFoundError):
            netlink.remove_rule(wide, 202)
        netlink.remove_rule(narrow, 202)


def test_removing_a_plain_lookup_keeps_the_suppressing_rule(lab, b):
    plain = model.Rule("ipv6", 1100, table=20100, iif="lo")
    suppressing = model.Rule("ipv6", 1100, table=20100, iif="lo", suppress_prefixlength=0)
    with b.inside(), kernel.Kernel() as netlink:
        for rule in (suppressing, plain):
            netlink.add_rule(rule, 202)
        netlink.remove_rule(plain, 202)
        assert owned_rules(netlink) == [suppressing]
        netlink.remove_rule(suppressing, 202)


def test_the_kernel_alone_removes_the_wrong_rule(lab, b):
    """The negative control: the same request without our check."""
    narrow, wide = (model.Rule("ipv4", 1100, table=20100, iif="lo", ip_proto=number) for number in (6, None))
    with b.inside(), kernel.Kernel() as netlink:
        for rule in (narrow, wide):
            netlink.add_rule(rule, 202)
        netlink._delete(wide, 202)
        assert owned_rules(netlink) == [wide]
    with b.inside(), kernel.Kernel() as netlink:
        netlink.remove_rule(wide, 202)


def owned_rules(netlink: kernel.Kernel) -> list:
    return [found.value for found in netlink.rules() if found.protocol == 202]


RULES = [
    model.Rule("ipv4", 1100, table=20100, src="198.18.0.0/24", dst="10.0.0.0/8", iif="lo", ip_proto=17, sport=(53, 60)),
    model.Rule("ipv6", 1101, table=20100, src="2001:db8::/64", ip_proto=6, dport=(80, 80)),
    model.Rule("ipv4", 1102, action="prohibit", fwmark=0x100, fwmask=0xFF00),
    model.Rule("ipv6", 1103, action="blackhole", fwmark=0x100),
    model.Rule("ipv4", 1104, table=254, oif="eth0", uid_range=(1000, 2000), suppress_prefixlength=0),
    model.Rule("ipv6", 1105, table=70000, iif="eth0", uid_range=(0, 0), suppress_prefixlength=128),
    model.Rule("ipv4", 1106, table=1, dst="198.51.100.0/25", ip_proto=132),
]
ROUTES = [
    model.Route("ipv4", 20100, "10.1.0.0/16", via="198.18.0.1", dev="eth0", src="198.18.0.21", metric=7),
    model.Route("ipv6", 20100, "default", via="2001:db8::1", dev="eth0", src="2001:db8::21"),
    model.Route("ipv4", 20100, "10.2.0.0/16", dev="eth0"),
    *[
        model.Route(family, 20101, dst, type=kind)
        for family, dst in (("ipv4", "10.3.0.0/16"), ("ipv6", "2001:db8:3::/48"))
        for kind in ("local", "unreachable", "prohibit", "blackhole")
    ],
    model.Route("ipv4", 20102, "10.4.0.0/16", via="10.99.0.1", dev="eth0", onlink=True, mtu=1400, advmss=1360),
    model.Route("ipv6", 20102, "2001:db8:4::/48", via="2001:db8:99::1", dev="eth0", onlink=True, mtu=1400, advmss=1340),
    model.Route("ipv4", 20102, "10.5.0.0/16", dev="eth0", scope="global"),
    model.Route("ipv4", 20102, "10.6.0.0/16", via="198.18.0.1", dev="eth0", mtu=1280),
    model.Route("ipv4", 20102, "10.7.0.1/32", dev="eth0", scope="host"),
    model.Route("ipv4", 20102, "10.8.0.0/16", type="local", src="198.18.0.21"),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_reads_back_as_it_was_written(lab, b, rule):
    with b.inside(), kernel.Kernel() as netlink:
        netlink.add_rule(rule, 202)
        assert owned_rules(netlink) == [rule]
        netlink.remove_rule(rule, 202)


BEYOND_US = [
    "not from 198.18.0.99 lookup 20100",
    "from 198.18.0.99 tos 0x10 lookup 20100",
    "fwmark 0/0xff lookup 20100",
    "from all goto 32766",
    "from all suppress_ifgroup 1 lookup 20100",
    "from 198.18.0.99 tun_id 7 lookup 20100",
]


@pytest.mark.parametrize("words", BEYOND_US)
def test_a_rule_with_unknown_selectors_equals_no_other_rule(lab, b, words):
    b.run(["ip", "rule", "add", "priority", "1100", *words.split(), "protocol", "202"])
    with b.inside(), kernel.Kernel() as netlink:
        assert owned_rules(netlink) == [None]
    b.run(["ip", "rule", "del", "priority", "1100"])


FOREIGN_ROUTES = [
    "10.9.0.0/16 nexthop via 198.18.0.1 nexthop via 198.18.0.11",
    "10.9.0.0/16 via 198.18.0.1 window 4000",
    "10.9.0.0/16 via inet6 2001:db8::1 dev eth0",
    "10.9.0.0/16 dev eth0 scope 200",
]


@pytest.mark.parametrize("words", FOREIGN_ROUTES)
def test_a_route_with_unknown_attributes_equals_no_other_route(lab, b, words):
    b.run(["ip", "route", "add", "table", "20103", "proto", "202", *words.split()])
    with b.inside(), kernel.Kernel() as netlink:
        assert [found.value for found in netlink.routes() if found.protocol == 202] == [None]
    b.run(["ip", "route", "flush", "table", "20103"])


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_reads_back_as_it_was_written(lab, b, route):
    with b.inside(), kernel.Kernel() as netlink:
        netlink.set_route(route, 202)
        assert [found.value for found in netlink.routes() if found.protocol == 202] == [route]
        netlink.remove_route(route, 202)
        assert [found.value for found in netlink.routes() if found.protocol == 202] == []


def test_route_get_respects_protocol_and_ports(lab, b, family):
    command = "-4" if family == "ipv4" else "-6"
    rule = ["priority", "1200", "ipproto", "udp", "sport", "53", "dport", "99", "prohibit"]
    b.run(["ip", command, "rule", "add", *rule])
    target, router = address_of(lab["client"], family), getattr(lab["router"].on("inside"), family)
    with b.inside():
        hit = kernel.route_get(target, ip_proto="udp", sport=53, dport=99)
        misses = [
            kernel.route_get(target, ip_proto=protocol, sport=sport, dport=dport)
            for protocol, sport, dport in (("udp", 54, 99), ("tcp", 53, 99), ("udp", 53, 98))
        ]
    b.run(["ip", command, "rule", "del", *rule])
    assert (hit.type, hit.error) == ("prohibit", "EACCES")
    assert {(answer.type, answer.via, answer.dev) for answer in misses} == {("unicast", router, "eth0")}


def test_route_get_recognises_local_delivery(lab, family):
    a, b = lab["a"], lab["b"]
    lab.engine.apply(a, local_delivery(b))
    spoofed = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}[family]
    with a.inside():
        with_rules = kernel.route_get(spoofed, src=address_of(b, family), iif="eth0", ip_proto="tcp")
    lab.engine.remove(a, "local_delivery")
    with a.inside():
        without = kernel.route_get(spoofed, src=address_of(b, family), iif="eth0", ip_proto="tcp")
    assert with_rules.type == "local"
    assert without.type != "local"


def test_an_address_that_does_not_answer_has_no_mac(lab, b):
    with b.inside(), kernel.Kernel() as netlink:
        assert netlink.neighbour("198.18.0.99", 0.1) is None
        assert netlink.neighbour("203.0.113.1", 20.0) is None, "off-link: no waiting"


def test_errors_contain_the_kernels_reason(lab, b):
    rule = model.Rule("ipv4", 1100, table=20100, iif="lo")
    with b.inside(), kernel.Kernel() as netlink:
        netlink.add_rule(rule, 202)
        with pytest.raises(FileExistsError):
            netlink.add_rule(rule, 202)
        netlink.remove_rule(rule, 202)
        with pytest.raises(OSError, match=r"No such device.*nope0"):
            netlink.add_address(model.Address("ipv4", "198.18.0.121", "nope0"), 202)
