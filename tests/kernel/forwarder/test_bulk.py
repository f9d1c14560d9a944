# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bulk through pipes, as the daemon's own user: bytes, memory, what is left when one side stops; and timeouts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import threading
import time

import pytest

from tests.support import processes, tcp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import AS_DAEMON, Forwarder, as_user, build_archive, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

BULK, IDLE, GONE, SOON = 7400, 7401, 7402, 7403
MIB = 1 << 20


PIECE = random.Random(5).randbytes(MIB)


@pytest.fixture(scope="module")
def forwarder(lab):
    document = make_config(
        make_service(lab, "bulk", BULK, 9000, backends=["b"]),
        make_service(lab, "idle", IDLE, 9000, backends=["b"], idle_timeout=2, half_closed_timeout=1, keepalive=7),
        make_service(lab, "gone", GONE, 9000, backends=["b"], tcp_user_timeout=1),
        make_service(lab, "soon", SOON, 9000, backends=["b"], keepalive=1),
    )
    with Forwarder(lab, document, wrapper=AS_DAEMON) as forwarder:
        yield forwarder


@pytest.fixture(params=FAMILIES)
def ends(lab, forwarder, request):
    """A function that returns the two ends of a connection through the forwarder."""
    host, family = lab["b"], request.param
    with host.inside():
        kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        listener = socket.create_server((getattr(host, family), 9000), family=kind, backlog=512)
    listener.settimeout(PATIENCE)
    with listener:
        yield lambda port=BULK: (tcp.connect(lab, getattr(lab["a"], family), port), tcp.accept(listener))


def pipes(pid):
    """How many pipes a process has."""
    return len({one for one in processes.open_files(pid) if one.startswith("pipe:")})


def pour(sock, mebibytes):
    def run():
        with contextlib.suppress(OSError):  # the test may reset one of the ends
            for _piece in range(mebibytes):
                sock.sendall(PIECE)
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def drink(sock):
    """Read to the end; return (bytes, digest)."""
    total, digest, buffer = 0, hashlib.blake2b(), bytearray(MIB)
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
        total += count
    return total, digest.digest()


def poured(mebibytes):
    digest = hashlib.blake2b()
    for _piece in range(mebibytes):
        digest.update(PIECE)
    return mebibytes * MIB, digest.digest()


only_ipv4 = pytest.mark.parametrize("ends", ["ipv4"], indirect=True)


@pytest.mark.parametrize(
    ("ends", "direction", "size"),
    [("ipv4", "down", 1024), ("ipv4", "up", 64), ("ipv6", "down", 64), ("ipv6", "up", 64)],
    indirect=["ends"],
)
def test_a_gibibyte_arrives_intact_without_growing_memory(lab, forwarder, ends, new_lines, direction, size):
    client, server = ends()
    source, sink = (client, server) if direction == "up" else (server, client)
    worker = forwarder.workers()[0]
    before = processes.resident(worker)
    with client, server:
        pouring = pour(source, size)
        assert drink(sink) == poured(size)
        pouring.join(PATIENCE)
        assert processes.resident(worker) - before < 2 * MIB
        sink.sendall(b"the other direction is still open")
        sink.shutdown(socket.SHUT_WR)
        assert tcp.receive_all(source) == b"the other direction is still open"
    (line,) = new_lines(1)
    assert line["ended"] == "closed"
    assert line["bytes_to_backend" if direction == "up" else "bytes_to_client"] == size * MIB


def test_a_slow_reader_of_a_fast_gibibyte_costs_a_pipe_and_no_cpu(lab, forwarder, ends, new_lines):
    client, server = ends()
    worker = forwarder.workers()[0]
    before = processes.resident(worker)
    with client, server:
        pouring = pour(server, 1024)
        for _piece in range(30):
            client.recv(MIB)
            time.sleep(0.01)
        eventually(lambda: _stands_still(worker), "the worker waits for the reader")
        assert processes.resident(worker) - before < 2 * MIB
        rest = drink(client)
        pouring.join(PATIENCE)
        assert processes.resident(worker) - before < 2 * MIB
        client.shutdown(socket.SHUT_WR)
    assert rest[0] > 0
    assert new_lines(1)[0]["bytes_to_client"] == 1024 * MIB


