# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks on a backend, with every engine: replies go back to their proxy, and only because of the marks."""

from __future__ import annotations

import errno
import itertools
import re
import socket
import struct
import time

import pytest

from tests.support import routing
from tests.support.addresses import AF, FAMILIES, address_of
from tests.support.marking import NFT, VARIANTS, marked, outcomes
from tests.support.routing import PORT, TRANSPARENT, attempt, counters, handshake, local_delivery, return_path, watch
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
CLOSED_PORT = 4
FIN, ACK = 0x01, 0x10
REFUSED = str(errno.ECONNREFUSED)
FWMARK_ACCEPT = (
    ("net.ipv4.tcp_fwmark_accept", "1"),
    ("net.ipv4.fwmark_reflect", "1"),
    ("net.ipv6.fwmark_reflect", "1"),
)


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    for proxy in ("a", "a2"):
        lab.engine.apply(lab[proxy], local_delivery(lab["b"]))
    return lab


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request):
    return request.param


@pytest.fixture
def b(lab, variant):
    with marked(lab, "b", variant) as host:
        yield host


def spoofed(lab, port: int = PORT) -> set[str]:
    return set(outcomes(lab, "a", SOURCES, port))


def by_interface(lab, name: str) -> dict:
    data = return_path(lab["a"])
    data["marks"] = [{key: value for key, value in mark.items() if key != "mac"} for mark in data["marks"]]
    data["marks"][0]["iif"] = name
    return data


def test_marks_match_the_proxys_mac(lab, b):
    data = return_path(lab["a"], mac=True)
    b.apply(data)
    assert spoofed(lab) == {"established"}
    data["marks"][0]["mac"] = "02:00:00:00:00:99"
    b.apply(data)
    assert spoofed(lab) == {"silent"}


def test_marks_match_the_interface(lab, b):
    b.apply(by_interface(lab, "eth0"))
    assert spoofed(lab) == {"established"}
    b.apply(by_interface(lab, "eth7"))
    assert spoofed(lab) == {"silent"}


def ask(made: routing.Attempt) -> bytes:
    made.socket.settimeout(PATIENCE)
    made.socket.send(b"GET / HTTP/1.0\r\n\r\n")
    return made.socket.recv(4096)


@pytest.mark.parametrize("last_sender", [(), ("tcp/8080",)], ids=["first sender", "last sender"])
@pytest.mark.parametrize("forgotten", [False, True], ids=["tracked", "forgotten"])
@pytest.mark.parametrize(("family", "port"), [("ipv4", 40011), ("ipv6", 40012)])
def test_another_proxys_syn_does_not_redirect_a_live_connection(lab, b, family, port, forgotten, last_sender):
    """Not even if conntrack has forgotten it, and takes the SYN for the first packet of a connection."""
    port += 20 * len(last_sender)
    data = return_path(lab["a"], lab["a2"], sysctls=FWMARK_ACCEPT)
    b.apply({**data, "marks": [{**mark, "last_sender": [*last_sender] or None} for mark in data["marks"]]})
    source, target = address_of(lab["client"], family), address_of(lab["b"], family)
    with attempt(lab["a"], source, target, source_port=port + 10 * forgotten) as first:
        assert first.outcome() == "established"
        if forgotten:
            time.sleep(0.1)
            b.run("conntrack -F")
        with attempt(lab["a2"], source, target, source_port=port + 10 * forgotten) as second:
            assert second.outcome() == "silent"
            assert b"200 OK" in ask(first)


