# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that rejects one client keeps serving the others; a dead backend is skipped quickly.

The ban is a packet filter on b, as of fail2ban or connlimit. Every test uses many clients, because
the result of one client says nothing about the others.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets

from tests.kernel.forwarder.faults import SOURCES, BogonFilter, BrokenReturnPath, state
from tests.kernel.forwarder.sessions import CLIENTS, Refused, Session
from tests.support import tcp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import eventually

PORT, BACKEND = 7500, 9000
GOOD = range(1, 21)  # numbers of the clients that b accepts
BANNED = 200
SECONDS, RATE, BANNED_RATE = 2.5, 30, 5  # of each stream: seconds, and sessions per second
STRATEGIES = ("round_robin", "backup", "source_hash", "alone")
#: How b rejects a client, as verdicts of nft.
KINDS = {
    "reset": "reject with tcp reset",
    "port": "reject with icmpx type port-unreachable",
    "host": "reject with icmpx type host-unreachable",
    "admin": "reject with icmpx type admin-prohibited",
    "drop": "drop",
}
LATE = 1.0  # seconds a busy machine may be late
FAST = {"interval": 1.0, "timeout": 0.5, "rise": 2, "fall": 3}
HEALTH = {"off": {"enabled": False}, "on": {}, "fast": FAST}
EVERYBODY = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}
EXCHANGE = {"request": "well?", "expect": "well"}


@pytest.fixture(scope="module")
def lab(lab):
    for limit in ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"):
        lab["b"].sysctl(limit, "0")  # without a limit of ICMP errors
    return lab


def document(lab, protocol, health, strategies=STRATEGIES, **options):
    """A service for each entry of ``strategies``, on consecutive ports; ``alone`` has b only."""
    services = []
    if protocol == "udp" and health == "on":
        options["health"] = EXCHANGE
    for number, strategy in enumerate(strategies):
        names = ("b",) if strategy == "alone" else ("b", "c")
        balance = "source_hash" if strategy == "source_hash" else "round_robin"
        settings = {"health": HEALTH[health], "protocol": protocol, "balance": balance, **options}
        service = make_service(lab, strategy, PORT + number, BACKEND, names, **settings)
        if strategy == "backup":
            service["backends"][1]["backup"] = True
        services.append(service)
    return make_config(*services)


@contextlib.contextmanager
def serving(lab, *arguments, **options):
    """A forwarder with a document(), once all backends are up."""
    config = document(lab, *arguments, **options)
    with Forwarder(lab, config) as forwarder:
        if config["services"][0]["health"].get("enabled", True):
            eventually(lambda: set(all_states(forwarder)) == {"up"}, "all are up", forwarder.show)
        yield forwarder


def all_states(forwarder):
    """The states of all backends of all services."""
    services = forwarder.status()["services"]
    return [target["state"] for one in services for b in one["backends"] for target in b["families"].values()]


