# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission of UDP clients: allow, limits, floods, ranges of ports, and the fallbacks of the source."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import ancillary

from tests.kernel.forwarder.sessions import CLIENTS
from tests.support import processes, udp
from tests.support.addresses import FAMILIES, family_of
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("udp_servers")
KEEP, HIDE, STRICT, ALL, ALLOWED, RATE, PAIR, TINY, FLOOD, RANGE, _NEXT, SLICED, OTHER = range(5700, 5713)
BACKEND = 9000
SLICE = range(40000, 40100)


@pytest.fixture(scope="module")
def second(lab):
    """Another server on b, on the second port of the range."""
    with udp.serving(lab, BACKEND + 1, ["b"]) as udp_servers:
        yield udp_servers["b"]


def udp_service(lab, name, port, backends=("b",), backend_port=BACKEND, **options):
    return make_service(lab, name, port, backend_port, backends=backends, protocol="udp", **options)


def document(lab):
    client = [f"{lab['client'].ipv4}/32", f"{lab['client'].ipv6}/128"]
    pair = udp_service(lab, "pair", PAIR)
    pair["listen"].append({"address": lab["a"].ipv4, "port": PAIR + 100})
    pair["listen"].append({"address": lab["a"].ipv6, "port": PAIR + 100})
    return make_config(
        udp_service(lab, "keep", KEEP, source_port="keep"),
        udp_service(lab, "hide", HIDE, source_fallback="own"),
        udp_service(lab, "strict", STRICT),
        udp_service(lab, "all", ALL, BACKENDS),
        udp_service(lab, "allowed", ALLOWED, allow=client),
        udp_service(lab, "rate", RATE, limits={"rate_per_client": 3}),
        pair,
        udp_service(lab, "range", f"{RANGE}-{RANGE + 1}", backend_port=f"{BACKEND}-{BACKEND + 1}"),
        source_ports={"first": SLICE[0], "last": SLICE[-1]},
    )


@pytest.fixture
def steps(forwarder):
    """A function that returns the increments of a service's counters in this test, without zeros."""
    before = {service["name"]: service for service in forwarder.status()["services"]}

    def grown(service):
        now = next(one for one in forwarder.status()["services"] if one["name"] == service)
        names = [name for name in now if name.startswith(("source_", "refused_"))]
        return {name: now[name] - before[service][name] for name in names if now[name] != before[service][name]}

    return grown


def ask(lab, family, port, host="client", source_port=0):
    """(backend, client's address and port as it sees them) of a new session."""
    to = (getattr(lab["a"], family), port)
    with udp.client(lab, to[0], source_port, host=host) as sock:
        return udp.who(sock, to)


def unanswered(lab, family, port, host="client"):
    """Whether a new session is refused."""
    to = (getattr(lab["a"], family), port)
    with udp.client(lab, to[0], host=host) as sock:
        return udp.silent(sock, udp.QUESTION, to)


def test_source_port_keep_falls_back_to_any_on_a_collision(lab, forwarder, steps, family):
    client, server = getattr(lab["client"], family), getattr(lab["b"], family)
    assert ask(lab, family, KEEP, source_port=33333) == ("b", client, 33333)
    with lab["a"].inside():
        held = socket.socket(family_of(client), socket.SOCK_DGRAM)
    with held:
        for option in sockets.transparent_options(held.family, kept=True):
            held.setsockopt(*option)
        held.bind((client, 33334))
        held.connect((server, BACKEND))
        _name, address, port = ask(lab, family, KEEP, source_port=33334)
    assert address == client
    assert port in SLICE
    assert steps("keep") == {"source_kept": 1, "source_port_taken": 1, "source_any": 1}


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def test_a_datagram_with_port_0_falls_back_to_any(lab, forwarder, udp_servers, steps, family):
    """With source port 0, a client wants no reply (RFC 768)."""
    client, target = getattr(lab["client"], family), getattr(lab["a"], family)
    kind, payload = family_of(target), b"without a port" + b"46"[FAMILIES.index(family) :]
    size = struct.pack("!H", 8 + len(payload))
    datagram = struct.pack("!HH", 0, KEEP) + size + b"\0\0" + payload
    pseudo = b"".join(socket.inet_pton(kind, one) for one in (client, target)) + struct.pack("!H", 17) + size
    datagram = datagram[:6] + struct.pack("!H", checksum(pseudo + datagram)) + payload
    with lab["client"].inside():
        raw = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with raw:
        raw.sendto(datagram, (target, 0))

    def heard():
        return [peer for peer, sizes in udp_servers["b"].seen.copy().items() if len(payload) in sizes]

    ((address, port),) = eventually(heard, "the backend has it", forwarder.show)
    assert address == client
    assert port in SLICE
    assert steps("keep") == {"source_any": 1}


