# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on two workers: limits hold for both together, memory is bounded, other clients are served."""

from __future__ import annotations

import contextlib
import re
import resource
import select
import socket
import struct
import time
from collections import Counter
from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import splice

from tests.support import processes, tcp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import eventually, in_threads

pytestmark = pytest.mark.usefixtures("servers")
WEB, HELD, ALL, EACH, RATE = range(7700, 7705)
PER_WORKER = 2 << 20  # bytes by which a worker may grow during an attack
DESCRIPTORS = 400
LISTENER = 9100  # on b


@pytest.fixture(scope="module")
def servers(lab):
    with tcp.answering(lab, ["b"], 9000):
        yield


def document(lab):
    def held(name, port, **limits):
        return make_service(lab, name, port, 9100, backends=["b"], **({"limits": limits} if limits else {}))

    return make_config(
        make_service(lab, "web", WEB, 9000, backends=["b"]),
        held("held", HELD),
        held("all", ALL, connections=10, at_limit="refuse"),
        held("each", EACH, connections_per_client=10),
        make_service(lab, "rate", RATE, 9000, backends=["b"], limits={"rate_per_client": 10}),
        workers=2,
    )


@contextlib.contextmanager
def bounded(forwarder, most=PER_WORKER):
    """Assert that the block leaves no memory, descriptor or defect behind."""
    workers = forwarder.workers()
    before = {pid: (processes.resident(pid), descriptors(pid)) for pid in workers}
    yield

    def grown():
        """The additional descriptors of each worker; empty pipes are kept for later connections."""
        return {pid: descriptors(pid) - files for pid, (_size, files) in before.items()}

    eventually(
        lambda: all(more["socket"] <= 2 and more["pipe"] <= splice.SPARE for more in grown().values()),
        "every session is over",
        lambda: f"{grown()}\n{forwarder.show()}",
    )
    assert forwarder.workers() == workers, "nobody died"
    assert {
        pid: processes.resident(pid) - size
        for pid, (size, _files) in before.items()
        if processes.resident(pid) - size > most
    } == {}
    assert not forwarder.log("defect"), forwarder.log("defect")[0]


def descriptors(pid):
    """The number of sockets, pipes (both ends count as one) and other files of a process."""
    return Counter(one.partition(":")[0] for one in set(processes.open_files(pid)))


def served(lab, count=20):
    """Assert that ``count`` connections are answered, in both families; return the longest duration in seconds."""
    longest = 0.0
    for number in range(count):
        begun = time.monotonic()
        with tcp.connect(lab, getattr(lab["a"], FAMILIES[number % 2]), WEB) as sock:
            assert tcp.receive_all(sock)
        longest = max(longest, time.monotonic() - begun)
    return longest


def outcomes(lab, port, count, address):
    """Open ``count`` connections; return those that were not refused."""
    admitted = []
    for _connection in range(count):
        try:
            sock = tcp.connect(lab, address, port)
            if sock.recv(1) == b"?":
                admitted.append(sock)
        except ConnectionResetError:
            pass
    return admitted


# -- limits ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def greeting(lab):
    """A server on b that says "?" to everybody and keeps the connection."""
    kept = []

    def greet(sock, _peer):
        kept.append(sock)
        sock.sendall(b"?")

    with tcp.serving(lab, ["b"], 9100, greet):
        yield
    for sock in kept:
        sock.close()


@pytest.mark.parametrize(
    ("port", "reason"), [(ALL, "connection limit of the service"), (EACH, "connection limit of the client")]
)
def test_workers_share_a_limit_of_connections(lab, forwarder, new_lines, port, reason, family):
    with greeting(lab):
        admitted = outcomes(lab, port, 40, getattr(lab["a"], family))
        # Sequentially, so each worker knows what the other admitted.
        assert len(admitted) == 10
        for sock in admitted[:4]:
            tcp.reset(sock)  # after a FIN the server would keep its half
        new_lines(34)
        again = outcomes(lab, port, 10, getattr(lab["a"], family))
        assert len(again) == 4
        for sock in (*admitted[4:], *again):
            tcp.reset(sock)
    lines = new_lines(50)
    assert Counter(line["ended"] for line in lines)[reason] == 36
    shares = Counter(line["worker"] for line in lines if line["ended"] != reason)
    assert set(shares) == {0, 1}, "both had some"


@pytest.mark.ipv4_only
def test_workers_share_a_rate_limit(lab, forwarder, new_lines):
    begun, count = time.monotonic(), 60
    for _connection in range(count):
        with contextlib.suppress(ConnectionResetError), tcp.connect(lab, lab["a"].ipv4, RATE) as sock:
            tcp.receive_all(sock)
    seconds = time.monotonic() - begun
    lines = new_lines(count)
    admitted = [line for line in lines if line["ended"] != "rate limit of the client"]
    assert 10 <= len(admitted) <= 10 + 10 * seconds + 1
    assert {line["worker"] for line in lines} == {0, 1}


# -- floods ----------------------------------------------------------------------------------------------------------


