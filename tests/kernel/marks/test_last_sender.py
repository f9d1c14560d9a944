# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backend of a service that the kernel forwards: replies go to the last sender, and not to a dead proxy.

The proxies only route here: the virtual address is one of b, and the router chooses a proxy. Ports 8080, 8090 and 9000
are in ``last_sender``; 8081 and 8091 are those of services with the forwarder. b publishes port 9000 of its container.
"""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry

from tests.kernel.marks.test_containers import PUBLISHED, add_box
from tests.lab import wiring
from tests.support.addresses import AF, BITS, FAMILIES, address_of
from tests.support.deployment import KINDS, echo_servers
from tests.support.doctor import doctor_facts
from tests.support.keeping import keeping
from tests.support.marking import NFT, VARIANTS, marked
from tests.support.routing import PORT, return_path
from tests.support.takeover import HOST, VIRTUAL, serve, streaming
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

FORWARDERS = 8081
# Of long streams: one follows its last sender, the other does not.
STREAMS = (8090, 8091)
MOVING = (PORT, PUBLISHED, STREAMS[0])
PROTOCOLS = ("tcp", "udp")
SYSCTLS = (("net.ipv4.tcp_fwmark_accept", "1"),)
SOURCE_PORTS = itertools.count(42000)


class Proxies:
    """Which proxy the router sends packets for b and its virtual address to, and the links of the proxies."""

    def __init__(self, lab):
        self._lab = lab

    def move(self, name: str) -> None:
        for family, (option, length) in HOST.items():
            for target in (VIRTUAL[family], address_of(self._lab["b"], family)):
                route = ["route", "replace", f"{target}/{length}", "via", address_of(self._lab[name], family)]
                self._lab["router"].run(["ip", option, *route])

    def cut(self, name: str, state: str = "down") -> None:
        port = self._lab[name].on("inside").port
        wiring.run(["ip", "-n", self._lab.switch, "link", "set", port, state])

    def plug(self, name: str) -> None:
        self.cut(name, "up")


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
        for family, (option, _length) in HOST.items():
            # Never the source of a server on the wildcard address.
            more = ["nodad", "preferred_lft", "0"] if family == "ipv6" else []
            lab["b"].run(["ip", option, "addr", "add", f"{VIRTUAL[family]}/{BITS[family]}", "dev", "eth0", *more])
        serve(lab, ["b"], STREAMS)
        lab.proxies = Proxies(lab)
        yield lab


def document(lab) -> dict:
    """The return path with the ports of MOVING, as the role derives it."""
    data = return_path(lab["a"], lab["a2"], sysctls=SYSCTLS)
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


# iptables-legacy gets the same rules as iptables-nft.
@pytest.fixture(params=VARIANTS[:2], ids=str)
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

    def close(self) -> None:
        self.socket.close()

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
        each.close()


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


def test_a_connection_of_a_container_follows_its_last_sender(lab, b):
    """Conntrack knows the port that b publishes. The rules for ports do not, so the table is that of the forwarder."""
    for family in FAMILIES:
        lab.proxies.move("a")
        with lab["client"].inside():
            client = socket.socket(AF[family])
        with client:
            client.settimeout(PATIENCE)
            client.bind((address_of(lab["client"], family), next(SOURCE_PORTS)))
            client.connect((address_of(lab["b"], family), PUBLISHED))
            server, _peer = lab.tcp[family].accept()
            with server:
                for now in ("a2", "a"):
                    lab.proxies.move(now)
                    client.send(b"?")
                    assert server.recv(100) == b"?"
                    mark = f"mark={lab[now].spec.number} "
                    assert mark in b.run(f"conntrack -L -p tcp -f {family} --dport {PUBLISHED}")
                    server.send(b"!")
                    assert client.recv(100) == b"!"


def hops(lab, host: str) -> list[str]:
    """The next hops of the table that may move, and of the one of the forwarder, of each family."""
    number, found = lab[host].spec.number, []
    for option in ("-4", "-6"):
        for table in (20700 + number, 20100 + number):
            listed = lab["b"].run(["ip", option, "route", "show", "table", table], check=False).stdout
            found += [line.split()[2] for line in listed.splitlines()]
    return found


def vias(lab, moving: str, staying: str) -> list[str]:
    return [address_of(lab[name], family) for family in FAMILIES for name in (moving, staying)]


@contextlib.contextmanager
def kept(lab, directory):
    """A keeper on b, with all packets through proxy a."""
    lab.proxies.move("a")
    with marked(lab, "b", NFT) as host, keeping(lab, "b", directory, document(lab)) as keeper:
        eventually(lambda: hops(lab, "a") == vias(lab, "a", "a"), interval=0.1)
        yield host, keeper


def silent(keeper) -> set[str]:
    return {each["proxy"] for each in keeper.state["silent"]}


def test_replies_leave_a_dead_proxy_and_return_but_only_on_the_ports_of_kernel_services(lab, tmp_path):
    with (
        kept(lab, tmp_path) as (host, keeper),
        streaming(lab, dict(zip(STREAMS, ({"down": 2, "echo": 2}, {"down": 2})))) as every,
    ):
        moving, staying = every[:2], every[2:]
        lab.proxies.cut("a")
        lab.proxies.move("a2")
        for streams in every:
            streams.mark()
        eventually(lambda: hops(lab, "a") == vias(lab, "a2", "a"), explain=lambda: keeper.log, interval=0.1)
        for streams in moving:
            streams.all_move()
        assert [streams.moved() for streams in staying] == [{"down": 0}] * 2
        sentence = "proxy a does not answer at 198.18.0.11 and 2001:db8::11: its replies leave through 198.18.0.12 and"
        assert keeper.log.count(sentence) == 1
        facts = doctor_facts(lab["b"], lab.engine, keeper.documents, keeper=str(keeper.runtime / "state.json"))
        problems = {found.id for found in registry.examine(facts) if found.status in ("fail", "warn")}
        assert problems & {"lookup", "routes", "rules", "marks", "proxy_silent"} == {"proxy_silent"}
        # Neither a run of the module nor a keeper that knows nothing yet moves the routes back.
        assert not host.apply(document(lab)).changed
        keeper.stop()
        keeper.start()
        eventually(lambda: silent(keeper) == {"a"})
        assert sentence in keeper.log
        assert hops(lab, "a") == vias(lab, "a2", "a")
        assert keeper.repairs == 0
        lab.proxies.plug("a")
        eventually(lambda: hops(lab, "a") == vias(lab, "a", "a"), explain=lambda: keeper.log, interval=0.1)
        eventually(lambda: not silent(keeper))


def test_no_route_moves_because_of_this_hosts_link_or_a_new_mac(lab, tmp_path):
    with kept(lab, tmp_path) as (_host, keeper), conversations(lab, PORT) as moving:
        lab.proxies.cut("b")
        eventually(lambda: silent(keeper) == {"a", "a2"})
        assert "nobody else could get its replies" in keeper.log
        lab.proxies.plug("b")
        lab["a"].run(["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"])
        lab["router"].run(["ip", "neigh", "flush", "all"])
        try:
            assert proxies_of(moving) == {"a"}
            eventually(lambda: not silent(keeper))
            assert proxies_of(moving) == {"a"}
            assert hops(lab, "a") == vias(lab, "a", "a")
            assert "its replies leave through" not in keeper.log
        finally:
            lab["a"].run(["ip", "link", "set", "eth0", "address", lab["a"].mac])
            for name in ("router", "b"):
                lab[name].run(["ip", "neigh", "flush", "all"])


def test_old_connections_follow_their_last_sender_after_their_service_has_changed_its_datapath(lab, tmp_path):
    """Until they end; what no connection needs any more leaves when the drain has settled."""
    after = return_path(lab["a"], lab["a2"], sysctls=SYSCTLS)
    with marked(lab, "b", NFT) as b:

        def ports(now: float) -> set[tuple[str, ...]]:
            outcome = b.apply(after, drain=60.0, now=now, directory=str(tmp_path))
            return {mark.last_sender for mark in outcome.after.marks}

        b.apply(document(lab), directory=str(tmp_path))
        with conversations(lab, PORT) as moving:
            assert len(ports(1000.0).pop()) == 2 * len(MOVING)
            lab.proxies.move("a2")
            assert proxies_of(moving) == {"a2"}
            assert ports(1050.0) == {("tcp/8080", "udp/8080")}
            lab.proxies.move("a")
            assert proxies_of(moving) == {"a"}
        b.run("conntrack -F")
        assert ports(1055.0) == {()}
        assert b.run("ip rule show priority 1099") == b.run("ip -6 rule show priority 1099") == ""


@pytest.mark.parametrize("conntrack", [True, False], ids=["mark", "fwmark_accept"])
def test_the_guard_lets_replies_leave_through_any_proxy_of_a_port(lab, conntrack):
    """The routes of both tables move here, those of the forwarder's too, whose replies are then dropped."""
    data = document(lab)
    if not conntrack:
        data["marks"] = [{**mark, "conntrack": False} for mark in data["marks"]]
        data["sysctls"] += [{"name": f"net.{family}.fwmark_reflect", "value": "1"} for family in FAMILIES]
    lab.proxies.move("a")
    with marked(lab, "b", NFT) as b:
        b.apply(data)
        for family, (option, _length) in HOST.items():
            with (
                contextlib.closing(Conversation(lab, family, "tcp", PORT)) as moving,
                contextlib.closing(Conversation(lab, family, "tcp", FORWARDERS)) as staying,
            ):
                for table in (20711, 20111):
                    b.run(
                        f"ip {option} route replace default via {address_of(lab['a2'], family)} table {table} proto 202"
                    )
                moving.speak()
                staying.socket.settimeout(0.3)
                with pytest.raises(socket.timeout):
                    staying.speak()
