# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Strategy mark as the roles deploy it: conntrack forgets connections (``conntrack -F``, a short timeout), and foreign
tools use marks too.

Sources are the client's real addresses: leaked packets reach the client, which answers with RST.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import threading
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from tests.support.addresses import AF, address_of
from tests.support.deployment import PROXIES, WILDCARD, Deployment, service, spoofed
from tests.support.marking import VARIANTS, marked
from tests.support.routing import attempt, counters, handshake, local_delivery, watch
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

WORD = {"ipv4": "ip", "ipv6": "ip6"}
PORTS, SERVED = itertools.count(42000), itertools.count(5000)
GREETING, ANSWER = b"hello", b"thank you"
FLUSH = "conntrack -F"
OTHER_NUMBERS = {"mark_mask": 0xFF0000, "table_base": 30000, "priority": 2000}


@pytest.fixture(scope="module")
def lab(lab):
    for proxy in PROXIES:
        lab.engine.apply(lab[proxy], local_delivery(lab["b"]))
    return lab


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def b(lab, request, tmp_path_factory):
    """The backend with the document that the role applies, for TCP and UDP through both proxies."""
    services = [service("tcp", "b"), service("udp", "b", idle_timeout=600)]
    fleet = Deployment(lab, tmp_path_factory.mktemp("fleet"), services, {}, backends=["b"])
    with marked(lab, "b", request.param) as host:
        host.document = return_path(fleet.fleet("b"), "b", mark_engine=request.param.engine)
        fleet.variables = {"b": {"l4proxy_numbers": OTHER_NUMBERS}}
        host.other = return_path(fleet.fleet("b"), "b", mark_engine=request.param.engine)
        host.apply(host.document)
        yield host


@contextlib.contextmanager
def connection(lab, through: str, family: str):
    """(client's socket, server's socket) of a TCP connection from the client's address, through a proxy or direct."""
    with lab["b"].inside():
        listener = socket.create_server((WILDCARD[family], 0), family=AF[family], dualstack_ipv6=False, backlog=1)
    port = listener.getsockname()[1]
    source, target = address_of(lab["client"], family), address_of(lab["b"], family)
    with listener, attempt(lab[through], source, target, port, next(PORTS)) as client:
        assert client.outcome() == "established"
        server, _peer = listener.accept()
        with server:
            for sock in (client.socket, server):
                sock.settimeout(PATIENCE)
            yield client.socket, server


@contextlib.contextmanager
def nothing_leaks(lab, family: str, expected: bool = False):
    """Assert that b sends no packet to the client past the proxies, or some if ``expected``."""
    name = f"leaks_{family}"
    rule = f"{WORD[family]} saddr {address_of(lab['b'], family)} meta l4proto {{ tcp, udp }} counter"
    watch(lab["router"], name, "forward priority 0", rule)
    yield
    assert (counters(lab["router"], name)[name] > 0) == expected
    lab["router"].run(["nft", "delete", "table", "inet", name])


def talk(client: socket.socket, server: socket.socket) -> None:
    """Send data both ways, the server first."""
    server.sendall(GREETING)
    assert client.recv(100) == GREETING
    client.sendall(ANSWER)
    assert server.recv(100) == ANSWER


@pytest.mark.parametrize("through", PROXIES)
def test_a_tcp_connection_survives_a_conntrack_flush(lab, b, family, through):
    with connection(lab, through, family) as (client, server), nothing_leaks(lab, family):
        talk(client, server)
        for _again in range(2):
            b.run(FLUSH)
            talk(client, server)
        number = lab[through].spec.number
        assert f"mark={number} " in b.run("conntrack -L -p tcp -f " + family)


def transfer(b, source: socket.socket, sink: socket.socket, size: int) -> int:
    """Transfer ``size`` bytes while conntrack is flushed repeatedly; return the bytes that arrive."""
    found = []

    def receive() -> None:
        with contextlib.suppress(OSError):
            while part := sink.recv(1 << 16):
                found.append(len(part))

    def send() -> None:
        with contextlib.suppress(OSError):
            source.sendall(bytes(size))
            source.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=target, daemon=True) for target in (receive, send)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        b.run(FLUSH)
        time.sleep(0.02)
    return sum(found)