def syn(source, destination, port, number):
    """A TCP SYN with an IPv4 header."""

    def checksum(data):
        total = sum(struct.unpack(f"!{len(data) // 2}H", data))
        total = (total & 0xFFFF) + (total >> 16)
        return ~(total + (total >> 16)) & 0xFFFF

    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = (1024 + number % 60000, port, number, 0, 5 << 12 | 0x02, 64240)
    pseudo = addresses + struct.pack("!2H", socket.IPPROTO_TCP, 20)
    segment = struct.pack("!HHIIHHHH", *head, checksum(pseudo + struct.pack("!HHIIHHHH", *head, 0, 0)), 0)
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses + segment


def half_open(lab):
    """The number of half-open connections on a."""
    lines = lab["a"].run(["ss", "-Htn", "state", "syn-recv"]).stdout.splitlines()
    return len([line for line in lines if f":{HELD} " in line])


@pytest.mark.ipv4_only
def test_half_open_connections_never_reach_a_worker(lab, forwarder, new_lines):
    """20,000 SYNs from unused addresses exceed every backlog; other clients get in by SYN cookies."""
    with lab["client"].inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ticks = sum(map(processes.cpu_ticks, forwarder.workers()))
    with bounded(forwarder), raw:
        for number in range(20_000):
            source = f"198.18.1.{100 + number % 100}"
            raw.sendto(syn(source, lab["a"].ipv4, HELD, number), (lab["a"].ipv4, 0))
        assert half_open(lab) > 100, "the control: there is a flood"
        assert sum(map(processes.cpu_ticks, forwarder.workers())) - ticks <= 5
        served(lab)
        with tcp.listen(lab, "b", 9100) as listener:  # also the flooded service
            for end in tcp.pair(lab, listener, HELD):
                end.close()
    assert {line["client"] for line in new_lines(21)} <= {lab["client"].ipv4, lab["client"].ipv6}


def test_eight_clients_that_connect_and_reset_leave_nothing_behind(lab, forwarder):
    def attack(index):
        for number in range(400):
            sock = tcp.connect(lab, getattr(lab["a"], FAMILIES[index % 2]), WEB)
            if number % 2:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x")
            tcp.reset(sock)

    before, accepted_before = forwarder.settled(), accepted(forwarder)
    with bounded(forwarder):
        in_threads(lambda index: attack(index) if index else served(lab, 100), 9)
    came = accepted(forwarder) - accepted_before
    # If a busy machine drops the ACK of a handshake, the reset comes before there is anything to accept.
    assert 8 * 360 + 100 <= came <= 8 * 400 + 100
    forwarder.connections(before + came)


def accepted(forwarder):
    """The number of connections accepted so far."""
    return sum(service["connections"] for service in forwarder.status()["services"])


def test_slow_readers_and_writers_cost_bounded_memory_and_no_cpu(lab, forwarder, listener, family):
    """60 clients that do not read while the backend sends, and 60 that send a single byte."""
    deaf, mute = [], []
    with bounded(forwarder):
        for clients in (deaf, mute):
            clients += [tcp.pair(lab, listener, HELD) for _client in range(60)]
        sizes = [processes.resident(pid) for pid in forwarder.workers()]
        chunk = b"\xaa" * (1 << 20)
        for _client, server in deaf:
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while server.send(chunk):
                    pass
        served(lab, 50)
        grown = [processes.resident(pid) - size for pid, size in zip(forwarder.workers(), sizes)]
        assert max(grown) < PER_WORKER, "each of them has at most a chunk"
        ticks = sum(map(processes.cpu_ticks, forwarder.workers()))
        time.sleep(0.5)
        assert sum(map(processes.cpu_ticks, forwarder.workers())) - ticks <= 5, "who waits costs nothing"
        for pair in (*deaf, *mute):
            for end in pair:
                tcp.reset(end)


@pytest.mark.ipv4_only
def test_without_free_descriptors_clients_wait_and_none_is_lost(lab, servers, listener):
    """Clients beyond the descriptors of both workers wait in the backlog; others continue, and none is lost."""
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with Forwarder(lab, document_for_descriptors(lab), preexec_fn=limit) as forwarder:
        port, count = HELD + 100, DESCRIPTORS
        clients = [tcp.connect(lab, lab["a"].ipv4, port) for _client in range(count)]
        for client in clients:
            client.sendall(b"?")
        eventually(
            lambda: {line["worker"] for line in forwarder.log("accept paused")} == {0, 1}, "both pause", forwarder.show
        )
        assert all(re.search("RLIMIT_NOFILE", line["reason"]) for line in forwarder.log("accept paused"))
        sessions = [worker["sessions"] for worker in forwarder.status()["workers"]]
        assert all(0 < number < DESCRIPTORS // 2 for number in sessions)
        waiting = set(clients)
        for _client in clients:  # each one that ends admits another
            with tcp.accept(listener) as server:
                assert server.recv(1) == b"?"
                server.sendall(b"!")
            for client in select.select(waiting, [], [], 0)[0]:
                assert client.recv(1) == b"!"
                client.close()
                waiting.discard(client)
        for client in waiting:
            assert client.recv(1) == b"!"
            client.close()
        forwarder.connections(count)
        assert len(forwarder.workers()) == 2
        assert not forwarder.log("worker ended")


def document_for_descriptors(lab):
    return make_config(make_service(lab, "held", HELD + 100, 9100, backends=["b"]), workers=2)
