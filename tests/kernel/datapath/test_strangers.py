# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which the product has switched forwarding on forwards its services, and nothing else."""

from __future__ import annotations

import socket

import pytest

from tests.kernel.datapath.support import BACKEND, BACKENDS, PORT, Client
from tests.support import tcp, udp
from tests.support.addresses import AF, BITS, FAMILIES
from tests.support.routing import handshake
from tests.support.waiting import in_threads

HOSTS = ["client", "router", "a", *BACKENDS]
OTHER = 9001


@pytest.fixture(scope="module", autouse=True)
def _no_local_delivery(lab, proxy):
    """Its rules take whatever backends send by TCP and UDP."""
    lab.engine.remove(proxy.host, "local_delivery")


@pytest.fixture
def other_servers(lab):
    """On backend b and on the client: a port that is no service's; the router sends packets for b to a."""
    for flag, family in (("-4", "ipv4"), ("-6", "ipv6")):
        route = [f"{getattr(lab['b'], family)}/{BITS[family]}", "via", getattr(lab["a"], family)]
        lab["router"].run(["ip", flag, "route", "add", *route])
    listeners = [tcp.listen(lab, host, OTHER, family) for host in ("b", "client") for family in FAMILIES]
    with udp.serving(lab, OTHER, ["b", "client"]):
        yield
    for listener in listeners:
        listener.close()
    for flag, family in (("-4", "ipv4"), ("-6", "ipv6")):
        lab["router"].run(["ip", flag, "route", "del", f"{getattr(lab['b'], family)}/{BITS[family]}"])


def answered(lab, family):
    """Which of nine kinds of traffic through the proxy are answered."""
    client, b, neighbour = (getattr(lab[name], family) for name in ("client", "b", "c"))
    spoofed = Client(lab, "tcp", family).source(3)

    def connects(host, source, target, source_port=0):
        return handshake(lab[host], source, target, OTHER, source_port) == "established"

    def answers(host, target, size=1):
        with udp.client(lab, target, host=host) as sock:
            return not udp.silent(sock, b"?" * size, (target, OTHER))

    def pings(host, target):
        return lab[host].run(["ping", "-c1", "-W1", target], check=False).returncode == 0

    ways = {
        "client": lambda: connects("client", client, b),
        "spoofed": lambda: connects("client", spoofed, b),
        "backend": lambda: connects("b", b, client),
        "neighbour": lambda: connects("c", neighbour, client),
        "datagram": lambda: answers("client", b),
        "fragments": lambda: answers("client", b, 4000),
        "datagram of a backend": lambda: answers("b", client),
        "ping": lambda: pings("client", b),
        "ping of a backend": lambda: pings("c", client),
    }
    results = in_threads(lambda index: list(ways.values())[index](), len(ways))
    return {way for way, answer in zip(ways, results) if answer}


@pytest.mark.parametrize("protocol", ["tcp"])
def test_only_services_are_forwarded(lab, proxy, servers, protocol, other_servers, family):
    service = proxy.service(protocol, family)
    proxy.serve(service)
    assert len(answered(lab, family)) == 9, "a host that forwarded before"
    other = {"ipv4": "ipv6", "ipv6": "ipv4"}[family]
    proxy.serve(service, strangers=frozenset({other}))
    assert handshake(lab["b"], getattr(lab["b"], family), getattr(lab["client"], family), OTHER) == "established"
    proxy.forget()
    proxy.serve(service, strangers=frozenset({family}))
    assert answered(lab, family) == set()
    assert not Client(lab, protocol, family).is_refused()
    assert proxy.dropped()[f"strangers_{family}"] >= 9
    for command in ("-4", "-6"):
        lab["c"].run(["ip", command, "neigh", "flush", "dev", lab["c"].dev])
    for target in ("a", "d"):  # its own traffic, and that of its neighbours
        assert lab["c"].run(["ping", "-c1", "-W1", getattr(lab[target], family)], check=False).returncode == 0


def test_frames_of_a_bridge_are_dropped_where_br_netfilter_lets_them_pass_the_forward_hook(lab, proxy, family):
    """Its guests are no services. The doctor's check others_forward reports it."""
    call, network = {"ipv4": ("iptables", "192.0.2.{0}/24"), "ipv6": ("ip6tables", "2001:db8:77::{0}/64")}[family]
    proxy.serve(proxy.service("tcp", family), strangers=frozenset({family}))
    proxy.host.run(["ip", "link", "add", "guests", "up", "type", "bridge"])
    try:
        for number, name in enumerate("bc", 1):
            ends = ["guest", "netns", lab.netns_of(name)]
            proxy.host.run(["ip", "link", "add", f"{name}0", "up", "master", "guests", "type", "veth", "peer", *ends])
            lab[name].run(["ip", "link", "set", "guest", "up"])
            nodad = ["nodad"] if family == "ipv6" else []
            lab[name].run(["ip", "address", "add", network.format(number), "dev", "guest", *nodad])
        ping = ["ping", "-c2", "-i0.2", "-W1", network.format(2).partition("/")[0]]
        for passes, status in (("0", 0), ("1", 1)):
            proxy.host.sysctl(f"net.bridge.bridge-nf-call-{call}", passes)
            assert lab["b"].run(ping, check=False).returncode == status
    finally:
        proxy.host.sysctl(f"net.bridge.bridge-nf-call-{call}", "0")
        for name in "bc":
            lab[name].run(["ip", "link", "del", "guest"])
        proxy.host.run(["ip", "link", "del", "guests"])
    assert proxy.dropped()[f"strangers_{family}"] >= 2


@pytest.mark.parametrize("strangers", [True, False])
def test_what_a_served_backend_may_begin(lab, proxy, family, strangers):
    """It could be any packet as the service's address: never a SYN; datagrams to clients' ports, within a bound."""
    backend, target = (getattr(lab[name], family) for name in ("b", "client"))
    names = frozenset({family} if strangers else ())
    services = [proxy.service(protocol, family) for protocol in ("tcp", "udp")]
    proxy.serve(*services, strangers=names)
    with tcp.listen(lab, "client", OTHER, family):
        assert handshake(lab["b"], backend, target, OTHER) == ("silent" if strangers else "established")
        assert handshake(lab["b"], backend, target, OTHER, BACKEND) == "silent"
    assert proxy.dropped()["unasked"] >= 1
    with lab["b"].inside():
        sender = socket.socket(AF[family], socket.SOCK_DGRAM)
    with sender:
        sender.bind((backend, BACKEND))
        with udp.client(lab, target) as high, udp.client(lab, target, 1023) as low:
            for sock in (high, low):
                sock.settimeout(udp.QUIET)
                sender.sendto(b"hello", (target, sock.getsockname()[1]))
            assert high.recvfrom(10)[1][:2] == (getattr(lab["a"], family), PORT)
            with pytest.raises(TimeoutError):
                low.recv(10)
        proxy.serve(*services, strangers=names, entries=1280)  # 80 at once, 10 a second
        for number in range(400):
            sender.sendto(b"hello", (target, 20000 + number))
    assert proxy.dropped()["unasked"] == pytest.approx(320, abs=20)