@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
def test_a_bulk_transfer_survives_repeated_conntrack_flushes(lab, b, family, upload):
    size = 50_000_000
    with connection(lab, "a", family) as (client, server), nothing_leaks(lab, family):
        ends = (client, server) if upload else (server, client)
        assert transfer(b, *ends, size) == size


def test_a_tcp_connection_survives_a_conntrack_timeout(lab, b, family):
    """For a connection that is idle for longer than conntrack keeps it."""
    b.host.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "1")
    try:
        with connection(lab, "a", family) as (client, server), nothing_leaks(lab, family):
            talk(client, server)
            eventually(lambda: f"sport={client.getsockname()[1]}" not in b.run(f"conntrack -L -f {family}"))
            talk(client, server)
    finally:
        b.host.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "432000")


def test_a_direct_connection_survives_a_conntrack_flush(lab, b, family):
    with connection(lab, "client", family) as (client, server):
        for _again in range(2):
            b.run(FLUSH)
            talk(client, server)


def test_without_the_socket_mark_a_flushed_connection_dies_and_leaks(lab, b, family):
    """The negative control."""
    b.host.sysctl("net.ipv4.tcp_fwmark_accept", "0")
    try:
        with connection(lab, "a", family) as (client, server), nothing_leaks(lab, family, expected=True):
            b.run(FLUSH)
            server.sendall(GREETING)
            client.settimeout(1)
            with pytest.raises(OSError, match="timed out"):
                client.recv(1)
    finally:
        b.host.sysctl("net.ipv4.tcp_fwmark_accept", "1")


UDP_TIMEOUTS = ("net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream")


@contextlib.contextmanager
def udp_session(lab, family: str):
    """(client's socket, server's socket, client's address) of a UDP session through a, after one exchange."""
    client, target = address_of(lab["client"], family), address_of(lab["b"], family)
    with lab["b"].inside():
        server = socket.socket(AF[family], socket.SOCK_DGRAM)
    with server:
        server.bind((target, next(SERVED)))
        server.settimeout(PATIENCE)
        with spoofed(lab["a"], client, target, "udp", server.getsockname()[1]) as sock:
            sock.send(ANSWER)
            _question, peer = server.recvfrom(100)
            server.sendto(GREETING, peer)
            assert sock.recv(100) == GREETING
            yield sock, server, peer


def test_conntrack_keeps_udp_sessions_as_long_as_the_forwarder(lab, b, family):
    """The forwarder has idle_timeout 600 here.

    Control: with a shorter conntrack timeout a late reply is lost, and leaks.
    """
    kept = dict.fromkeys(UDP_TIMEOUTS, "605")
    assert {name: b.run(f"sysctl -n {name}").strip() for name in UDP_TIMEOUTS} == kept
    with nothing_leaks(lab, family), udp_session(lab, family) as (client, server, peer):
        listed = b.run(f"conntrack -L -p udp -f {family} --orig-port-dst {server.getsockname()[1]}")
        assert 600 < int(listed.split()[2]) <= 605
        server.sendto(GREETING, peer)
        assert client.recv(100) == GREETING
    for name in UDP_TIMEOUTS:
        b.host.sysctl(name, "1")
    try:
        with nothing_leaks(lab, family, expected=True), udp_session(lab, family) as (client, server, peer):
            eventually(lambda: f"dport={server.getsockname()[1]}" not in b.run(f"conntrack -L -p udp -f {family}"))
            server.sendto(GREETING, peer)
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(100)
    finally:
        for name in UDP_TIMEOUTS:
            b.host.sysctl(name, "605")


def test_a_flushed_udp_session_resumes_when_the_client_sends(lab, b, family):
    """Also if its server continues to send, which keeps a conntrack entry in the reverse direction."""
    with udp_session(lab, family) as (client, server, peer):
        b.run(FLUSH)
        server.sendto(GREETING, peer)  # lost
        client.send(ANSWER)
        assert server.recv(100) == ANSWER
        with nothing_leaks(lab, family):
            for _again in range(3):
                server.sendto(GREETING, peer)
                assert client.recv(100) == GREETING


def numbers_on(b) -> set[str]:
    """Priority and mark of all rules, in both families."""
    listed = [b.run(f"ip {option} rule show").splitlines() for option in ("-4", "-6")]
    found = [line.split() for lines in listed for line in lines if "fwmark" in line]
    return {f"{words[0]} {words[words.index('fwmark') + 1]}" for words in found}