@pytest.mark.parametrize("host", ["a", "b"], ids=["the proxy itself", "the only backend"])
def test_source_fallback_own_serves_clients_that_cannot_be_spoofed(lab, forwarder, steps, family, host):
    assert ask(lab, family, HIDE, host=host)[1] == getattr(lab["a"], family)
    assert steps("hide") == {"source_own": 1}
    assert unanswered(lab, family, STRICT, host=host)
    assert steps("strict") == {"source_refused": 1, "refused_never_spoofed": 1}


def test_a_client_that_is_a_backend_is_sent_to_another_backend(lab, forwarder, steps, family):
    found = [ask(lab, family, ALL, host="b") for _session in range(6)]
    assert {name for name, _address, _port in found} == {"c", "d"}
    assert {address for _name, address, _port in found} == {getattr(lab["b"], family)}
    assert steps("all") == {"source_any": 6}


def test_only_clients_of_the_allowed_networks_are_answered(lab, forwarder, steps, family):
    assert ask(lab, family, ALLOWED)[1] == getattr(lab["client"], family)
    assert unanswered(lab, family, ALLOWED, host="router")
    assert steps("allowed") == {"source_any": 1, "refused_denied": 1}


def test_a_client_above_its_rate_is_refused_and_others_are_served(lab, forwarder, steps, family):
    """New sessions count; existing ones continue."""
    to, begun = (getattr(lab["a"], family), RATE), time.monotonic()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(udp.client(lab, to[0])) for _client in range(12)]
        for sock in socks:
            sock.sendto(udp.QUESTION, to)
        time.sleep(udp.QUIET)
        seconds = time.monotonic() - begun
        admitted = [sock for sock in socks if _readable(sock)]
        assert 3 <= len(admitted) <= 3 + 3 * seconds + 1
        assert steps("rate")["refused_limited"] == 12 - len(admitted)
        for _question in range(20):
            assert udp.exchange(admitted[0], b"more", to)[0] == b"more"
    assert ask(lab, family, RATE, host="router")[0] == "b"


@contextlib.contextmanager
def _narrow(lab):
    """A slow link of a: with IP_RECVERR, the kernel returns ENOBUFS for packets that it drops (ip(7))."""
    shape = ["tbf", "rate", "1mbit", "burst", "2kb", "limit", "3000"]
    lab["a"].run(["tc", "qdisc", "add", "dev", lab["a"].dev, "root", *shape])
    try:
        yield
    finally:
        lab["a"].run(["tc", "qdisc", "del", "dev", lab["a"].dev, "root"])


def test_datagrams_dropped_by_the_kernel_are_counted_and_the_session_stays(lab, forwarder, family):
    to = (getattr(lab["a"], family), STRICT)
    with udp.client(lab, to[0]) as sock:
        before, workers = udp.who(sock, to), forwarder.workers()
        dropped = forwarder.status()["totals"]["datagrams_dropped"]
        with _narrow(lab):
            for _datagram in range(200):
                sock.sendto(b"x" * 1200, to)
            eventually(
                lambda: forwarder.status()["totals"]["datagrams_dropped"] > dropped, "some are dropped", forwarder.show
            )
        udp.settle(sock)
        assert udp.who(sock, to) == before
    assert forwarder.workers() == workers
    assert not forwarder.log("defect"), forwarder.log("defect")[0]


