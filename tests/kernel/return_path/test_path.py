# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Local delivery and return path together: a spoofed exchange works, and needs every part."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from tests.support.addresses import AF, address_of
from tests.support.routing import PORT, TRANSPARENT, counters, handshake, make_whole, snmp
from tests.support.waiting import PATIENCE

HOSTS = ["client", "router", "a", "b"]

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
CLOSED_PORT = 4


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    make_whole(lab)
    return lab


@pytest.fixture
def whole(lab):
    yield lab
    make_whole(lab)


def test_a_spoofed_handshake_succeeds(lab, family):
    before = counters(lab["b"], "l4proxy_return_path")
    assert handshake(lab["a"], SOURCES[family], address_of(lab["b"], family)) == "established"
    after = counters(lab["b"], "l4proxy_return_path")
    assert after["save_11"] == before["save_11"] + 1, "the mark is saved once in a connection's life"
    assert after["guard_11"] == before["guard_11"]


def test_direct_clients_are_not_affected(lab, family):
    before = counters(lab["b"], "l4proxy_return_path")
    assert handshake(lab["client"], address_of(lab["client"], family), address_of(lab["b"], family)) == "established"
    assert counters(lab["b"], "l4proxy_return_path") == before


WITHOUT = [
    ("a", "local route", "ip {f} route del local default dev lo table 20100"),
    ("a", "from rule", "ip {f} rule del priority 1100 from {b} ipproto tcp lookup 20100"),
    ("b", "fwmark rule", "ip {f} rule del priority 1100 fwmark 11/255 lookup 20111"),
    ("b", "return route", "ip {f} route flush table 20111"),
    ("b", "marks", "nft delete table inet l4proxy_return_path"),
]


@pytest.mark.parametrize(("host", "part", "command"), WITHOUT, ids=[part for _host, part, _command in WITHOUT])
def test_a_spoofed_handshake_fails_without_any_one_part(whole, family, host, part, command):
    target = address_of(whole["b"], family)
    whole[host].run(command.format(f="-4" if family == "ipv4" else "-6", b=target).split())
    before = snmp(whole["b"], "Tcp", "InSegs")
    assert handshake(whole["a"], SOURCES[family], target) == "silent"
    assert snmp(whole["b"], "Tcp", "InSegs") > before, "the SYN arrived: it is the way back that is missing"


def refused(lab, family: str, source: str, wait: float) -> bool:
    """Whether a datagram to a closed port causes an error on the spoofed socket within ``wait`` seconds."""
    with lab["a"].inside():
        sender = socket.socket(AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(*TRANSPARENT[family], 1)
        sender.bind((source, 0))
        sender.connect((address_of(lab["b"], family), CLOSED_PORT))
        sender.send(b"x")
        select.select([sender], [], [], wait)
        return sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


# A different source for each datagram: the kernel limits ICMP errors per destination.
@pytest.mark.parametrize(("family", "source"), [("ipv4", "198.51.100.101"), ("ipv6", "2001:db8:ffff::101")])
def test_an_icmp_error_reaches_the_spoofed_udp_socket(lab, family, source):
    assert refused(lab, family, source, PATIENCE)


UNREACHABLES = {"ipv4": ("Icmp", "{}DestUnreachs"), "ipv6": ("6", "Icmp6{}DestUnreachs")}


@pytest.mark.parametrize(("family", "source"), [("ipv4", "198.51.100.102"), ("ipv6", "2001:db8:ffff::102")])
def test_without_the_icmp_rule_the_icmp_error_is_lost(whole, family, source):
    protocol, command = ("icmp", "-4") if family == "ipv4" else ("ipv6-icmp", "-6")
    group, name = UNREACHABLES[family]
    whole["a"].run(["ip", command, "rule", "del", "priority", "1100", "ipproto", protocol])
    sent, received = (snmp(whole[host], group, name.format(way)) for host, way in (("b", "Out"), ("a", "In")))
    assert not refused(whole, family, source, 0.5)
    assert snmp(whole["b"], group, name.format("Out")) == sent + 1
    assert snmp(whole["a"], group, name.format("In")) == received