OLD = {f"{priority}: {number:#x}/0xff" for priority in (1100, 1101) for number in (11, 12)}
NEW = {f"{priority}: {number:#x}0000/0xff0000" for priority in (2000, 2001) for number in (11, 12)}


def test_a_change_of_numbers_keeps_live_connections(lab, b, family, tmp_path):
    """Live connections keep their mark and its rules until they end; new ones get the new numbers."""
    now, drain = time.time(), {"drain": math.inf, "directory": str(tmp_path)}
    year = 365 * 86400
    try:
        with nothing_leaks(lab, family), contextlib.ExitStack() as stack:
            client, server = stack.enter_context(connection(lab, "a", family))
            asking, answering, peer = stack.enter_context(udp_session(lab, family))
            b.apply(b.other, **drain, now=now)
            assert numbers_on(b) == OLD | NEW
            b.apply(b.other, **drain, now=now + year)
            assert numbers_on(b) == NEW | {rule for rule in OLD if "0xb/" in rule}, "nothing uses a2"
            for _again in range(2):
                answering.sendto(GREETING, peer)
                assert asking.recv(100) == GREETING
                talk(client, server)
            with connection(lab, "a", family) as (another, its_server):
                talk(another, its_server)
                assert f"mark={11 << 16} " in b.run(f"conntrack -L -p tcp -f {family}")
        b.run(FLUSH)  # the UDP session

        def only_new() -> bool:
            b.apply(b.other, **drain, now=now + year)
            return numbers_on(b) == NEW

        eventually(only_new)
        with nothing_leaks(lab, family, expected=True), udp_session(lab, family) as (_asking, answering, peer):
            b.apply(b.document)  # the control: without a drain
            answering.sendto(GREETING, peer)
            eventually(lambda: counters(lab["router"], f"leaks_{family}")[f"leaks_{family}"])
    finally:
        b.apply(b.document)


def test_a_foreign_rule_that_sets_one_of_our_bits_breaks_marks_until_numbers_change(lab, b, family):
    """Such connections seem to have a mark already. With other numbers they get one."""
    command = "iptables" if family == "ipv4" else "ip6tables"
    rule = "PREROUTING -p tcp -j CONNMARK --set-xmark 0x80/0x80"
    b.run(f"{command} -t mangle -A {rule}")
    source, target = address_of(lab["client"], family), address_of(lab["b"], family)
    try:
        with b.host.inside():
            listener = socket.create_server((WILDCARD[family], 0), family=AF[family], dualstack_ipv6=False)
        with listener:
            assert handshake(lab["a"], source, target, listener.getsockname()[1], next(PORTS)) == "silent"
        b.apply(b.other)
        with connection(lab, "a", family) as (client, server), nothing_leaks(lab, family):
            talk(client, server)
            b.run(FLUSH)
            talk(client, server)
    finally:
        b.run(f"{command} -t mangle -D {rule}")
        b.apply(b.document)


def marked_by_another(b) -> None:
    """A foreign tool marks incoming packets and routes by its mark, as for TPROXY."""
    watch(b.host, "others", "prerouting priority -160", "meta mark set meta mark or 0x40000")
    for option in ("-4", "-6"):
        b.run(f"ip {option} rule add priority 900 fwmark 0x40000/0x40000 lookup 900")
        b.run(f"ip {option} route add local default dev lo table 900")


def unmarked(b) -> None:
    b.run("nft delete table inet others")
    for option in ("-4", "-6"):
        b.run(f"ip {option} rule del priority 900")
        b.run(f"ip {option} route flush table 900")


@pytest.mark.parametrize("b", VARIANTS[:1], ids=str, indirect=True)
@pytest.mark.parametrize("through", ["client", "a"])
def test_an_accepted_socket_keeps_no_foreign_bits(lab, b, through, family):
    """Control: without its rule, replies are routed by the foreign mark."""
    marked_by_another(b)
    try:
        with connection(lab, through, family) as (client, server):
            talk(client, server)
        b.run("nft flush chain inet l4proxy_return_path accepted")
        source, target = address_of(lab["client"], family), address_of(lab["b"], family)
        with b.host.inside():
            listener = socket.create_server((WILDCARD[family], 0), family=AF[family], dualstack_ipv6=False)
        with listener:
            assert handshake(lab[through], source, target, listener.getsockname()[1]) == "silent"
    finally:
        unmarked(b)
        b.apply(b.document)
