# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container behind a published port of a backend: DNAT applies to requests and replies, which are forwarded.

client - router - switch - a, b - box        box's default route is b; b publishes 9000 as box's 8080
"""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.lab import wiring
from tests.support.addresses import AF, FAMILIES, address_of
from tests.support.marking import NFT, VARIANTS, Marked, marked, outcomes
from tests.support.routing import TRANSPARENT, counters, local_delivery, return_path, watch
from tests.support.waiting import PATIENCE

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
IPV4 = {"ipv4": SOURCES["ipv4"]}
BRIDGE = {"ipv4": "198.19.7.1", "ipv6": "2001:db8:7::1"}
BOX = {"ipv4": "198.19.7.2", "ipv6": "2001:db8:7::2"}
PUBLISHED = 9000
PUBLISH = """
table inet publish {
  chain incoming {
    type nat hook prerouting priority dstnat
    iifname "eth0" meta l4proto { tcp, udp } th dport 9000 dnat ip to 198.19.7.2:8080
    iifname "eth0" meta l4proto { tcp, udp } th dport 9000 dnat ip6 to [2001:db8:7::2]:8080
  }
}
"""


HOSTS = ["client", "router", "a", "b"]


@pytest.fixture(scope="module")
def lab(lab):
    with contextlib.ExitStack() as stack:
        lab.engine.apply(lab["a"], local_delivery(lab["b"]))
        add_box(lab, stack)
        yield lab


def add_box(lab, stack) -> None:
    """The container, its listening sockets and the published port."""
    b, box = lab["b"], f"{lab.prefix}-box"
    wiring.run(["ip", "netns", "add", box])
    stack.callback(wiring.run, ["ip", "netns", "del", box])
    b.run(["ip", "link", "add", "box0", "type", "veth", "peer", "name", "eth0", "netns", box])
    sides = ((b.netns, "box0", BRIDGE), (box, "eth0", BOX))
    for netns, dev, own in sides:
        commands = [f"addr add {own['ipv4']}/24 dev {dev}", f"addr add {own['ipv6']}/64 dev {dev} nodad"]
        wiring.ip_batch([*commands, f"link set {dev} up", "link set lo up"], netns)
    wiring.ip_batch([f"route add default via {address}" for address in BRIDGE.values()], box)
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.rp_filter"):
        b.sysctl(name, "1")
    b.run(["nft", "-f", "-"], input=PUBLISH)
    lab.tcp, lab.udp = {}, {}
    for family in FAMILIES:
        with wiring.inside(box):
            tcp = lab.tcp[family] = stack.enter_context(socket.socket(AF[family], socket.SOCK_STREAM))
            lab.udp[family] = stack.enter_context(socket.socket(AF[family], socket.SOCK_DGRAM))
        tcp.bind((BOX[family], 8080))
        tcp.listen()
        lab.udp[family].bind((BOX[family], 8080))
        lab.udp[family].settimeout(PATIENCE)


@pytest.fixture(params=VARIANTS, ids=str)
def b(lab, request):
    with marked(lab, "b", request.param) as host:
        host.apply(return_path(lab["a"], mac=True))
        yield host


def without_replies(b: Marked) -> None:
    """Remove the rules for forwarded replies."""
    if b.variant is NFT:
        b.run("nft flush chain inet l4proxy_return_path prerouting")
    for command in ("iptables", "ip6tables") if b.variant is not NFT else ():
        b.run(f"{command} -t mangle -F L4PROXY_RETURN_PATH_PRE")


def clients_own(lab) -> dict[str, str]:
    return {family: address_of(lab["client"], family) for family in FAMILIES}


def test_a_container_answers_through_the_proxy(lab, b):
    assert outcomes(lab, "a", SOURCES, PUBLISHED) == ["established"] * 2
    assert outcomes(lab, "client", clients_own(lab), PUBLISHED) == ["established"] * 2
    without_replies(b)
    assert outcomes(lab, "a", SOURCES, PUBLISHED) == ["silent"] * 2


def test_a_container_answers_udp_through_the_proxy(lab, b, family):
    with lab["a"].inside():
        sender = socket.socket(AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.settimeout(PATIENCE)
        sender.setsockopt(*TRANSPARENT[family], 1)
        sender.bind((SOURCES[family], 0))
        sender.connect((address_of(b.host, family), PUBLISHED))
        sender.send(b"question")
        data, source = lab.udp[family].recvfrom(100)
        assert (data, source[0]) == (b"question", SOURCES[family])
        lab.udp[family].sendto(b"answer", source)
        assert sender.recv(100) == b"answer"


def test_requests_to_the_container_carry_no_packet_mark(lab, b):
    """Only the connection is marked before the reply, so the request is routed as usual."""
    watch(b.host, "unmarked", "postrouting priority 0", 'oifname "box0" meta mark 0 ct mark 11 counter')
    watch(b.host, "marked", "postrouting priority 0", 'oifname "box0" meta mark != 0 counter')
    try:
        assert outcomes(lab, "a", IPV4, PUBLISHED) == ["established"]
        assert counters(b.host, "unmarked")["unmarked"] > 0
        assert counters(b.host, "marked")["marked"] == 0
    finally:
        for table in ("unmarked", "marked"):
            b.run(f"nft delete table inet {table}")


def test_src_valid_mark_with_strict_rp_filter_drops_the_replies(lab, b):
    """The kernel then looks up the reverse route with the reply's mark, which leads to the proxy."""
    b.host.sysctl("net.ipv4.conf.all.src_valid_mark", "1")
    try:
        assert outcomes(lab, "a", IPV4, PUBLISHED) == ["silent"]
        b.host.sysctl("net.ipv4.conf.all.rp_filter", "0")
        assert outcomes(lab, "a", IPV4, PUBLISHED) == ["established"]
    finally:
        b.host.sysctl("net.ipv4.conf.all.src_valid_mark", "0")
        b.host.sysctl("net.ipv4.conf.all.rp_filter", "1")


def test_an_unmarked_forwarded_reply_is_dropped(lab, b):
    """The guards of both engines drop it. The control: without marks it leaks to the router."""
    without_replies(b)
    assert leaks(lab, 42000 + VARIANTS.index(b.variant)) == 0
    b.write(())
    assert leaks(lab, 42010 + VARIANTS.index(b.variant)) > 0


def leaks(lab, port: int) -> int:
    watch(lab["router"], "leaks", "forward priority 0", f"tcp sport {PUBLISHED} tcp dport {port} counter")
    assert outcomes(lab, "a", clients_own(lab), PUBLISHED, port) == ["silent"] * 2
    found = counters(lab["router"], "leaks")["leaks"]
    lab["router"].run(["nft", "delete", "table", "inet", "leaks"])
    return found
