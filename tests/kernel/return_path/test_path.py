# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Local delivery and return path in the kernel: a spoofed exchange needs every part, and works with them."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest

from tests.lab.netns import NamespaceLab
from tests.support import routing as rl

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
CLOSED_PORT = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with NamespaceLab(f"krp{os.getpid()}", ["client", "router", "a", "b"]) as raised:
        raised.engine = rl.Engine(tmp_path_factory.mktemp("engine"))
        raised.nginx("b", ports=[rl.PORT])
        rl.make_whole(raised)
        yield raised


@pytest.fixture
def whole(lab):
    yield lab
    rl.make_whole(lab)


@pytest.mark.parametrize("family", rl.FAMILIES)
def test_a_spoofed_handshake_succeeds(lab, family):
    before = rl.counters(lab["b"], "l4proxy_return_path")
    assert rl.handshake(lab["a"], SOURCES[family], rl.address(lab["b"], family)) == "established"
    after = rl.counters(lab["b"], "l4proxy_return_path")
    assert after["save_11"] == before["save_11"] + 1, "the mark is saved once in a connection's life"
    assert after["guard_11"] == before["guard_11"]


@pytest.mark.parametrize("family", rl.FAMILIES)
def test_a_direct_client_is_not_disturbed(lab, family):
    before = rl.counters(lab["b"], "l4proxy_return_path")
    assert rl.handshake(lab["client"], rl.address(lab["client"], family), rl.address(lab["b"], family)) == "established"
    assert rl.counters(lab["b"], "l4proxy_return_path") == before


WITHOUT = [
    ("a", "local route", "ip {f} route del local default dev lo table 20100"),
    ("a", "from rule", "ip {f} rule del priority 1100 from {b} ipproto tcp lookup 20100"),
    ("b", "fwmark rule", "ip {f} rule del priority 1100 fwmark 11/255 lookup 20111"),
    ("b", "return route", "ip {f} route flush table 20111"),
    ("b", "marks", "nft delete table inet l4proxy_return_path"),
]


@pytest.mark.parametrize("family", rl.FAMILIES)
@pytest.mark.parametrize(("host", "part", "command"), WITHOUT, ids=[part for _host, part, _command in WITHOUT])
def test_no_part_can_be_missing(whole, family, host, part, command):
    target = rl.address(whole["b"], family)
    whole[host].run(command.format(f="-4" if family == "ipv4" else "-6", b=target).split())
    before = rl.snmp(whole["b"], "Tcp", "InSegs")
    assert rl.handshake(whole["a"], SOURCES[family], target) == "silent"
    assert rl.snmp(whole["b"], "Tcp", "InSegs") > before, "the SYN arrived: it is the way back that is missing"


def refused(lab, family: str, source: str, wait: float) -> bool:
    """Whether a datagram to a closed port comes back as an error on the spoofed socket, within ``wait`` seconds."""
    with lab["a"].inside():
        sender = socket.socket(rl.AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(*rl.TRANSPARENT[family], 1)
        sender.bind((source, 0))
        sender.connect((rl.address(lab["b"], family), CLOSED_PORT))
        sender.send(b"x")
        select.select([sender], [], [], wait)
        return sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


# A source of its own for each datagram: the kernel limits ICMP errors a destination.
@pytest.mark.parametrize(("family", "source"), [("ipv4", "198.51.100.101"), ("ipv6", "2001:db8:ffff::101")])
def test_a_closed_udp_port_is_told_to_the_spoofed_socket(lab, family, source):
    assert refused(lab, family, source, rl.PATIENCE)


UNREACHABLES = {"ipv4": ("Icmp", "{}DestUnreachs"), "ipv6": ("6", "Icmp6{}DestUnreachs")}


@pytest.mark.parametrize(("family", "source"), [("ipv4", "198.51.100.102"), ("ipv6", "2001:db8:ffff::102")])
def test_without_the_icmp_rule_it_is_not(whole, family, source):
    protocol, command = ("icmp", "-4") if family == "ipv4" else ("ipv6-icmp", "-6")
    group, name = UNREACHABLES[family]
    whole["a"].run(["ip", command, "rule", "del", "priority", "1100", "ipproto", protocol])
    sent, received = (rl.snmp(whole[host], group, name.format(way)) for host, way in (("b", "Out"), ("a", "In")))
    assert not refused(whole, family, source, 0.5)
    assert rl.snmp(whole["b"], group, name.format("Out")) == sent + 1
    assert rl.snmp(whole["a"], group, name.format("In")) == received