def flood(lab, to, port=0):
    """Send a datagram from each of 200 addresses and one port, ``port`` or any."""
    family = "ipv6" if ":" in to[0] else "ipv4"
    with udp.client(lab, to[0], port) as attacker:
        if family == "ipv6":  # else the kernel allows addresses of interfaces only
            attacker.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
        for number in range(1, 201):
            source = socket.inet_pton(family_of(to[0]), CLIENTS[family].format(number))
            attacker.sendmsg([b"x"], ancillary.leaving_from(source), 0, to)


def test_a_flood_of_new_clients_costs_bounded_memory_and_keeps_existing_sessions(lab, udp_servers, family):
    """20,000 datagrams from 200 addresses and 100 ports, for a service with a limit of 1,000 sessions."""
    most, count, to = 1000, 20_000, (getattr(lab["a"], family), FLOOD)
    document = make_config(udp_service(lab, "flood", FLOOD, limits={"connections": most}), workers=2)
    with Forwarder(lab, document) as forwarder, udp.client(lab, to[0]) as sock:
        udp.who(sock, to)
        before = {pid: processes.resident(pid) for pid in forwarder.workers()}
        for _round in range(count // 200):
            flood(lab, to)
        assert udp.exchange(sock, b"still here", to)[0] == b"still here"
        (service,) = forwarder.status()["services"]
        assert service["sessions"] in (most, most + 1), "another worker may have admitted one in the same instant"
        assert service["refused_limited"] > count / 2
        assert {
            pid: processes.resident(pid) - size
            for pid, size in before.items()
            if processes.resident(pid) - size > 4 << 20
        } == {}
        assert len(forwarder.log("datagram refused")) <= 2 * 3, "one line in ten seconds and worker"


def counters(forwarder):
    return {service["name"]: service for service in forwarder.status()["services"]}


def test_a_flood_of_new_clients_affects_no_other_client_or_service(lab, udp_servers):
    """More sessions than a worker can have, from both families: new clients are served, and busy sessions stay."""
    most, ports = 65536, iter(range(10000, 60000))
    document = make_config(udp_service(lab, "dns", FLOOD, log="none"), udp_service(lab, "other", OTHER, log="none"))
    with Forwarder(lab, document) as forwarder, contextlib.ExitStack() as stack:
        talks = {}
        for family in FAMILIES:
            for service, count in ((FLOOD, 5), (OTHER, 1)):
                to = (getattr(lab["a"], family), service)
                sock = stack.enter_context(udp.client(lab, to[0]))
                talks[sock] = to, [udp.who(sock, to) for _question in range(count)][-1]
        deadline = time.monotonic() + 180
        while counters(forwarder)["dns"]["connections"] < most + 6000:
            assert time.monotonic() < deadline, counters(forwarder)
            for family in FAMILIES:
                flood(lab, (getattr(lab["a"], family), FLOOD), next(ports))
        found = counters(forwarder)
        assert found["dns"]["sessions"] + found["other"]["sessions"] == most
        assert found["dns"]["made_room"] >= 6000
        assert found["other"]["made_room"] == found["dns"]["refused_limited"] == found["other"]["refused_limited"] == 0
        for sock, (to, before) in talks.items():
            assert udp.who(sock, to) == before, "it is the same session"
        for family in FAMILIES:
            for service in (FLOOD, OTHER):
                assert ask(lab, family, service)[0] in BACKENDS
        assert len(forwarder.log("sessions evicted")) == 0
        assert not forwarder.log("defect"), forwarder.log("defect")[0]


def _readable(sock):
    sock.settimeout(0)
    try:
        return bool(sock.recv(1000))
    except BlockingIOError:
        return False


def test_a_service_can_have_several_listeners(lab, forwarder, family):
    for port in (PAIR, PAIR + 100):
        to = (getattr(lab["a"], family), port)
        with udp.client(lab, to[0]) as sock:
            assert udp.exchange(sock, b"who is there", to) == (b"who is there", to)


@pytest.mark.parametrize("offset", range(2))
def test_each_port_of_a_range_leads_to_its_backend_port(lab, udp_servers, second, forwarder, family, offset):
    to, size = (getattr(lab["a"], family), RANGE + offset), 801 + offset + 10 * FAMILIES.index(family)
    with udp.client(lab, to[0]) as sock:
        assert len(udp.exchange(sock, b"x" * size, to)[0]) == size
    heard = [any(size in sizes for sizes in server.seen.copy().values()) for server in (udp_servers["b"], second)]
    assert heard == [offset == 0, offset == 1]


def test_without_free_descriptors_the_most_idle_sessions_end(lab, udp_servers, family):
    """A session with a kept port needs a socket of its own."""
    descriptors, count, to = 300, 100, (getattr(lab["a"], family), TINY)
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (descriptors, descriptors))
    document = make_config(udp_service(lab, "tiny", TINY, source_port="keep"), workers=1)
    with Forwarder(lab, document, preexec_fn=limit) as forwarder, contextlib.ExitStack() as stack:
        first = stack.enter_context(udp.client(lab, to[0]))
        before = [udp.who(first, to) for _question in range(5)][-1]
        for _client in range(count):
            assert udp.who(stack.enter_context(udp.client(lab, to[0])), to)[0] == "b"
        assert udp.who(first, to) == before, "a busy session ends last"
        service = counters(forwarder)["tiny"]
        assert 0 < service["sessions"] < count, "the bound was reached"
        assert service["made_room"] >= count + 1 - service["sessions"]
        assert service["refused_connect_failed"] == 0
        (worker,) = forwarder.workers()
        assert len(processes.open_files(worker)) < descriptors
        assert not forwarder.log("defect"), forwarder.log("defect")[0]