def _stands_still(pid):
    ticks = processes.cpu_ticks(pid)
    time.sleep(0.3)
    return processes.cpu_ticks(pid) - ticks <= 1


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_a_reset_leaves_no_pipe_with_bytes_of_another_connection(lab, forwarder, ends, new_lines, who):
    """The next connection must not get data from the pipe of this one."""
    client, server = ends()
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _piece in range(16):
            server.sendall(PIECE)
    assert client.recv(1000)
    tcp.reset(client if who == "reader" else server)
    if who == "writer":
        with pytest.raises(ConnectionResetError):
            drink(client)
    for sock in (client, server):
        sock.close()
    assert new_lines(1)[0]["ended"] in ("client reset", "backend reset")
    client, server = ends()
    with client, server:
        pouring = pour(server, 8)
        assert drink(client) == poured(8)
        pouring.join(PATIENCE)


def _narrow(ends):
    """Set small buffers, so that many connections fit."""
    client, server = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
    server.setblocking(False)
    return client, server


@pytest.mark.ipv4_only
@only_ipv4
def test_many_stalled_streams_have_bounded_pipes_and_resume(lab, forwarder, ends):
    worker = forwarder.workers()[0]
    held = [_narrow(ends()) for _stream in range(100)]
    sent, most = [0] * len(held), 0

    def all_stand_still():
        nonlocal most
        moved = 0
        for index, (_client, server) in enumerate(held):
            with contextlib.suppress(BlockingIOError):
                count = server.send(PIECE[: 1 << 18])
                sent[index] += count
                moved += count
        most = max(most, pipes(worker))
        return not moved and processes.asleep(worker)

    eventually(all_stand_still, "every queue on the way is full")
    assert most <= 100 + 8, "a pipe for each direction that is bulk, and the log, the lifeline and the wakeup"
    for index in (0, 50, 99):
        client, server = held[index]
        server.shutdown(socket.SHUT_WR)
        assert drink(client)[0] == sent[index]
    for client, server in held:
        client.close()
        server.close()
    forwarder.settled()
    assert pipes(worker) <= 24, "the spare ones, the log, the lifeline and the wakeup"
    assert not forwarder.log("defect")


TAKE = """
from l4proxy._forwarder.tcp.splice import PIPE_SIZE, PipePool, most_pipes
pool = PipePool(400)
pipes = [pool.take() for _pipe in range(400)]
print(sum(pipe.size for pipe in pipes if pipe) // PIPE_SIZE, most_pipes(1, 20000))
"""


@pytest.mark.ipv4_only
def test_an_ordinary_user_gets_as_many_pipes_as_the_bound_and_the_kernel_allow(lab):
    directory = lab.tmp / "pipes"
    directory.mkdir(mode=0o755)
    lab.tmp.chmod(0o711)
    archive = build_archive(directory)
    program = ["env", f"PYTHONPATH={archive}", "/usr/bin/python3", "-c", TAKE]
    # The kernel counts pipe pages by user on the whole machine, so this user has no other processes.
    alone = as_user(100_000 + os.getpid())
    got, bound = map(int, lab["a"].run([*alone, *program]).stdout.split())
    assert bound <= got < 400, "the kernel refuses an ordinary user, and not before the bound"
    all_of_them = lab["a"].run(program).stdout.split()
    assert int(all_of_them[0]) == 400, "root is refused nothing: this test would prove nothing"


TEST_TIMEOUTS = [
    (False, "idle timeout", 2, 3.5),
    (True, "half-closed timeout", 1, 2.5),
]


