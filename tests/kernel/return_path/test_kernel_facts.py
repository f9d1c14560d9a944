# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel behaviour on which the design rests, each with its negative control."""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager

import pytest

from tests.support.addresses import AF, BITS, address_of
from tests.support.routing import PORT, TRANSPARENT, counters, handshake, listing, make_whole
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "b"]

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
# Unused addresses of the backend's own subnet, and a second address of the backend.
NEAR = {"ipv4": "198.18.0.77", "ipv6": "2001:db8::77"}
SECOND = {"ipv4": "198.18.0.33", "ipv6": "2001:db8::33"}
WILDCARD = {"ipv4": "0.0.0.0", "ipv6": "::"}
UDP_PORT = 5300
# More than one packet of the links' 1500 bytes.
LARGE = 3000
COMMAND = {"ipv4": "-4", "ipv6": "-6"}


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    add_second_addresses(lab["b"])
    make_whole(lab)
    return lab


def add_second_addresses(b) -> None:
    """Deprecated in IPv6, as the engine adds them; else the kernel would prefer the newest address as a source."""
    for family, more in (("ipv4", []), ("ipv6", ["nodad", "preferred_lft", "0"])):
        ip(b, family, "addr", "replace", f"{SECOND[family]}/{BITS[family]}", "dev", "eth0", *more)


@pytest.fixture
def whole(lab):
    yield lab
    make_whole(lab)


def ip(host, family: str, *words: str) -> None:
    host.run(["ip", COMMAND[family], *words])


# --- clients


def test_a_client_in_the_backends_own_subnet_works(lab, family):
    assert handshake(lab["a"], NEAR[family], address_of(lab["b"], family)) == "established"


def test_a_client_in_the_backends_own_subnet_needs_the_return_path(whole, family):
    """Without it, b sends ARP requests for the client itself."""
    ip(whole["b"], family, "rule", "del", "priority", "1100", "fwmark", "11/255", "lookup", "20111")
    assert handshake(whole["a"], NEAR[family], address_of(whole["b"], family)) == "silent"


def test_a_client_that_is_the_backend_itself_does_not_work(lab, family):
    """b answers to itself, or drops the packet as a martian. The forwarder refuses such clients."""
    b = address_of(lab["b"], family)
    assert handshake(lab["a"], b, b) != "established"


# --- a link flap, and a reply without its mark


def test_local_delivery_survives_a_link_flap(whole, family):
    a, b = whole["a"], whole["b"]
    before = [line for line in listing(a) if "20100" in line]
    a.run(["ip", "link", "set", "eth0", "down"])
    a.run(["ip", "link", "set", "eth0", "up"])
    a.run(["ip", "-6", "addr", "replace", f"{a.ipv6}/64", "dev", "eth0", "nodad"])
    assert [line for line in listing(a) if "20100" in line] == before
    eventually(lambda: handshake(a, SOURCES[family], address_of(b, family)) == "established")


def test_the_return_route_does_not_survive_a_link_flap(whole):
    """Routes disappear with their link, which is why backends need a keeper."""
    b = whole["b"]
    b.run(["ip", "link", "set", "eth0", "down"])
    b.run(["ip", "link", "set", "eth0", "up"])
    routes = b.run(["ip", "route", "show", "table", "20111"], check=False).stdout
    b.run(["ip", "route", "replace", "default", "via", "198.18.0.1"])
    ip(b, "ipv6", "addr", "replace", f"{b.ipv6}/64", "dev", "eth0", "nodad")
    add_second_addresses(b)
    ip(b, "ipv6", "route", "replace", "default", "via", "2001:db8::1")
    assert routes == ""


def test_a_mark_restored_in_a_filter_chain_comes_too_late(whole, family):
    """In a chain of type filter the packet is not routed again."""
    b = whole["b"]
    ruleset = b.run(["nft", "list", "table", "inet", "l4proxy_return_path"]).stdout
    assert "type route hook output" in ruleset
    filtering = ruleset.replace("type route hook output", "type filter hook output")
    b.run(["nft", "-f", "-"], input=f"delete table inet l4proxy_return_path\n{filtering}")
    assert handshake(whole["a"], SOURCES[family], address_of(b, family)) == "silent"
    assert counters(b, "l4proxy_return_path")["guard_11"] > 0, "marked, and on the wrong way all the same"


# --- UDP


@contextmanager
def server(lab, family: str, address: str):
    """A UDP socket on b."""
    with lab["b"].inside():
        listener = socket.socket(AF[family], socket.SOCK_DGRAM)
    with listener:
        listener.bind((address, UDP_PORT))
        yield listener


def asked(lab, family: str, target: str, listener: socket.socket, size: int = 4, wait: float = PATIENCE) -> bool:
    """Whether a spoofed datagram from a is answered with ``size`` bytes within ``wait`` seconds."""
    with lab["a"].inside():
        sender = socket.socket(AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(*TRANSPARENT[family], 1)
        sender.bind((SOURCES[family], 0))
        sender.connect((target, UDP_PORT))
        sender.send(b"ask")
        assert select.select([listener], [], [], PATIENCE)[0], "the question did not arrive"
        listener.sendto(b"x" * size, listener.recvfrom(16)[1])
        return bool(select.select([sender], [], [], wait)[0]) and len(sender.recv(65536)) == size


def test_a_wildcard_udp_server_answers_from_its_first_address(lab, family):
    with server(lab, family, WILDCARD[family]) as listener:
        assert asked(lab, family, address_of(lab["b"], family), listener)


def test_a_wildcard_udp_server_answers_from_the_wrong_address_if_asked_at_its_second(lab, family):
    """The connected socket on a accepts no answer from another address."""
    with server(lab, family, WILDCARD[family]) as listener:
        assert not asked(lab, family, SECOND[family], listener, wait=0.5)
    # Local delivery has rules for b's first address only.
    rule = ["priority", "1100", "from", SECOND[family], "ipproto", "udp", "lookup", "20100"]
    ip(lab["a"], family, "rule", "add", *rule)
    try:
        with server(lab, family, SECOND[family]) as listener:
            assert asked(lab, family, SECOND[family], listener), "the control: a server on that very address"
    finally:
        ip(lab["a"], family, "rule", "del", *rule)


def test_a_fragmented_answer_arrives(lab, family):
    with server(lab, family, WILDCARD[family]) as listener:
        assert asked(lab, family, address_of(lab["b"], family), listener, LARGE)


def test_with_a_rule_by_source_port_a_fragmented_answer_is_lost(whole, family):
    """Only the first fragment has a port. A small answer arrives."""
    a, b = whole["a"], address_of(whole["b"], family)
    ip(a, family, "rule", "del", "priority", "1100", "from", b, "ipproto", "udp")
    by_port = ["priority", "1100", "from", b, "ipproto", "udp", "sport", str(UDP_PORT)]
    ip(a, family, "rule", "add", *by_port, "lookup", "20100")
    try:
        with server(whole, family, WILDCARD[family]) as listener:
            assert asked(whole, family, b, listener)
            assert not asked(whole, family, b, listener, LARGE, wait=0.5)
    finally:
        ip(a, family, "rule", "del", *by_port)
