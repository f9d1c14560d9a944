# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clients a service refuses, how that is counted, and that a flood leaves room in conntrack."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from tests.kernel.datapath.support import BACKENDS, PORT, Client
from tests.kernel.forwarder.sessions import each_once
from tests.support import udp
from tests.support.addresses import AF
from tests.support.routing import TRANSPARENT
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", *BACKENDS]
WITHIN = {"ipv4": ("198.18.128.5/32", "198.18.128.0/25"), "ipv6": ("2001:db8:2:8000::5", "2001:db8:2:8000::/121")}


@each_once
def test_lists(lab, proxy, servers, protocol, family):
    one, many = WITHIN[family]
    other = WITHIN["ipv6" if family == "ipv4" else "ipv4"][1]
    client = Client(lab, protocol, family)
    for allow, deny, refused in [
        ((), (one, other), [5]),
        ((many, one), (), [200]),
        ((many, other), (one,), [5, 200]),
        ((other,), (), [4, 5, 200]),
        (("0.0.0.0/0", "::/0"), (), []),
    ]:
        proxy.serve(proxy.service(protocol, family, allow=allow, deny=deny))
        assert [number for number in (4, 5, 200) if client.is_refused(client.source(number))] == refused
        assert proxy.refused().get("denied", 0) >= len(refused)
        proxy.serve()


@each_once
def test_connections_of_a_client_and_of_a_service(lab, proxy, servers, protocol, family):
    """Of IPv6, the addresses of a /64 are one client."""
    client = Client(lab, protocol, family)
    own, other = None, client.source(7)
    service = proxy.service(protocol, family, connections_per_client=2)
    proxy.serve(service)
    sessions = [client.session(own), client.session(own), client.session(other)]
    assert client.is_refused(own)
    second = client.source(8)
    sessions.append(client.session(second))
    assert client.is_refused(client.source(9)) == (family == "ipv6")
    for session in sessions:
        session.go_on()
    assert proxy.refused()["limited"] >= 1
    proxy.forget()
    eventually(lambda: not client.is_refused(own))
    # Those of all clients together.
    proxy.serve()
    proxy.forget()
    proxy.serve(dataclasses.replace(service, connections=3, connections_per_client=0))
    sessions = [client.session(client.source(number)) for number in (1, 2, 3)]
    assert client.is_refused(own)
    for session in sessions:
        session.end()
    proxy.forget()
    eventually(lambda: not client.is_refused(own))


@each_once
def test_rate_of_a_client(lab, proxy, servers, protocol, family):
    client = Client(lab, protocol, family)
    proxy.serve(proxy.service(protocol, family, rate_per_client=1_000_000))
    assert not client.is_refused()
    proxy.serve()
    proxy.serve(proxy.service(protocol, family, rate_per_client=3))
    sessions = [client.session() for _number in range(3)]
    assert client.is_refused()
    assert not client.is_refused(client.source(3)), "another client"
    for session in sessions:
        session.go_on()
    assert proxy.refused() == {"limited": pytest.approx(1, abs=1)}
    eventually(lambda: not client.is_refused())


def test_a_flood_leaves_room_in_conntrack(lab, proxy, servers, protocol, family):
    """With 6,400 entries: 400 new connections at once, then 50 a second; of each service three quarters of that."""
    count, ports = 500, range(PORT, PORT + 4)
    services = [proxy.service(protocol, family, port=port) for port in ports]
    for entries, most in ((6400, 700), (1 << 20, 4 * count)):
        proxy.serve(*services, entries=entries)
        flood(lab, protocol, family, count, PORT)
        assert not Client(lab, protocol, family, PORT + 1).is_refused(), "another service"
        assert (proxy.refused().get("flood", 0) > 100) == (entries == 6400)
        for port in ports[1:]:
            flood(lab, protocol, family, count, port)
        held = len(proxy.host.run(["conntrack", "-L", "-f", family, "-p", protocol]).stdout.splitlines())
        assert held <= most + 1
        dropped = proxy.refused().get("flood", 0) + proxy.dropped().get("flood", 0)
        assert held + dropped == pytest.approx(4 * count, abs=count / 10)
        proxy.serve()
        proxy.forget()


def flood(lab, protocol, family, count, port):
    """One packet each from many addresses."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    for number in range(count):
        with lab["client"].inside():
            sock = socket.socket(AF[family], kind)
        with sock:
            sock.setsockopt(*TRANSPARENT[family], 1)
            sock.setblocking(False)
            sock.bind((Client(lab, protocol, family).source(number + 1), 0))
            sock.connect_ex((getattr(lab["a"], family), port))
            if protocol == "udp":
                sock.send(udp.QUESTION)
