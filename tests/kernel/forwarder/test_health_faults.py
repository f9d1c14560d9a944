# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that accept connections and do not serve, and servers that attack the checker."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.lab import daemons
from tests.support import processes, tcp, udp
from tests.support.addresses import FAMILIES, address_of
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import FACTOR, eventually

INTERVAL, FALL = 0.5, 3
SLACK = 1.0 * FACTOR  # seconds a busy machine may be late
HEALTH = {"interval": INTERVAL, "timeout": 0.4, "rise": 1, "fall": FALL}
HTTP = {"http": {"path": "/healthz"}}


@pytest.fixture(scope="module")
def certificate(lab):
    """A TLS context of servers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*daemons.self_signed(lab.tmp, "b"))
    return context


# -- servers that accept and do not serve ----------------------------------------------------------------------------


def read_request(sock):
    while not (data := sock.recv(4096)).endswith(b"\r\n\r\n") and data:
        pass


def answer(sock, status, body=b""):
    read_request(sock)
    sock.sendall(b"HTTP/1.1 %s\r\nConnection: close\r\n\r\n%s" % (status, body))
    sock.close()


def keep_silent(sock):
    """The caller keeps it."""


def refuse(sock):
    answer(sock, b"503 Service Unavailable")


#: What b does with a connection before TLS and after it (plain servers have no TLS), and what the status says.
SILENT, CLOSED = "connected, but no answer in time", "closed without an answer|ECONNRESET"
BAD = {
    "plain, never answers": (keep_silent, None, SILENT),
    "plain, closes at once": (socket.socket.close, None, CLOSED),
    "plain, says 503": (refuse, None, "HTTP status 503"),
    "tls, no handshake": (keep_silent, None, "TLS handshake not finished in time"),
    "tls, never answers": (None, keep_silent, SILENT),
    "tls, closes at once": (None, socket.socket.close, CLOSED),
    "tls, says 503": (None, refuse, "HTTP status 503"),
}
PORTS = dict(zip(BAD, range(9300, 9300 + len(BAD))))
CHECKED, UNCHECKED = 1000, 2000  # added to the port of a server: the services with a check of HTTP, and of a handshake


class Servers:
    """On each port b and c serve HTTP. While ``bad``, b does what BAD says; ``clients`` counts its clients by port."""

    def __init__(self, lab, context):
        self.bad = False
        self.clients = Counter()
        self._context, self._kept = context, []
        self._addresses = {address_of(lab["client"], family) for family in FAMILIES}

    def serving(self, lab, stack):
        for (name, port), host in itertools.product(PORTS.items(), "bc"):
            stack.enter_context(tcp.serving(lab, [host], port, self._handler(name, port, host)))

    def _handler(self, name, port, host):
        def handle(sock, peer):
            sock.settimeout(1)
            before, after, _reason = BAD[name] if self.bad and host == "b" else (None, None, None)
            if host == "b" and peer[0] in self._addresses:
                self.clients[port] += 1
            if before is None and name.startswith("tls"):
                sock = self._context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True)
            self._kept.append(sock)
            (before or after or (lambda sock: answer(sock, b"200 OK", host.encode())))(sock)

        return handle


@pytest.fixture(scope="module")
def servers(lab, certificate):
    """They are as good as at first when a test begins."""
    found = Servers(lab, certificate)
    with ExitStack() as stack:
        found.serving(lab, stack)
        yield found


@pytest.fixture(scope="module")
def forwarder(lab, servers):
    services = []
    for name, port in PORTS.items():
        check = {**HEALTH, **HTTP, **({"tls": {}} if name.startswith("tls") else {})}
        both = {"backends": ["b", "c"]}
        services.append(make_service(lab, f"http-{port}", port + CHECKED, port, **both, health=check))
        services.append(make_service(lab, f"handshake-{port}", port + UNCHECKED, port, **both, health=HEALTH))
    with Forwarder(lab, make_config(*services)) as forwarder:
        yield forwarder


def found_states(forwarder):
    """{(kind of check, backend): states in all services and families}."""
    found = {}
    for service in forwarder.status()["services"]:
        kind = service["name"].partition("-")[0]
        for backend in service["backends"]:
            states = {target["state"] for target in backend["families"].values()}
            found.setdefault((kind, backend["name"]), set()).update(states)
    return found


def reasons(forwarder, name):
    """What the status says about b in a service, in both families."""
    (service,) = [service for service in forwarder.status()["services"] if service["name"] == name]
    return {target["server"] for target in service["backends"][0]["families"].values()}


def ask(lab, address, port, tls):
    """The body of the answer to a client."""
    with ExitStack() as stack:
        sock = stack.enter_context(tcp.connect(lab, address, port))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = stack.enter_context(context.wrap_socket(sock))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return tcp.receive_all(sock).partition(b"\r\n\r\n")[2]


def test_a_server_that_accepts_and_does_not_serve_is_out_and_no_client_meets_it(lab, forwarder, servers):
    """The control: with a check of the handshake, half of the clients meet it."""
    good = {(kind, backend): {"up"} for kind in ("http", "handshake") for backend in "bc"}
    out = {**good, ("http", "b"): {"down"}}

    def connect(added):
        for port, family in itertools.product(PORTS.values(), FAMILIES):
            tcp.connect(lab, address_of(lab["a"], family), port + added).close()

    def is_out():
        connect(CHECKED)
        return found_states(forwarder) == out

    def states():
        return f"{found_states(forwarder)}\n{forwarder.show()}"

    eventually(lambda: found_states(forwarder) == good, "all are up", states)
    servers.bad = True
    within = (FALL + 1) * INTERVAL + SLACK
    eventually(is_out, "b is out, although clients connect to it", states, patience=within)
    for name, port in PORTS.items():
        for reason in reasons(forwarder, f"http-{port}"):
            assert re.fullmatch(f"no: ({BAD[name][2]})", reason), name
    servers.clients.clear()
    for (name, port), family in itertools.product(PORTS.items(), FAMILIES):
        proxy, tls = address_of(lab["a"], family), name.startswith("tls")
        assert {ask(lab, proxy, port + CHECKED, tls) for _client in range(50)} == {b"c"}, (name, family)
    assert servers.clients == Counter(), "0 of 100 clients"
    for _client in range(50):
        connect(UNCHECKED)
    half = dict.fromkeys(PORTS.values(), 50)
    eventually(lambda: servers.clients == half, "the control", lambda: str(servers.clients))
    assert found_states(forwarder) == out
    servers.bad = False
    eventually(lambda: found_states(forwarder) == good, "all are up again", states)


# -- servers that attack the checker ---------------------------------------------------------------------------------

SECONDS = 3
UDP = 9499
CHUNK = 4096


def noise(sock, dice):
    sock.sendall(dice.randbytes(dice.choice((1, 5, 100, CHUNK))))


def flood(sock, dice):
    """Random bytes without end."""
    while True:
        sock.sendall(dice.randbytes(CHUNK))
        time.sleep(0.01)


def endless(*parts):
    """The first part, then the second one without end."""

    def send(sock, _dice):
        sock.sendall(parts[0])
        while True:
            sock.sendall(parts[1] * 20)
            time.sleep(0.01)

    return send


def drip(sock, _dice):
    """An answer of which each byte arrives alone, and that never ends."""
    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\n", itertools.cycle(b"X-Slow: 1\r\n")):
        sock.sendall(bytes([byte]))
        time.sleep(0.02)


class BrokenTls:
    """The first flight of a TLS server, truncated or with a changed byte."""

    def __init__(self, context):
        self._context = context

    def __call__(self, sock, dice):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(sock.recv(CHUNK))
        with contextlib.suppress(ssl.SSLWantReadError):
            self._context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        flight = bytearray(outgoing.read())
        if dice.random() < 0.5:
            flight[dice.randrange(len(flight))] ^= 1 << dice.randrange(8)
        else:
            del flight[dice.randrange(len(flight)) :]
        sock.sendall(flight)
        if dice.random() < 0.5:
            sock.recv(1)  # until the checker gives up


CHECKS = (
    {},
    HTTP,
    {"tls": {}},
    {"tls": {}, **HTTP},
    {"request": "?", "expect": "HTTP"},
    {"expect_regex": "^(X+X+)+y"},  # takes a time that grows exponentially with the number of X
)


@pytest.fixture
def attackers(lab, certificate):
    """The ports of servers on b, one for each attack."""
    attacks = (noise, flood, endless(b"HTTP/1.1 200 ", b"OK "), endless(b"HTTP/1.1 200 OK\r\n", b"X-Name: value\r\n"),
               endless(b"", b"X"), endless(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
               drip, BrokenTls(certificate))  # fmt: skip

    def handler(attack, port):
        def one(sock, number):
            with contextlib.suppress(OSError, ValueError), sock:
                sock.settimeout(2)
                attack(sock, random.Random(port * 1000 + number))

        numbers = itertools.count()
        return lambda sock, _peer: threading.Thread(target=one, args=(sock, next(numbers)), daemon=True).start()

    with ExitStack() as stack:
        for port, attack in enumerate(attacks, 9400):
            stack.enter_context(tcp.serving(lab, ["b"], port, handler(attack, port)))
        server = udp.Server(lab, "b", UDP)
        server.says = b"X" * 60_000
        yield range(9400, 9400 + len(attacks))
        server.stop()


def test_what_servers_send_neither_ends_nor_delays_the_checker(lab, attackers):
    arrivals = []

    def honest(sock, _peer):
        arrivals.append(time.monotonic())
        sock.settimeout(1)
        answer(sock, b"200 OK")

    services = [
        make_service(lab, f"s{number}", 20000 + number, port, backends=["b"], health={**HEALTH, **check})
        for number, (port, check) in enumerate(itertools.product(attackers, CHECKS))
    ]
    check = {**HEALTH, **CHECKS[-1], "request": "?"}
    services.append(make_service(lab, "udp", 20999, UDP, backends=["b"], protocol="udp", health=check))
    services.append(make_service(lab, "honest", 21000, 9500, backends=["c"], health={**HEALTH, **HTTP}))
    with tcp.serving(lab, ["c"], 9500, honest), Forwarder(lab, make_config(*services)) as forwarder:
        eventually(lambda: len(arrivals) >= 2, "both families are checked", forwarder.show)
        (checker,) = forwarder.children("l4-checker")
        begun, size = time.monotonic(), processes.resident(checker)
        while time.monotonic() < begun + SECONDS:
            time.sleep(0.1)
        assert forwarder.children("l4-checker") == [checker], forwarder.show()
        assert not forwarder.log("defect"), forwarder.log("defect")[0]
        states = {target["state"] for target in forwarder.status()["services"][-1]["backends"][0]["families"].values()}
        assert states == {"up"}
        assert len(forwarder.log("backend state")) > 0
        gaps = [later - earlier for earlier, later in zip(arrivals, arrivals[2:])]  # both families have their turn
        assert max(gaps) < 2 * INTERVAL + FACTOR
        assert processes.resident(checker) - size < 8 << 20
