# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Local delivery by the mark of transparent sockets, for a proxy that also routes for its backends."""

from __future__ import annotations

import socket
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors

from tests.support.addresses import AF, FAMILIES, address_of
from tests.support.marking import VARIANTS, marked, outcomes
from tests.support.routing import PORT, TRANSPARENT, handshake, return_path
from tests.support.waiting import PATIENCE

HOSTS = ["client", "router", "a", "b"]

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
WILDCARD = {"ipv4": "0.0.0.0", "ipv6": "::"}
ECHO_PORT = 7777
# (level, type) of the control message that chooses a datagram's source: linux/in.h (IP_PKTINFO is 8), linux/in6.h
PKTINFO = {"ipv4": (socket.IPPROTO_IP, 8), "ipv6": (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)}
SRC_VALID_MARK = "net.ipv4.conf.all.src_valid_mark"


def socket_mark(*sysctls: tuple[str, str]) -> dict:
    """Local delivery for packets of transparent sockets only."""
    match = {"fwmark": 1, "fwmask": 255, "action": "lookup", "table": 20100, "priority": 1100}
    return {
        "schema": 1,
        "owner": "local_delivery",
        "protocol": 201,
        "rules": [{"family": family, **match} for family in FAMILIES],
        "routes": [{"family": family, "table": 20100, "dst": "default", "type": "local"} for family in FAMILIES],
        "marks": [{"name": "sockets", "id": 1, "mask": 255, "transparent": True}],
        "sysctls": [{"name": name, "value": value} for name, value in sysctls],
    }


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    lab.nginx("client", ports=[PORT])
    lab.engine.apply(lab["b"], return_path(lab["a"], mac=True))
    lab.echo = {family: listening_udp(lab["b"], family) for family in FAMILIES}
    yield lab
    for one in lab.echo.values():
        one.close()


def listening_udp(host, family: str) -> socket.socket:
    with host.inside():
        made = socket.socket(AF[family], socket.SOCK_DGRAM)
    if family == "ipv6":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address_of(host, family), ECHO_PORT))
    made.settimeout(PATIENCE)
    return made


@pytest.fixture(params=VARIANTS, ids=str)
def a(lab, request):
    with marked(lab, "a", request.param, ("local_delivery",)) as host:
        yield host


def test_socket_mark_delivers_tcp_replies(lab, a):
    a.apply(socket_mark())
    assert outcomes(lab, "a", SOURCES) == ["established"] * 2
    a.write((), "local_delivery")
    assert outcomes(lab, "a", SOURCES) == ["silent"] * 2


def wildcard_exchange(lab, family: str, patience: float) -> bool:
    """Whether a datagram from a spoofed source, sent by a wildcard socket as the forwarder does, is answered."""
    host, source = lab["a"], SOURCES[family]
    with host.inside():
        sender = socket.socket(AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.settimeout(patience)
        sender.setsockopt(*TRANSPARENT[family], 1)
        sender.bind((WILDCARD[family], 0))
        packed = socket.inet_pton(AF[family], source)
        info = struct.pack("=i4s4x", 0, packed) if family == "ipv4" else struct.pack("=16si", packed, 0)
        sender.sendmsg([b"question"], [(*PKTINFO[family], info)], 0, (address_of(lab["b"], family), ECHO_PORT))
        data, asker = lab.echo[family].recvfrom(100)
        assert (data, asker[0]) == (b"question", source)
        lab.echo[family].sendto(b"answer", asker)
        try:
            return sender.recv(100) == b"answer"
        except TimeoutError:
            return False


def test_socket_mark_delivers_udp_replies_to_wildcard_sockets(lab, a, family):
    a.apply(socket_mark())
    assert wildcard_exchange(lab, family, PATIENCE)
    a.write((), "local_delivery")
    assert not wildcard_exchange(lab, family, 0.3)


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
def test_iptables_needs_nowildcard_for_wildcard_sockets(lab, variant, family):
    with marked(lab, "a", variant, ("local_delivery",)) as a:
        a.apply(socket_mark())
        command = "iptables" if family == "ipv4" else "ip6tables"
        (rule,) = [line for line in variant.save(a.host, command) if "--nowildcard" in line]
        chain = rule.split()[1]
        a.run(f"{command} -t mangle -F {chain}")
        a.run(f"{command} -t mangle {rule.replace(' --nowildcard', '')}")
        assert handshake(a.host, SOURCES[family], address_of(lab["b"], family)) == "established"
        assert not wildcard_exchange(lab, family, 0.3)


def test_src_valid_mark_breaks_socket_mark_and_is_refused(lab, a):
    a.apply(socket_mark())
    a.host.sysctl(SRC_VALID_MARK, "1")
    try:
        assert outcomes(lab, "a", SOURCES) == ["silent", "established"], "IPv6 has no such setting"
        with pytest.raises(errors.Refused, match=r"mark sockets: net.ipv4.conf.all.src_valid_mark is 1"):
            a.apply(socket_mark())
        a.apply(socket_mark((SRC_VALID_MARK, "0")))
        assert handshake(a.host, SOURCES["ipv4"], lab["b"].ipv4) == "established"
    finally:
        a.remove("local_delivery")  # which restores the value 1
        a.host.sysctl(SRC_VALID_MARK, "0")
