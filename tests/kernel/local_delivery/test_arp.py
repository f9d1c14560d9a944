# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A proxy answers ARP and ND for its own addresses only, which is why there are rules by protocol."""

from __future__ import annotations

import ipaddress
import socket
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.kernel import Kernel

from tests.support.routing import counters, local_delivery, watch
from tests.support.waiting import PATIENCE

HOSTS = ["router", "a", "b"]

ETH_P_ARP = 0x0806
UNUSED = {"ipv4": "198.18.0.99", "ipv6": "2001:db8::99"}


@pytest.fixture(scope="module")
def lab(lab):
    lab.engine.apply(lab["a"], local_delivery(lab["b"]))
    return lab


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def who_has(lab, *targets: str) -> dict[str, set[str]]:
    """Send ARP requests from b; return the MACs that claim each address.

    The last target must be one of a's own: once a has answered that, it has seen all the questions.
    """
    b = lab["b"]
    with b.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
    answers: dict[str, set[str]] = {target: set() for target in targets}
    with wire:
        with b.inside():
            wire.bind((b.dev, ETH_P_ARP))
        wire.settimeout(PATIENCE)
        for target in targets:
            question = bytes.fromhex("0001080006040001") + packed(b.mac) + socket.inet_aton(b.ipv4)
            frame = b"\xff" * 6 + packed(b.mac) + ETH_P_ARP.to_bytes(2, "big") + question
            wire.send(frame + b"\0" * 6 + socket.inet_aton(target))
        deadline = time.monotonic() + PATIENCE
        while lab["a"].mac not in answers[targets[-1]]:
            assert time.monotonic() < deadline, f"a does not answer for its own address: {answers}"
            reply = wire.recv(2048)
            if reply[20:22] == b"\0\x02":
                answers.setdefault(socket.inet_ntoa(reply[28:32]), set()).add(reply[22:28].hex(":"))
    return answers


def as_number(address: str) -> str:
    return hex(int(ipaddress.ip_address(address)))


def test_the_proxy_answers_arp_for_its_own_address_only(lab):
    router, a = lab["router"].on("inside"), lab["a"]
    answers = who_has(lab, router.ipv4, UNUSED["ipv4"], a.ipv4)
    assert answers == {router.ipv4: {router.mac}, UNUSED["ipv4"]: set(), a.ipv4: {a.mac}}


def test_with_a_rule_without_protocol_it_answers_arp_for_the_whole_subnet(lab):
    router, a = lab["router"].on("inside"), lab["a"]
    rule = ["priority", "1099", "from", lab["b"].ipv4, "lookup", "20100"]
    a.run(["ip", "rule", "add", *rule])
    answers = who_has(lab, router.ipv4, UNUSED["ipv4"], a.ipv4)
    a.run(["ip", "rule", "del", *rule])
    assert a.mac in answers[router.ipv4]
    assert answers[UNUSED["ipv4"]] == {a.mac}


def test_arp_ignore_prevents_arp_answers_for_the_whole_subnet(lab):
    router, a = lab["router"].on("inside"), lab["a"]
    rule = ["priority", "1099", "from", lab["b"].ipv4, "lookup", "20100"]
    a.run(["ip", "rule", "add", *rule])
    a.sysctl("net.ipv4.conf.eth0.arp_ignore", "1")
    try:
        answers = who_has(lab, router.ipv4, UNUSED["ipv4"], a.ipv4)
    finally:
        a.sysctl("net.ipv4.conf.eth0.arp_ignore", "0")
        a.run(["ip", "rule", "del", *rule])
    assert answers == {router.ipv4: {router.mac}, UNUSED["ipv4"]: set(), a.ipv4: {a.mac}}


def test_the_proxy_advertises_its_own_ipv6_address_only(lab):
    a, b, router = lab["a"], lab["b"], lab["router"].on("inside")
    # The target is behind 8 bytes of header (RFC 4861, 4.4); nft 1.0.6 has no name for it.
    foreign = [
        f"icmpv6 type nd-neighbor-advert @th,64,128 {as_number(ip)} counter" for ip in (router.ipv6, UNUSED["ipv6"])
    ]
    watch(a, "adverts", "output priority 0", *foreign)
    own = f"icmpv6 type nd-neighbor-advert @th,64,128 {as_number(a.ipv6)} counter"
    watch(a, "own_adverts", "output priority 0", own)
    b.run(["ip", "-6", "neigh", "flush", "dev", b.dev])
    with b.inside(), Kernel() as kernel:
        assert kernel.neighbour(a.ipv6, PATIENCE) == a.mac
        assert kernel.neighbour(router.ipv6, PATIENCE) == router.mac
        assert kernel.neighbour(UNUSED["ipv6"], 1.2) is None  # the kernel sends one request per second
    assert counters(a, "adverts") == {"adverts": 0}
    assert counters(a, "own_adverts")["own_adverts"] > 0