@contextlib.contextmanager
def ban(lab, protocol, kind, clients=(BANNED,)):
    """Let b reject clients, in both families; None means all clients."""
    networks = {family: network if None in clients else CLIENTS[family] for family, network in EVERYBODY.items()}
    rules = "\n".join(
        f"  {'ip6' if family == 'ipv6' else 'ip'} saddr {networks[family].format(client)}"
        f" {protocol} dport {BACKEND} {KINDS[kind]}"
        for family in FAMILIES
        for client in clients
    )
    chain = f" chain in {{\n  type filter hook input priority 0\n{rules}\n }}"
    lab["b"].run(["nft", "-f", "-"], input=f"table inet ban {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        lab["b"].run(["nft", "delete", "table", "inet", "ban"])


class Stream:
    """A thread that opens sessions of one service in one family: accepted clients in turn, or the banned one."""

    def __init__(self, lab, protocol, to, clients, rate, seconds=SECONDS, count=None):
        self.served = []  # (seconds since the start, client, backend or None, duration)
        self._arguments = lab, protocol, to, [CLIENTS[_family(to)].format(number) for number in clients]
        self._pace = 1 / rate, seconds, count
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        lab, protocol, to, clients = self._arguments
        (pause, seconds, count), begun = self._pace, time.monotonic()
        for turn, client in enumerate(itertools.islice(itertools.cycle(clients), count)):
            time.sleep(max(0.0, begun + turn * pause - time.monotonic()))
            at = time.monotonic() - begun
            if at >= seconds:
                return
            name = _served_by(lab, protocol, to, client)
            self.served.append((at, client, name, time.monotonic() - begun - at))

    def join(self):
        """Wait for its end; return the number of sessions by backend, None for refused ones."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return Counter(name for _at, _client, name, _took in self.served)


def _family(to):
    return "ipv6" if ":" in to[0] else "ipv4"


def _served_by(lab, protocol, to, client):
    """The backend of one session, None if it was refused; over UDP the client repeats for a few seconds."""
    try:
        session = Session(lab, protocol, to, client, patience=3.0)
    except (Refused, OSError):
        return None
    session.end()
    return session.name or None


def streams(lab, protocol, clients, rate, strategies=STRATEGIES, families=FAMILIES, **options):
    """{(strategy, family): Stream}."""
    return {
        (strategy, family): Stream(lab, protocol, (getattr(lab["a"], family), PORT + number), clients, rate, **options)
        for number, strategy in enumerate(strategies)
        for family in families
    }


TEST_BANS = [
    *(pytest.param("tcp", kind, "on", marks=[pytest.mark.slow] * (kind in ("host", "admin"))) for kind in KINDS),
    *(("udp", kind, "on") for kind in ("port", "host", "admin")),
    *(("tcp", kind, "off") for kind in ("reset", "drop")),
    ("udp", "port", "off"),
]


@pytest.mark.parametrize(("protocol", "kind", "health"), TEST_BANS)
def test_a_backend_that_rejects_one_client_keeps_serving_the_others(lab, session_servers, protocol, kind, health):
    """After its first failure, the rejected client is sent to the other backend."""
    with serving(lab, protocol, health) as forwarder:
        before = homes(lab, protocol)
        with ban(lab, protocol, kind):
            good = streams(lab, protocol, GOOD, RATE)
            time.sleep(0.2)  # without health checks, a success of another client shows that the backend is up
            banned = streams(lab, protocol, [BANNED], BANNED_RATE)
            table = {key: stream.join() for key, stream in good.items()}
            own = {key: stream.join() for key, stream in banned.items()}
        nobody_was_moved(good, table, before)
        for (strategy, _family), found in own.items():
            assert found.keys() == ({None} if strategy == "alone" else {"c"}), own
        assert forwarder.log("backend skipped") == []
        assert {line["client"] for line in forwarder.log("backend skipped for a client")} == addresses([BANNED])
        again = Counter(
            (line["client"], line["service"]) for line in forwarder.log("connection") if line["attempts"] > 1
        )
        assert set(again.values()) <= {1}, again


def homes(lab, protocol):
    """{(strategy, family): {client: backend}} without a ban, where clients stay with one backend."""
    found = streams(lab, protocol, GOOD, 100, seconds=60, count=len(GOOD), strategies=STRATEGIES[:3])
    for stream in found.values():
        stream.join()
    return {key: {client: name for _at, client, name, _took in stream.served} for key, stream in found.items()}


def nobody_was_moved(good, table, before, uneven=4):
    """What the good clients of streams() were given is what they are given without a ban.

    ``uneven`` is by how many sessions backends that take turns may differ: turns of the others are in between.
    """
    for family in {family for _strategy, family in good}:
        assert table["alone", family].keys() == table["backup", family].keys() == {"b"}, table
        shares = table["round_robin", family]
        assert shares.keys() == {"b", "c"}, table
        assert abs(shares["b"] - shares["c"]) <= uneven, table
        stayed = before["source_hash", family]
        assert {(client, name) for _at, client, name, _took in good["source_hash", family].served} <= {*stayed.items()}


def addresses(clients, families=FAMILIES):
    return {CLIENTS[family].format(number) for number in clients for family in families}


def test_an_attacker_with_many_addresses_does_not_take_a_backend_down(lab, session_servers, protocol):
    """While the checker is answered, as many failures as you like move nobody."""
    many = range(100, 160)
    with serving(lab, protocol, "on") as forwarder, ban(lab, protocol, "port", many):
        before = homes(lab, protocol)
        attack = streams(lab, protocol, many, 40)
        good = streams(lab, protocol, GOOD, RATE)
        nobody_was_moved(good, {key: stream.join() for key, stream in good.items()}, before, uneven=40)
        assert all(stream.join().keys() == {"c"} for key, stream in attack.items() if key[0] == "round_robin")
        assert forwarder.log("backend skipped") == []


@pytest.mark.parametrize("family", [pytest.param("ipv4", marks=pytest.mark.slow), "ipv6"])
@pytest.mark.parametrize("kind", ["reset", "drop"])
def test_with_filtered_probes_a_ban_does_not_affect_other_clients(lab, session_servers, family, kind):
    """b is alone, drops the probes, and rejects the only client there is for a while; then the others come."""
    to = (getattr(lab["a"], family), PORT)
    with serving(lab, "tcp", "fast", ["alone"]) as forwarder, ban(lab, "tcp", kind), BogonFilter(lab):
        banned = Stream(lab, "tcp", to, [BANNED], BANNED_RATE, 6.0)
        eventually(lambda: state(forwarder, "b", family) == "return path broken", "the probes count", forwarder.show)
        assert banned.join().keys() == {None}
        assert Stream(lab, "tcp", to, GOOD, RATE).join().keys() == {"b"}
        eventually(lambda: state(forwarder, "b", family) == "up", "clients outrank the probes", forwarder.show)
        assert len([line for line in forwarder.log("connection") if "limit" in line["ended"]]) == 0
        (line,) = (
            line
            for line in forwarder.log("backend state")
            if line["state"] == "return path broken" and line["family"] == family
        )
        assert SOURCES[family] in line["reason"]


@pytest.mark.parametrize("kind", ["reset", "drop"])
def test_while_clients_succeed_neither_filtered_probes_nor_a_ban_move_others(lab, session_servers, kind):
    with serving(lab, "tcp", "fast") as forwarder, ban(lab, "tcp", kind):
        before = homes(lab, "tcp")
        banned = streams(lab, "tcp", [BANNED], BANNED_RATE, seconds=6.0)
        good = streams(lab, "tcp", GOOD, RATE, seconds=6.0)
        time.sleep(1.0)
        with BogonFilter(lab) as bogons:
            nobody_was_moved(good, {key: stream.join() for key, stream in good.items()}, before)
            assert min(bogons.seen()[:2]) > 0, "no probe was dropped"
            assert {state(forwarder, "b", family) for family in FAMILIES} == {"up"}
        for stream in banned.values():
            stream.join()


def test_a_udp_server_that_never_answers_keeps_its_clients(lab, session_servers, family):
    """Syslog: nothing is asked and nothing comes back, so all that shows b to be well is that nobody else complains."""
    to, pause = (getattr(lab["a"], family), PORT), 0.05
    both = [session_servers["udp", name] for name in ("b", "c")]

    def send(socks, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for sock in socks:
                sock.sendto(b"<13>well", to)
            time.sleep(pause)

    with serving(lab, "udp", "off", ["backup"]) as forwarder, ban(lab, "udp", "port"), contextlib.ExitStack() as stack:
        socks = {
            number: [stack.enter_context(_bound(lab, family, number)) for _turn in range(2)]
            for number in (*GOOD, BANNED)
        }
        for server in both:
            server.says = b""
            server.seen.clear()
            stack.callback(setattr, server, "says", None)
        send([socks[number][0] for number in GOOD], 1.0)
        send([socks[number][0] for number in (*GOOD, BANNED)], 1.0)
        send([socks[number][1] for number in (*GOOD, BANNED)], 1.0)
        seen = [{address for address, _port in server.seen.copy()} for server in both]
        assert seen == [addresses(GOOD, [family]), addresses([BANNED], [family])]
        assert len(both[0].seen) == 2 * len(GOOD), "each session stayed where it was"
        assert forwarder.log("backend skipped") == []


def _bound(lab, family, number):
    with lab["client"].inside():
        sock = socket.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, socket.SOCK_DGRAM)
    if family == "ipv6":  # or the kernel lets it have addresses of an interface only
        sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
    sock.bind((CLIENTS[family].format(number), 0))
    return sock


def dead(lab, how, family):
    """A context in which b is dead for everybody: nobody listens, b answers nothing, or its replies go astray."""
    if how == "refusing":
        return tcp.refusing(lab, "b", BACKEND)
    return BrokenReturnPath(lab, family) if how == "astray" else ban(lab, "tcp", "drop", [None])


TEST_DEATHS = [
    ("refusing", "ipv4", "on"),
    ("refusing", "ipv6", "off"),
    ("silent", "ipv6", "on"),
    ("astray", "ipv4", "on"),
    pytest.param("silent", "ipv4", "off", marks=pytest.mark.slow),
    pytest.param("astray", "ipv6", "off", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("how", "family", "health"), TEST_DEATHS)
def test_a_dead_backend_is_skipped_quickly_and_comes_back(lab, session_servers, how, family, health):
    """The control: each client meets it once at most, and nobody does a second and a half after it died."""
    to, rate = (getattr(lab["a"], family), PORT), 4
    with serving(lab, "tcp", health, ["round_robin"]) as forwarder:
        several = [Stream(lab, "tcp", to, [number], rate, 4.0) for number in GOOD]
        time.sleep(1.0)
        with dead(lab, how, family):
            died = time.time()
            for stream in several:
                stream.join()
            refused = Counter(client for stream in several for _at, client, name, _took in stream.served if not name)

            def cut():
                """The sessions that were cut as b died; a client may see its end before the line is in the log."""
                lines = forwarder.log("connection")
                return Counter(line["client"] for line in lines if line["ended"] == "backend reset")

            eventually(lambda: refused <= cut(), "no other client was refused", forwarder.show)
            hit = [line for line in forwarder.log("connection") if line["attempts"] > 1]
            assert hit
            assert set(Counter(line["client"] for line in hit).values()) == {1}
            begun = [line["time"] - line["duration"] - died for line in hit]
            assert max(begun) < 1.5 + LATE, begun
            (line,) = forwarder.log("backend skipped")
            assert (line["backend"], line["family"]) == ("b", family)
        eventually(lambda: "b" in Stream(lab, "tcp", to, GOOD, RATE, 0.5).join(), "b is back", forwarder.show)