@pytest.mark.parametrize(("half", "reason", "soonest", "latest"), TEST_TIMEOUTS)
def test_an_idle_session_is_reset(lab, forwarder, ends, new_lines, half, reason, soonest, latest):
    client, server = ends(IDLE)
    with client, server:
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        if half:
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        begun = time.monotonic()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        assert soonest - 0.1 <= time.monotonic() - begun < latest + 2
        if not half:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert new_lines(1)[0]["ended"] == reason


def test_a_session_with_occasional_traffic_stays_open(lab, forwarder, ends):
    client, server = ends(IDLE)
    with client, server:
        begun = time.monotonic()
        while time.monotonic() - begun < 4:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            time.sleep(0.2)


def test_keepalive_runs_on_the_backend_side_too(lab, forwarder, ends):
    client, server = ends(IDLE)
    with client, server:
        eventually(
            lambda: _timers(lab, 9000) == {"keepalive"}, "the upstream socket has a keepalive timer", patience=10
        )
        assert _timers(lab, IDLE) == {"keepalive"}


def _timers(lab, port):
    """The timers of a's connections with a port."""
    listing = lab["a"].run(["ss", "-Htno", "state", "established", f"( dport = :{port} or sport = :{port} )"]).stdout
    return {
        line.rpartition("timer:(")[2].split(",")[0] if "timer:" in line else "none" for line in listing.splitlines()
    }


@contextlib.contextmanager
def _unplugged(lab, name):
    """Drop everything that a host receives."""
    ruleset = (
        "table inet unplugged {\nchain in {\ntype filter hook prerouting priority raw\ntcp dport 9000 drop\n}\n}\n"
    )
    lab[name].run(["nft", "-f", "-"], input=ruleset)
    try:
        yield
    finally:
        lab[name].run(["nft", "delete", "table", "inet", "unplugged"])


def test_a_vanished_backend_is_dropped_after_tcp_user_timeout(lab, forwarder, ends, new_lines):
    """The control: without that timeout the kernel retransmits for a quarter of an hour."""
    (client, server), (other, other_server) = ends(GONE), ends(BULK)
    with client, server, other, other_server:
        with _unplugged(lab, "b"):
            begun = time.monotonic()
            for sock in (client, other):
                sock.sendall(b"is anybody there?")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert 1 <= time.monotonic() - begun < 5
            other.settimeout(1)
            with pytest.raises(TimeoutError):
                other.recv(1)
        assert other_server.recv(100) == b"is anybody there?", "it was sent again"
    ended = {line["service"]: line["ended"] for line in new_lines(2)}
    assert ended == {"gone": "backend timed out (ETIMEDOUT)", "bulk": "closed"}


@pytest.mark.parametrize(
    ("port", "said", "errors"), [(SOON, False, {"ETIMEDOUT"}), (GONE, True, {"EHOSTUNREACH", "ENETUNREACH"})]
)
def test_a_vanished_client_is_logged_as_timed_out(lab, forwarder, ends, new_lines, port, said, errors):
    """By keepalive; or by the user timeout, after ICMP errors of its router."""
    client, server = ends(port)
    with client, server, _vanished(lab, said):
        if port == GONE:
            server.sendall(b"is anybody there?")
        with pytest.raises(ConnectionResetError):
            server.recv(1)
    (line,) = new_lines(1)
    assert line["ended"] in {f"client timed out ({error})" for error in errors}


@contextlib.contextmanager
def _vanished(lab, said):
    """Drop packets from a to the client; with ``said`` the router sends ICMP errors."""
    verdict = "reject with icmpx type host-unreachable" if said else "drop"
    rule = f"oifname {lab['router'].on('outside').dev} {verdict}"
    chain = f"chain forward {{\ntype filter hook forward priority 0\n{rule}\n}}\n"
    lab["router"].run(["nft", "-f", "-"], input=f"table inet vanished {{\n{chain}}}\n")
    try:
        yield
    finally:
        lab["router"].run(["nft", "delete", "table", "inet", "vanished"])
