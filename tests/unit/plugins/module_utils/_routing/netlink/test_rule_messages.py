# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encoding and decoding of rules, and rules that the kernel could remove by mistake."""

from __future__ import annotations

import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import rule_messages
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.messages import attribute

NARROW = Rule("ipv4", 1100, table=9, src="198.18.0.99/32", ip_proto=6)
WIDE = Rule("ipv4", 1100, table=9, src="198.18.0.99/32")


@pytest.mark.parametrize("rule", [
    NARROW,
    WIDE,
    Rule("ipv6", 1, table=70000, src="2001:db8::/64", dst="2001:db8::99/128", iif="lo", oif="eth0"),
    Rule("ipv4", 32765, action="unreachable", fwmark=11, fwmask=255),
    Rule("ipv4", 5, action="prohibit", ip_proto=17, sport=(53, 60), dport=(99, 99)),
    Rule("ipv6", 5, action="blackhole", uid_range=(0, 99)),
    Rule("ipv4", 5, table=254, iif="eth0", suppress_prefixlength=0),
])  # fmt: skip
def test_an_encoded_rule_decodes_to_itself(rule):
    found = rule_messages.decode(rule_messages.encode(rule, 202), rule.family)
    assert (found.value, found.protocol, found.family) == (rule, 202, rule.family)


def body(*pairs: tuple[int, bytes], tos: int = 0, action: int = 1, flags: int = 0) -> bytes:
    head = rule_messages.BODY.pack(2, 0, 0, tos, 9, 0, 0, action, flags)
    return head + b"".join(attribute(*pair) for pair in ((21, b"\xca"), *pairs))


NO_VALUE = struct.pack("=I", 0xFFFFFFFF)
# What a kernel adds to every rule.
IDLE = [(14, NO_VALUE), (13, NO_VALUE), (22, b"\0"), (28, b"\xff\xff"), (29, b"\xff\xff")]


def test_neutral_attributes_are_ignored():
    found = rule_messages.decode(body(*IDLE, (3, b"lo\0")), "ipv4")
    assert found.value == Rule("ipv4", 0, table=9, iif="lo")


BEYOND_US = [
    body((12, b"\0" * 8)),  # tun_id
    body((19, b"\1")),  # l3mdev
    body((13, struct.pack("=I", 1))),  # suppress_ifgroup
    body((25, b"\4")),  # dscp
    body((28, b"\x0f\xff")),  # the mask of a source port
    body((16, struct.pack("=I", 255))),  # "fwmark 0/0xff": what has no mark
    body((99, b"\0\0\0\0")),  # of a kernel to come
    body(flags=2),  # "not": it would read as its opposite
    body(tos=16),
    body(action=2),  # goto
]


@pytest.mark.parametrize("message", BEYOND_US)
def test_a_rule_that_the_model_cannot_express_has_no_value(message):
    found = rule_messages.decode(message, "ipv4")
    assert (found.value, found.protocol) == (None, 202)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


PRIORITY = (6, u32(1099))


# What others have, and how ip(8) shows it, for whoever has to find it.
@pytest.mark.parametrize(("message", "words"), [
    (body(PRIORITY, (10, u32(0xCA6C)), (16, u32(0xFFFFFFFF)), flags=2), "not from all fwmark 0xca6c lookup 9"),
    (body(PRIORITY, (16, u32(255))), "from all fwmark 0x0/0xff lookup 9"),
    (body(PRIORITY, (4, u32(5000)), action=2), "from all goto 5000"),
    (body(PRIORITY, (19, b"\1")), "from all lookup 9 l3mdev"),
    (body(PRIORITY, tos=16), "from all lookup 9 with unknown selectors"),
    (body(PRIORITY, (3, b"wg0\0"), flags=2), "not from all iif wg0 lookup 9"),
])  # fmt: skip
def test_a_rule_that_the_model_cannot_express_is_described(message, words):
    assert rule_messages.decode(message, "ipv4").text == f"ip rule 1099: {words}"


def test_host_bits_of_a_prefix_are_ignored():
    head = rule_messages.BODY.pack(2, 0, 24, 0, 9, 0, 0, 1, 0)
    found = rule_messages.decode(head + attribute(2, bytes([198, 18, 0, 21])), "ipv4")
    assert found.value.src == "198.18.0.0/24"


@pytest.mark.parametrize(("rules", "rule", "expected"), [
    ([NARROW, WIDE], WIDE, True),
    ([NARROW, WIDE], NARROW, False),
    ([WIDE], WIDE, False),
    ([WIDE, Rule("ipv4", 1101, table=9, src=WIDE.src, ip_proto=6)], WIDE, False),
    ([WIDE, Rule("ipv4", 1100, table=8, src=WIDE.src, ip_proto=6)], WIDE, False),
    ([WIDE, Rule("ipv4", 1100, table=9, src="198.18.0.98", ip_proto=6)], WIDE, False),
    ([WIDE, Rule("ipv4", 1100, table=9, src=WIDE.src, suppress_prefixlength=0)], WIDE, True),
    ([WIDE, Rule("ipv4", 1100, table=9, dst=WIDE.src)], WIDE, False),
])  # fmt: skip
def test_which_removals_are_ambiguous(rules, rule, expected):
    assert rule_messages.OwnedRules(rules).is_ambiguous(rule) == expected


def test_owned_rules_are_updated():
    owned = rule_messages.OwnedRules([NARROW])
    assert NARROW in owned
    assert WIDE not in owned
    owned.add(WIDE)
    owned.discard(NARROW)
    owned.discard(NARROW)
    assert (NARROW in owned, WIDE in owned, owned.is_ambiguous(WIDE)) == (False, True, False)
