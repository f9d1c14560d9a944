# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A client's old connection through one proxy and a new one through another have the same port towards a backend.

That happens after a proxy has joined: old connections keep their ports, which may now be in the slice of the new proxy.
"""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.support import deployment
from tests.support.addresses import AF, address_of
from tests.support.deployment import PROXIES, Deployment, by_strategy, echo_servers
from tests.support.forwarding import Forwarder, make_config
from tests.support.routing import PORT, watch
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", *PROXIES, "b"]
STRATEGIES = ["mark", "address", "fwmark_accept"]
LISTEN = 7000


@pytest.fixture(scope="module")
def lab(lab):
    with echo_servers(lab, ["b"]):
        yield lab


@pytest.fixture(scope="module")
def deployed(lab, request, tmp_path_factory):
    strategy = request.param
    variables = by_strategy(lab, strategy, ["b"])
    protocols = ["tcp"] if strategy == "fwmark_accept" else ["tcp", "udp"]
    services = [deployment.service(protocol, "b") for protocol in protocols]
    fleet = Deployment(lab, tmp_path_factory.mktemp(strategy), services, variables)
    fleet.backends = ["b"]
    fleet.strategy = strategy
    fleet.apply()
    bound = [
        lab.servers.serve(lab["b"], "udp", address)
        for address in sorted({fleet.target(proxy, "b", family) for proxy in PROXIES for family in AF})
    ]
    yield fleet
    for sock in bound:
        lab.servers.stop_serving(sock)
    fleet.remove()


def document(fleet, proxy: str, **options) -> dict:
    """The config of a proxy with one service that has one backend."""
    patient = {"connect_timeout": PATIENCE, "connect_deadline": PATIENCE} if options.get("protocol") != "udp" else {}
    service = {**patient, "health": {"enabled": False}, **options}
    service |= {"name": "web", "listen": [{"address": address, "port": LISTEN} for address in ("0.0.0.0", "::")]}
    addresses = {family: fleet.target(proxy, "b", family) for family in AF}
    number = fleet.lab[proxy].spec.number
    return make_config({**service, "backends": [{"name": "b", **addresses, "port": PORT}]}, proxy_id=number)


def connect(lab, proxy: str, family: str, port: int = 0, kind: int = socket.SOCK_STREAM) -> socket.socket:
    with lab["client"].inside():
        sock = socket.socket(AF[family], kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(PATIENCE)
    sock.bind(("", port))
    sock.connect((address_of(lab[proxy], family), LISTEN))
    return sock


def echoes(sock: socket.socket) -> bool:
    sock.sendall(b"x")
    return sock.recv(100) == b"b"


def counted(forwarder: Forwarder) -> dict[str, int]:
    (service,) = forwarder.status()["services"]
    return {name: service[name] for name in ("source_kept", "source_any", "source_port_silent") if service[name]}


def challenges(lab) -> int:
    """How many SYNs b has received for established connections, but for those that the kernel of a2 repeated."""
    return _netstat(lab["b"], "TCPSYNChallenge") - _netstat(lab["a2"], "TCPSynRetrans")


def _netstat(host, name: str) -> int:
    rows = [row.split() for row in host.run(["cat", "/proc/net/netstat"]).stdout.splitlines()]
    names, values = (row for row in rows if row[0] == "TcpExt:")
    return int(dict(zip(names, values))[name])


# With strategy address, each proxy has an address of the backend to itself.
OUTCOMES = {
    "mark": {"source_any": 1, "source_port_silent": 1},
    "address": {"source_kept": 1},
    "fwmark_accept": {"source_any": 1, "source_port_silent": 1},
}


@pytest.mark.parametrize("deployed", STRATEGIES, indirect=True)
def test_a_port_that_another_proxys_connection_has_is_replaced_at_once(lab, deployed, family):
    port = 30001 if family == "ipv4" else 30002
    before = challenges(lab)
    with contextlib.ExitStack() as stack:
        forwarders = {
            proxy: stack.enter_context(Forwarder(lab, document(deployed, proxy, source_port="keep"), host=proxy))
            for proxy in PROXIES
        }
        old = stack.enter_context(connect(lab, "a", family, port))
        assert echoes(old)
        new = stack.enter_context(connect(lab, "a2", family, port))
        assert echoes(new)
        assert echoes(old)
        expected = OUTCOMES[deployed.strategy]
        assert counted(forwarders["a2"]) == expected
        assert counted(forwarders["a"]) == {"source_kept": 1}
        assert challenges(lab) - before == expected.get("source_port_silent", 0)
        (backend,) = forwarders["a2"].status()["services"][0]["backends"]
        assert backend["failed_timeout"] == 0, "the backend is not blamed"


@pytest.mark.parametrize("deployed", ["mark"], indirect=True)
def test_without_another_port_the_connect_times_out(lab, deployed, family):
    port = 30003 if family == "ipv4" else 30004
    options = {"source_port": "keep", "connect_timeout": 1.5}
    watch(lab["a2"], "same", "output priority 0", f"tcp dport {PORT} tcp sport != {port} drop")
    try:
        with Forwarder(lab, document(deployed, "a", **options)), connect(lab, "a", family, port) as old:
            assert echoes(old)
            with Forwarder(lab, document(deployed, "a2", **options), host="a2") as second:
                with pytest.raises(ConnectionResetError), connect(lab, "a2", family, port) as new:
                    echoes(new)
                (backend,) = second.status()["services"][0]["backends"]
                assert backend["failed_timeout"] == 1
            assert echoes(old)
    finally:
        lab["a2"].run(["nft", "delete", "table", "inet", "same"])


# The datagrams that arrive at the client's sockets: that of the old session, and that of the new one.
ANSWERS = {"mark": ([b"b", b"b"], []), "address": ([b"b"], [b"b"])}


@pytest.mark.parametrize("deployed", ANSWERS, indirect=True)
def test_a_udp_session_that_has_the_port_of_another_proxys_session_gets_no_replies(lab, deployed, family):
    """A limit of kept ports. Other sessions share ports that no other proxy prefers: the next test."""
    port = 30005 if family == "ipv4" else 30006
    options = {"protocol": "udp", "source_port": "keep"}
    with contextlib.ExitStack() as stack:
        for proxy in PROXIES:
            stack.enter_context(Forwarder(lab, document(deployed, proxy, **options), host=proxy))
        old = stack.enter_context(connect(lab, "a", family, port, socket.SOCK_DGRAM))
        assert echoes(old)
        new = stack.enter_context(connect(lab, "a2", family, port, socket.SOCK_DGRAM))
        new.sendall(b"x")
        expected = ANSWERS[deployed.strategy]
        sockets = (old, new)
        for sock in sockets:
            sock.setblocking(False)
        answers: tuple[list, list] = ([b"b"], [])

        def arrived() -> bool:
            for sock, found in zip(sockets, answers):
                with contextlib.suppress(BlockingIOError):
                    found.append(sock.recv(100))
            return answers == expected

        eventually(arrived)


@pytest.mark.parametrize("deployed", ["mark"], indirect=True)
def test_udp_sessions_of_two_proxies_have_different_ports_without_slices(lab, deployed, family):
    with contextlib.ExitStack() as stack:
        for proxy in PROXIES:
            forwarder = stack.enter_context(Forwarder(lab, document(deployed, proxy, protocol="udp"), host=proxy))
            clients = [stack.enter_context(connect(lab, proxy, family, 0, socket.SOCK_DGRAM)) for _number in range(12)]
            assert all(map(echoes, clients))
            ports = {session["source_port"] for session in forwarder.ask("sessions", limit=20)["sessions"]}
            assert len(ports) == len(clients), "sessions of one client with one backend"
            assert {port % 256 for port in ports} == {lab[proxy].spec.number}


def echoed(socks: list[socket.socket]) -> int:
    """How many of these connections are alive."""
    for sock in socks:
        sock.sendall(b"x")
    return sum(sock.recv(100) == b"b" for sock in socks)


@pytest.mark.parametrize("deployed", ["mark"], indirect=True)
@pytest.mark.parametrize(("family", "first", "old", "new"), [
    ("ipv4", 46000, 500, 200),
    ("ipv6", 48000, 500, 200),
    pytest.param("ipv4", 34000, 5000, 2000, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_proxy_joins_while_one_client_has_thousands_of_connections(
    lab, deployed, family, first, old, new, many_files
):
    """Proxy a has no slice first, but all ports of its kernel; then each proxy has half of them."""
    half = old * 6 // 5  # 5 of 12 ports are in use
    slices = {"a": (first, first + half - 1), "a2": (first + half, first + 2 * half - 1)}
    for proxy in PROXIES:
        lab[proxy].sysctl("net.ipv4.ip_local_port_range", f"{first} {first + 2 * half - 1}")
    configs = {proxy: document(deployed, proxy) for proxy in PROXIES}
    with contextlib.ExitStack() as stack:
        forwarder = stack.enter_context(Forwarder(lab, configs["a"]))
        connections = [stack.enter_context(connect(lab, "a", family)) for _number in range(old)]
        assert echoed(connections) == old
        for proxy, (low, high) in slices.items():
            configs[proxy]["source_ports"] = {"first": low, "last": high}
        forwarder.configure(configs["a"])
        assert forwarder.reload().returncode == 0, forwarder.show()
        joined = stack.enter_context(Forwarder(lab, configs["a2"], host="a2"))
        before = challenges(lab)
        more = [stack.enter_context(connect(lab, "a2", family)) for _number in range(new)]
        assert echoed(more) == new
        assert echoed(connections) == old
        collisions = challenges(lab) - before
        assert collisions > 0
        assert counted(joined) == {"source_any": new, "source_port_silent": collisions}
        (backend,) = joined.status()["services"][0]["backends"]
        assert (backend["connections"], backend["failed_timeout"]) == (new, 0)