def test_kept_ports_never_use_up_the_slice_of_other_services(lab, udp_servers, family):
    """The port of a kept-port socket is not available to shared sockets."""
    ports, address = range(42000, 42064), getattr(lab["a"], family)
    services = [udp_service(lab, "keeper", SLICED, source_port="keep"), udp_service(lab, "sliced", OTHER)]
    document = make_config(*services, source_ports={"first": ports[0], "last": ports[-1]})
    with Forwarder(lab, document) as forwarder, contextlib.ExitStack() as stack:
        for port in ports:
            assert udp.who(stack.enter_context(udp.client(lab, address, port)), (address, SLICED))[0] == "b"
        for host in ("client", "router"):
            assert ask(lab, family, OTHER, host=host)[2] in ports
        assert counters(forwarder)["keeper"]["source_kept"] > len(ports) / 2


@pytest.mark.parametrize("start", [42000, 10000], ids=["chosen by the kernel", "outside of its range"])
def test_the_most_idle_session_ends_when_a_client_has_used_all_ports(lab, udp_servers, family, start):
    ports, to = 64, (getattr(lab["a"], family), SLICED)
    document = make_config(udp_service(lab, "sliced", SLICED), source_ports={"first": start, "last": start + ports - 1})
    with Forwarder(lab, document) as forwarder, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(udp.client(lab, to[0])) for _port in range(ports + 1)]
        *those_before, quiet, last = socks
        seen = {sock: [udp.who(sock, to) for _question in range(1 if sock is quiet else 3)][-1] for sock in socks[:-1]}
        assert {port for _name, _address, port in seen.values()} == set(range(start, start + ports))
        assert udp.who(last, to)[2] == seen[quiet][2], "it has the port of the quiet one"
        assert {sock: udp.who(sock, to) for sock in those_before} == {sock: seen[sock] for sock in those_before}
        found = counters(forwarder)["sliced"]
        assert (found["sessions"], found["made_room"], found["source_no_port_left"]) == (ports, 1, 1)
        with udp.client(lab, to[0], host="router") as sock:
            assert udp.who(sock, to)[0] == "b", "another client has its own"
