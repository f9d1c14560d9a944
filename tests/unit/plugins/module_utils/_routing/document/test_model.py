# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values that the kernel treats as the same are equal."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import formatting, model
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import (
    Address,
    Mark,
    Route,
    Rule,
    Sysctl,
)

SAME = [
    (Rule("ipv4", 1100, table=20100, src="198.18.0.21"), Rule("ipv4", 1100, table=20100, src="198.18.0.21/32")),
    (Rule("ipv6", 1100, table=20100, src="2001:DB8:0::21"), Rule("ipv6", 1100, table=20100, src="2001:db8::21/128")),
    (Rule("ipv4", 1100, table=1, src="0.0.0.0/0", ip_proto="tcp"), Rule("ipv4", 1100, table=1, ip_proto=6)),
    (Rule("ipv4", 1100, table=1, fwmark=11), Rule("ipv4", 1100, table=1, fwmark=11, fwmask=0xFFFFFFFF)),
    (Rule("ipv4", 1, table=1, iif="lo", retiring=True), Rule("ipv4", 1, table=1, iif="lo")),
    (Route("ipv4", 1, "0.0.0.0/0", via="198.18.0.1"), Route("ipv4", 1, "default", via="198.18.0.1", metric=0)),
    (Route("ipv6", 1, "::/0", via="2001:db8:0::1"), Route("ipv6", 1, "default", via="2001:db8::1", metric=1024)),
    (Route("ipv4", 1, type="local"), Route("ipv4", 1, type="local", dev="lo")),
    (Route("ipv6", 1, type="unreachable", dev="lo"), Route("ipv6", 1, type="unreachable")),
    (Mark("a", 11, 255, ("02-00-00-00-00-AA",)), Mark("a", 11, 255, ("02:00:00:00:00:aa",))),
    (Mark("a", 11, 255, (), ("2001:db8::11", "198.18.0.11")), Mark("a", 11, 255, (), ("198.18.0.11", "2001:DB8::11"))),
    (Route("ipv4", 1, dev="eth0"), Route("ipv4", 1, dev="eth0", scope="link")),
    (Route("ipv4", 1, type="local"), Route("ipv4", 1, type="local", scope="host")),
    (Route("ipv6", 1, dev="eth0"), Route("ipv6", 1, dev="eth0", scope="global")),
    (Address("ipv4", "198.18.0.121/24", "eth0"), Address("ipv4", "198.18.0.121", "eth0", True, 5)),
    (Address("ipv6", "2001:DB8::0121/64", "eth0"), Address("ipv6", "2001:db8::121", "eth0")),
    (Sysctl("net/ipv4/ip_forward", "1\n"), Sysctl("net.ipv4.ip_forward", "1")),
    (Sysctl("net.ipv4.tcp_rmem", "1\t2\t3"), Sysctl("net.ipv4.tcp_rmem", "1 2 3")),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equivalent_values_are_equal(one, other):
    assert one == other
    assert one.key == other.key


@pytest.mark.parametrize(("one", "other"), [
    (Rule("ipv4", 1100, table=1, iif="lo"), Rule("ipv4", 1100, table=2, iif="lo")),
    (Rule("ipv4", 1100, table=1, iif="lo"), Rule("ipv4", 1100, action="prohibit", iif="lo")),
    (Route("ipv4", 1, via="198.18.0.1"), Route("ipv4", 1, via="198.18.0.2")),
    (Rule("ipv4", 1, table=1, iif="lo"), Rule("ipv4", 1, table=1, iif="lo", suppress_prefixlength=0)),
    (Route("ipv4", 1, via="198.18.0.1"), Route("ipv4", 1, via="198.18.0.1", mtu=1400)),
    (Mark("a", 11, 255), Mark("a", 11, 255, ("02:00:00:00:00:11",))),
])  # fmt: skip
def test_values_with_the_same_key_may_differ(one, other):
    assert one.key == other.key
    assert one != other


def test_objects_with_and_without_selectors_can_be_sorted():
    rules = [Rule("ipv4", 1, table=1, sport=(5, 6)), Rule("ipv4", 1, table=1), Rule("ipv4", 1, table=1, iif="lo")]
    assert sorted(rules, key=lambda rule: rule.order)[0] == rules[1]


@pytest.mark.parametrize(("given", "expected"), [
    ("net.ipv4.conf.eth0/100.rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
    ("net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
    ("net.ipv4.conf.eth0.100.rp_filter", "net.ipv4.conf.eth0/100.rp_filter"),
    ("net.ipv6.conf.all.accept_redirects", "net.ipv6.conf.all.accept_redirects"),
])  # fmt: skip
def test_sysctl_names_have_one_spelling(given, expected):
    assert model.sysctl_name(given) == expected


@pytest.mark.parametrize("name", ["", "net", "../etc/passwd", "net/../../etc/x", "net..ipv4", "net.ipv4.x y", "/etc/x"])
def test_an_invalid_sysctl_name_is_refused(name):
    with pytest.raises(ValueError, match="not the name of a sysctl"):
        model.sysctl_name(name)


@pytest.mark.parametrize("value", ["", "02:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_an_invalid_or_shared_mac_is_refused(value):
    with pytest.raises(ValueError, match="MAC address"):
        model.mac(value)


TEXTS = [
    (Rule("ipv4", 1100, table=20111, fwmark=11, fwmask=255), "ip rule 1100: from all fwmark 0xb/0xff lookup 20111"),
    (Rule("ipv6", 1101, action="unreachable", fwmark=11, fwmask=255), "ip -6 rule 1101: from all fwmark 0xb/0xff "
     "unreachable"),
    (Rule("ipv4", 1100, table=20100, src="198.18.0.21", dst="10.0.0.0/8", iif="lo", ip_proto=17, sport=(53, 60)),
     "ip rule 1100: from 198.18.0.21 to 10.0.0.0/8 iif lo ipproto udp sport 53-60 lookup 20100"),
    (Route("ipv4", 20111, via="198.18.0.11", dev="eth0"), "ip route default via 198.18.0.11 dev eth0 table 20111"),
    (Route("ipv6", 20100, type="local"), "ip -6 route local default dev lo table 20100"),
    (Route("ipv4", 7, "10.0.0.1/32", dev="eth0", src="10.0.0.2", metric=5),
     "ip route 10.0.0.1 dev eth0 table 7 src 10.0.0.2 metric 5"),
    (Rule("ipv4", 9, table=254, oif="eth0", uid_range=(0, 5), suppress_prefixlength=0),
     "ip rule 9: from all oif eth0 uidrange 0-5 lookup 254 suppress_prefixlength 0"),
    (Route("ipv4", 7, "10.0.0.0/8", via="10.9.9.9", dev="eth0", scope="link", onlink=True, mtu=1400, advmss=1360),
     "ip route 10.0.0.0/8 via 10.9.9.9 dev eth0 table 7 scope link onlink mtu 1400 advmss 1360"),
    (Address("ipv6", "2001:db8::121", "eth0"), "ip -6 addr 2001:db8::121 dev eth0"),
    (Mark("a", 11, 255, (), ("198.18.0.11",)), "nft mark a 0xb/0xff from (not yet known) via 198.18.0.11"),
    (Mark("a", 11, 255, iif="eth1", conntrack=False), "nft mark a 0xb/0xff iif eth1 without conntrack"),
    (Mark("a", 11, 255, transparent=True), "nft mark a 0xb/0xff to transparent sockets"),
    (Sysctl("net.ipv4.ip_forward", "1"), "sysctl net.ipv4.ip_forward = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), TEXTS)
def test_objects_are_described_in_the_syntax_of_ip(value, expected):
    assert formatting.describe(value) == expected