def stale_fin(lab, family: str) -> None:
    """Send a FIN from the proxy for a connection that the backend does not know, as after a reboot."""
    source, target = address_of(lab["client"], family), address_of(lab["b"], family)
    addresses = [socket.inet_pton(AF[family], address) for address in (source, target)]
    packed = struct.pack("!HHIIBBHHH", 40005, PORT, 1000, 2000, 5 << 4, FIN | ACK, 1000, 0, 0)
    pseudo = b"".join(addresses) + struct.pack("!II", len(packed), socket.IPPROTO_TCP)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(packed)) // 2}H", pseudo + packed))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    with lab["a"].inside():
        raw = socket.socket(AF[family], socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        raw.setsockopt(*TRANSPARENT[family], 1)
        raw.bind((source, 0))
        raw.sendto(packed[:16] + struct.pack("!H", checksum) + packed[18:], (target, 0))


def leaks_of_a_stale_fin(lab, family: str) -> int:
    word = "ip" if family == "ipv4" else "ip6"
    leak = f"{word} saddr {address_of(lab['b'], family)} tcp sport {PORT} counter"
    watch(lab["router"], "leaks", "forward priority 0", leak)
    watch(lab["b"], "seen", "prerouting priority -300", f"meta nfproto {family} tcp dport {PORT} counter")
    stale_fin(lab, family)
    eventually(lambda: counters(lab["b"], "seen")["seen"])
    time.sleep(0.1)  # an RST is sent at once
    lab["b"].run(["nft", "delete", "table", "inet", "seen"])
    return counters(lab["router"], "leaks")["leaks"]


def test_a_fin_of_an_unknown_connection_causes_no_leaking_rst(lab, b, family):
    b.apply(return_path(lab["a"]))
    assert leaks_of_a_stale_fin(lab, family) == 0


def test_without_the_invalid_rule_a_fin_of_an_unknown_connection_leaks_a_rst(lab, b, family):
    b.apply(return_path(lab["a"]))
    if b.variant == NFT:
        chain = ["inet", "l4proxy_return_path", "input"]
        listing = b.host.run(["nft", "-a", "list", "chain", *chain]).stdout
        b.host.run(
            ["nft", "delete", "rule", *chain, "handle", re.search("unknown connection.* handle (.*)", listing)[1]]
        )
    for command in ("iptables", "ip6tables"):
        for line in b.variant.save(b.host, command):
            if "INVALID" in line:
                b.run(f"{command} -t mangle -D {line[3:]}")
    assert leaks_of_a_stale_fin(lab, family) == 1


def test_a_mark_that_is_set_again_redirects_a_live_connection(lab, b):
    """The negative control: with a rule that sets the mark unconditionally."""
    a2 = lab["a2"]
    b.apply(return_path(lab["a"], a2))
    watch(b.host, "again", "input priority -149", f"ether saddr {a2.mac} ct mark set ct mark and 0xffffff00 or 0xc")
    source, target = lab["client"].ipv4, b.host.ipv4
    try:
        with attempt(lab["a"], source, target, source_port=40003) as first:
            assert first.outcome() == "established"
            with attempt(a2, source, target, source_port=40003):
                # b's answer to the second SYN now goes to a2, which resets the connection without a's knowledge.
                eventually(lambda: "mark=12" in conntrack(b.host, 40003))
                first.socket.send(b"GET / HTTP/1.0\r\n\r\n")
                eventually(lambda: first.retransmits >= 2)
                with pytest.raises(BlockingIOError):
                    first.socket.recv(1)
    finally:
        b.run("nft delete table inet again")


def conntrack(host, port: int) -> str:
    return host.run(["conntrack", "-L", "-p", "tcp", "--orig-port-src", str(port)], check=False).stdout


@pytest.mark.parametrize(("family", "port"), [("ipv4", 40014), ("ipv6", 40015)])
def test_foreign_mark_bits_survive(lab, b, family, port):
    """Other bits of packet and connection marks, incoming and outgoing."""
    b.apply(return_path(lab["a"]))
    watch(b.host, "early", "prerouting priority -160", "ct mark set ct mark or 0x10000", "meta mark set 0x40000")
    kept_in = "tcp dport 8080 meta mark and 0xffffff00 == 0x40000 ct mark 0x1000b counter"
    watch(b.host, "kept_in", "input priority 0", kept_in)
    watch(b.host, "own_out", "output priority -160", "tcp sport 8080 meta mark set 0x20000")
    watch(b.host, "kept_out", "postrouting priority 0", "tcp sport 8080 meta mark 0x2000b ct mark 0x1000b counter")
    try:
        with attempt(lab["a"], SOURCES[family], address_of(lab["b"], family), source_port=port) as connection:
            assert connection.outcome() == "established"
        for table in ("kept_in", "kept_out"):
            assert counters(b.host, table)[table] > 0
    finally:
        for table in ("early", "kept_in", "own_out", "kept_out"):
            b.run(f"nft delete table inet {table}")


# --- fwmark_accept: no conntrack


def fwmark_accept(lab) -> dict:
    data = return_path(lab["a"], mac=True, sysctls=FWMARK_ACCEPT)
    data["marks"] = [{**mark, "conntrack": False} for mark in data["marks"]]
    return data


def test_fwmark_accept_answers_through_the_proxy(lab, b):
    b.apply(fwmark_accept(lab))
    assert spoofed(lab) == {"established"}
    assert spoofed(lab, CLOSED_PORT) == {REFUSED}
    b.write(())
    assert spoofed(lab) == {"silent"}


def test_fwmark_accept_needs_its_sysctls(lab):
    with marked(lab, "b", NFT) as b:
        b.apply(fwmark_accept(lab))
        lab["b"].sysctl("net.ipv4.tcp_fwmark_accept", "0")
        assert spoofed(lab) == {"silent"}
        for family in FAMILIES:
            lab["b"].sysctl(f"net.{family}.fwmark_reflect", "0")
        assert spoofed(lab, CLOSED_PORT) == {"silent"}


def test_fwmark_accept_leaves_conntrack_off(lab, b):
    """The kernel tracks connections as soon as any rule uses conntrack; ours do not."""

    def tracked() -> int:
        handshake(lab["a"], SOURCES["ipv4"], b.host.ipv4)
        return int(b.run("sysctl -n net.netfilter.nf_conntrack_count"))

    b.run("conntrack -F")
    b.apply(fwmark_accept(lab))
    b.run("conntrack -F")
    assert tracked() == 0
    b.apply(return_path(lab["a"]))
    assert tracked() > 0


# --- fail closed


PORTS = itertools.count(41000)


def leaks_from_the_client(lab) -> list[bool]:
    """Spoof the client's own address; return whether a reply passes the router, for IPv4 and IPv6.

    Each call has a port of its own, because half-open connections are still answered for a while.
    """
    found = []
    port = next(PORTS)
    for family, word in (("ipv4", "ip"), ("ipv6", "ip6")):
        rule = f"{word} saddr {address_of(lab['b'], family)} tcp dport {port} counter"
        watch(lab["router"], f"leaks_{word}", "forward priority 0", rule)
    sources = {family: address_of(lab["client"], family) for family in FAMILIES}
    assert outcomes(lab, "a", sources, source_port=port) == ["silent"] * 2
    for table in ("leaks_ip", "leaks_ip6"):
        found.append(counters(lab["router"], table)[table] > 0)
        lab["router"].run(["nft", "delete", "table", "inet", table])
    return found


@pytest.mark.parametrize("make", [lambda lab: return_path(lab["a"], mac=True), fwmark_accept], ids=["conntrack", "no"])
def test_without_the_proxys_rules_nftables_drops_replies_and_iptables_leaks(lab, b, make):
    """iptables cannot prevent it, and the engine warns about that."""
    b.apply(make(lab))
    for command in ("-4", "-6"):
        for rule in ("1100 fwmark 11/255 lookup 20111", "1101 fwmark 11/255 unreachable"):
            b.run(f"ip {command} rule del priority {rule}")
    assert leaks_from_the_client(lab) == [b.variant.engine == "iptables"] * 2


def test_a_reply_whose_mark_was_cleared_is_dropped(lab, b):
    """With both engines. It leaks only without the guard."""
    b.apply(return_path(lab["a"], mac=True))
    body = "chain thief {\n type route hook output priority 0;\n tcp sport 8080 meta mark set 0\n }"
    b.host.run(["nft", "-f", "-"], input=f"table inet thief {{\n {body}\n }}\n")
    try:
        assert leaks_from_the_client(lab) == [False, False]
        if b.variant is NFT:
            b.run("nft flush chain inet l4proxy_return_path guard_11")
        else:
            b.run("iptables -t mangle -F L4PROXY_RETURN_PATH_POST")
            b.run("ip6tables -t mangle -F L4PROXY_RETURN_PATH_POST")
        assert leaks_from_the_client(lab) == [True, True]
    finally:
        b.run("nft delete table inet thief")
