# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backend of a service that the kernel forwards: replies go to the last sender, and not to a dead proxy.

The proxies only route here, and the router chooses one of them. Ports 8080 and 9000 are in ``last_sender``;
port 8081 is that of a service with the forwarder. b publishes port 9000 of its container.
"""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest

from tests.kernel.marks.test_containers import PUBLISHED, add_box
from tests.support.addresses import AF, BITS, FAMILIES, address_of
from tests.support.deployment import KINDS, echo_servers
from tests.support.marking import VARIANTS, marked
from tests.support.routing import PORT, return_path
from tests.support.takeover import Virtual
from tests.support.waiting import PATIENCE

HOSTS = ["client", "router", "a", "a2", "b"]

FORWARDERS = 8081
MOVING = (PORT, PUBLISHED)
PROTOCOLS = ("tcp", "udp")
SOURCE_PORTS = itertools.count(42000)
# Seconds: until the replies of a dead proxy leave through another one.
MOVED = 1.0


class Proxies(Virtual):
    """Which proxy the router sends packets for b to."""

    def move(self, name: str) -> None:
        for family in FAMILIES:
            target = f"{address_of(self.lab['b'], family)}/{BITS[family]}"
            route = ["route", "replace", target, "via", address_of(self.lab[name], family)]
            self.lab["router"].run(["ip", "-6" if family == "ipv6" else "-4", *route])


@pytest.fixture(scope="module")
def lab(lab):
    with contextlib.ExitStack() as stack:
        add_box(lab, stack)
        for name in ("a", "a2"):
            for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
                lab[name].sysctl(setting, "1")
            lab[name].sysctl("net.ipv4.conf.all.send_redirects", "0")
            lab[name].sysctl("net.ipv4.conf.eth0.send_redirects", "0")
            # A proxy drops a redirect of the kernel's own for IPv6; there is no setting for it.
            rule = (
                "table ip6 quiet { chain out { type filter hook output priority 0; icmpv6 type nd-redirect drop; }; }"
            )
            lab[name].run(["nft", rule])
        stack.enter_context(echo_servers(lab, ["b"], PROTOCOLS))
        for protocol, family in itertools.product(PROTOCOLS, FAMILIES):
            lab.servers.serve(lab["b"], protocol, "::" if family == "ipv6" else "0.0.0.0", FORWARDERS)
        lab.proxies = Proxies(lab)
        yield lab


def document(lab) -> dict:
    """The return path with the ports of MOVING, as the role derives it."""
    data = return_path(lab["a"], lab["a2"], sysctls=(("net.ipv4.tcp_fwmark_accept", "1"),))
    ports = [f"{protocol}/{port}" for protocol in PROTOCOLS for port in MOVING]
    for mark in data["marks"]:
        mark["last_sender"] = ports
    for host, other in (("a", "a2"), ("a2", "a")):
        number = lab[host].spec.number
        for family in FAMILIES:
            table = {"family": family, "table": 20700 + number}
            hops = {"via": address_of(lab[host], family), "fallback": [address_of(lab[other], family)]}
            data["routes"].append({**table, "dst": "default", **hops})
            data["rules"] += [
                {**table, "priority": 1099, "action": "lookup", "fwmark": number, "fwmask": 255}
                | {"ip_proto": port.partition("/")[0], "sport": port.partition("/")[2]}
                for port in ports
            ]
    return data


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def b(lab, request):
    with marked(lab, "b", request.param) as host:
        host.apply(document(lab))
        yield host


class Conversation:
    """A connection, or a UDP session, of the client with b."""

    def __init__(self, lab, family: str, protocol: str, port: int):
        self._lab, self.protocol, self.source_port = lab, protocol, next(SOURCE_PORTS)
        with lab["client"].inside():
            self.socket = socket.socket(AF[family], KINDS[protocol])
        self.socket.settimeout(PATIENCE)
        self.socket.bind((address_of(lab["client"], family), self.source_port))
        self.socket.connect((address_of(lab["b"], family), port))
        self.speak()

    def speak(self) -> None:
        self.socket.send(b"?")
        assert self.socket.recv(100) == b"b"

    @property
    def proxy(self) -> str:
        """The proxy whose mark the connection has."""
        listed = self._lab["b"].run(["conntrack", "-L", "-p", self.protocol, "--sport", self.source_port]).stdout
        numbers = {f"mark={self._lab[name].spec.number} ": name for name in ("a", "a2")}
        return next((name for text, name in numbers.items() if text in listed), listed)


@contextlib.contextmanager
def conversations(lab, port: int):
    """One through proxy a in each family and protocol."""
    lab.proxies.move("a")
    made = [Conversation(lab, family, protocol, port) for family in FAMILIES for protocol in PROTOCOLS]
    yield made
    for each in made:
        each.socket.close()


def proxies_of(made: list[Conversation]) -> set[str]:
    for each in made:
        each.speak()
    return {each.proxy for each in made}


def test_a_connection_follows_its_last_sender_on_the_ports_of_kernel_services_only(lab, b):
    with conversations(lab, PORT) as moving, conversations(lab, FORWARDERS) as staying:
        for now in ("a2", "a", "a2"):
            lab.proxies.move(now)
            assert (proxies_of(moving), proxies_of(staying)) == ({now}, {"a"})
        # The replies leave by the mark.
        lab.proxies.cut("a")
        try:
            assert proxies_of(moving) == {"a2"}
            for each in staying:
                each.socket.settimeout(0.1)
                with pytest.raises(socket.timeout):
                    each.speak()
        finally:
            lab.proxies.plug("a")


def test_conntrack_forgets_a_connection_that_has_moved(lab, b):
    with conversations(lab, PORT) as moving:
        lab.proxies.move("a2")
        for _again in range(2):
            b.run("conntrack -F")
            proxies_of(moving)  # one reply goes to the first proxy
            assert proxies_of(moving) == {"a2"}
