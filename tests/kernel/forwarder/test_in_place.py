# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configs taken in place: the workers stay, and so do their sessions; what cannot be taken leads to new processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support import processes, tcp, udp
from tests.support.addresses import FAMILIES, address_of
from tests.support.forwarding import BACKENDS, Forwarder, build_archive, make_config, make_service
from tests.support.waiting import eventually

WEB, OLD, DATAGRAMS, RANGE = 8000, 7000, 7001, 6100
SLICES = [{"first": 41000, "last": 41999}, {"first": 42000, "last": 42999}, None]
CHANGES = int(os.environ.get("L4PROXY_CHANGES", "24"))
RATE = 3  # connections per second of a client
GROWTH = 1 << 20  # bytes by which a process may grow, whatever the number of changes


def document(lab, step=0, **options):
    """The config after ``step`` changes: services "old" and "datagrams" stay, with other settings."""
    settings = {
        "limits": {"connections": 100 + step, "connections_per_client": 50} if step % 4 < 2 else {},
        "idle_timeout": 300 + step,
        "balance": ("round_robin", "least_connections", "source_hash", "random")[step % 4],
    }
    backends = [name for number, name in enumerate(BACKENDS) if number != step % 4]
    web = make_service(lab, "web", WEB, 9001, backends, **settings, source_port="any")
    for number, backend in enumerate(web["backends"]):
        backend["weight"] = 1 + (step + number) % 3
    if step % 2:
        web["health"] = {"interval": 1 + step % 5, **({"agent": {"port": 9707}} if step % 4 == 1 else {})}
    services = [
        web,
        make_service(lab, "old", OLD, 9000, ["b", *(["c"] if step % 3 else [])], idle_timeout=600 + step),
        make_service(lab, "datagrams", DATAGRAMS, 9000, ["b"], protocol="udp", idle_timeout=600 + step),
    ]
    for backend in services[1]["backends"]:
        backend.update({"backup": True} if step % 2 else {"priority": 1 + step}) if backend["name"] != "b" else None
    if step % 5 > 1:
        ranged = make_service(lab, f"range{step % 5}", RANGE, 9001, ["d"])
        for listener in ranged["listen"]:
            listener["port"] = f"{RANGE}-{RANGE + step % 5}"
        services.append(ranged)
    if SLICES[step % 3]:
        options["source_ports"] = SLICES[step % 3]
    return make_config(*services, **{"workers": 2, **options})


def change(forwarder, new) -> dict:
    """Reload with this config, without ``l4proxy reload``, which takes longer; return the result."""
    before = forwarder.runtime()["last_reload"]["attempt"]
    forwarder.configure(new)
    forwarder.process.send_signal(signal.SIGHUP)
    eventually(lambda: forwarder.runtime()["last_reload"]["attempt"] > before, "the reload is done", forwarder.show)
    return forwarder.runtime()["last_reload"]


@pytest.fixture
def forwarder(lab):
    with tcp.answering(lab, BACKENDS, 9001), Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


class Sessions:
    """A TCP connection and a UDP session of each family."""

    def __init__(self, lab, stack, servers):
        self._lab = lab
        self._pairs, self._sockets = [], {}
        for family in FAMILIES:
            with tcp.listen(lab, "b", 9000, family) as listener:
                self._pairs += map(stack.enter_context, tcp.pair(lab, listener, OLD))
            address = address_of(lab["a"], family)
            sock = stack.enter_context(udp.client(lab, address))
            self._sockets[sock] = address, udp.who(sock, (address, DATAGRAMS))
        assert servers

    def assert_tcp_open(self):
        for client, server in zip(self._pairs[::2], self._pairs[1::2]):
            tcp.assert_open(client, server)

    def assert_open(self):
        self.assert_tcp_open()
        for sock, (address, seen) in self._sockets.items():
            assert udp.who(sock, (address, DATAGRAMS)) == seen


@pytest.fixture
def sessions(lab, forwarder):
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(udp.serving(lab, 9000, ["b"]))
        yield Sessions(lab, stack, servers)


def processes_of(forwarder):
    return [forwarder.process.pid, *forwarder.workers()]


def settled(forwarder) -> bool:
    """Whether each process has the memory of one generation, and only the checker of the last one runs."""
    maps = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in processes_of(forwarder)]
    return {text.count("l4proxy-shared") for text in maps} == {1} and len(forwarder.children("l4-checker")) == 1


def own_memory(pid: int) -> int:
    """Anonymous memory of a process in bytes, swapped pages included.

    How many pages of files are resident, and which part of them is this process's (PSS), depends on other processes.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(size) << 10 for size in re.findall(r"^(?:Anonymous|Swap):\s+(\d+)", text, re.MULTILINE))


def assert_as_configured(lab, config):
    """Each new connection is served as this config says."""
    web = config["services"][0]
    addresses = {backend["name"] for backend in web["backends"]}
    ports = (
        range(config["source_ports"]["first"], config["source_ports"]["last"] + 1) if "source_ports" in config else ()
    )
    for family in FAMILIES:
        for _connection in range(3):
            with tcp.connect(lab, address_of(lab["a"], family), WEB) as sock:
                address, port = tcp.receive_all(sock).decode().split()
            assert address == address_of(lab["client"], family)
            assert int(port) in ports or not ports
    assert addresses
    width = {service["name"]: service for service in config["services"]}
    ranged = next((int(name[5:]) for name in width if name.startswith("range")), None)
    assert [tcp.refused(lab, RANGE + number) for number in range(6)] == [
        ranged is None or number > ranged for number in range(6)
    ]


def test_many_changes_keep_workers_sessions_memory_and_descriptors(lab, forwarder, sessions):
    """Backends, listeners, ranges, limits, slices, timeouts, weights and health checks come and go."""
    pids, usage = forwarder.workers(), {}
    for step in range(1, CHANGES + 1):
        config = document(lab, step)
        result = change(forwarder, config)
        assert (result["ok"], result["in_place"], result["new_processes_because"]) == (True, True, None)
        assert_as_configured(lab, config)
        sessions.assert_open()
        if step in (CHANGES // 2, CHANGES):
            change(forwarder, document(lab))
            eventually(lambda: settled(forwarder), "nothing of older generations is left", forwarder.show)
            usage[step] = {pid: (own_memory(pid), len(processes.open_files(pid))) for pid in processes_of(forwarder)}
    assert forwarder.workers() == pids
    first, last = usage[CHANGES // 2], usage[CHANGES]
    for pid, (memory, descriptors) in last.items():
        assert descriptors == first[pid][1]
        assert memory < first[pid][0] + GROWTH
    status = forwarder.status()
    assert status["generation"] == CHANGES + 3
    assert {worker["generation"] for worker in status["workers"]} == {status["generation"]}
    assert not forwarder.log("defect")


@contextlib.contextmanager
def in_the_middle(forwarder, config):
    """A change that has begun and does not go on: worker 1 is stopped. Yields its pid; the supervisor kills it soon."""
    workers = forwarder.status()["workers"]
    (victim,) = (one["pid"] for one in workers if (one["slot"], one["state"]) == (1, "serving"))
    os.kill(victim, signal.SIGSTOP)
    forwarder.configure(config)
    forwarder.process.send_signal(signal.SIGHUP)
    eventually(lambda: forwarder.log("change in place"), "the check is done", forwarder.show)
    yield victim


@pytest.mark.ipv4_only
def test_a_worker_that_dies_between_prepare_and_use_leads_to_new_processes(lab, forwarder, sessions):
    with in_the_middle(forwarder, document(lab, 2)) as victim:
        (survivor,) = set(forwarder.workers()) - {victim}
        queued = [tcp.connect(lab, lab["a"].ipv4, RANGE) for _connection in range(4)]
        os.kill(victim, signal.SIGKILL)
    eventually(lambda: forwarder.runtime()["generation"] == 2, "the reload is done", forwarder.show)
    result = forwarder.runtime()["last_reload"]
    assert (result["in_place"], result["new_processes_because"]) == (False, "worker 1 ended")
    assert_as_configured(lab, document(lab, 2))
    assert {line["pid"] for line in forwarder.log("draining")} == {survivor}
    for sock in queued:
        with sock:
            assert tcp.receive_all(sock), "the new listeners were not closed meanwhile"


@pytest.mark.ipv4_only
def test_a_request_in_the_middle_of_a_change_is_the_next_reload(lab, forwarder, sessions):
    pids = forwarder.workers()
    with in_the_middle(forwarder, document(lab, 2)) as victim:
        forwarder.configure(document(lab, 3))
        forwarder.process.send_signal(signal.SIGHUP)
        assert not forwarder.log("serving")[1:]
        os.kill(victim, signal.SIGCONT)
    eventually(lambda: forwarder.runtime()["generation"] == 3, "both are done", forwarder.show)
    assert forwarder.runtime()["last_reload"]["in_place"]
    assert_as_configured(lab, document(lab, 3))
    assert forwarder.workers() == pids
    sessions.assert_open()


@pytest.mark.ipv4_only
def test_a_worker_that_does_not_answer_leads_to_new_processes(lab, forwarder):
    with in_the_middle(forwarder, document(lab, 2)):
        eventually(lambda: forwarder.runtime()["generation"] == 2, "the reload is done", forwarder.show)
    assert forwarder.runtime()["last_reload"]["new_processes_because"] == "worker 1 ended", "killed because it hangs"
    assert_as_configured(lab, document(lab, 2))


@pytest.mark.ipv4_only
def test_a_stop_in_the_middle_of_a_change_ends_everything(lab, forwarder):
    with in_the_middle(forwarder, document(lab, 2)) as victim:
        forwarder.process.send_signal(signal.SIGTERM)
        os.kill(victim, signal.SIGCONT)
        assert forwarder.process.wait(20) == 0
    assert not forwarder.log("defect")


def limited(lab, step, **limits):
    service = make_service(lab, "old", OLD, 9000, ["b"], limits=limits, idle_timeout=600 + step)
    return make_config(service, make_service(lab, f"more{step}", WEB + step, 9001), workers=2)


@pytest.mark.ipv4_only
@pytest.mark.parametrize("limit", ["connections", "connections_per_client"])
def test_limits_hold_over_changes(lab, forwarder, listener, limit):
    """What moved counts once, and at once."""
    limits = {limit: 2, "at_limit": "refuse"}
    assert change(forwarder, limited(lab, 0, **limits))["in_place"]
    with contextlib.ExitStack() as held:
        for pair in (tcp.pair(lab, listener, OLD), tcp.pair(lab, listener, OLD)):
            for sock in pair:
                held.enter_context(sock)
        for step in range(1, 4):
            assert change(forwarder, limited(lab, step, **limits))["in_place"]
            assert is_refused(lab, OLD)
            eventually(lambda: open_sessions(forwarder) == (2, 2, 2), "the refused one has ended", forwarder.show)
            connections = forwarder.status()["services"][0]["connections"]
            assert connections == 2 + step, "each refused one counts"
        limits[limit] = 3
        assert change(forwarder, limited(lab, 4, **limits))["in_place"]
        with tcp.connection(lab, listener, OLD):
            assert is_refused(lab, OLD)
    eventually(lambda: forwarder.status()["services"][0]["sessions"] == 0, "all have ended", forwarder.show)
    with tcp.connection(lab, listener, OLD):
        assert forwarder.status()["services"][0]["connections"] == 8


def open_sessions(forwarder):
    """The open sessions of the first service, of its first backend and of all workers."""
    status = forwarder.status()
    service = status["services"][0]
    workers = sum(worker["sessions"] for worker in status["workers"])
    return service["sessions"], service["backends"][0]["active"], workers


def is_refused(lab, port) -> bool:
    try:
        with tcp.connect(lab, lab["a"].ipv4, port) as sock:
            return not sock.recv(1)
    except ConnectionResetError:
        return True


@pytest.mark.ipv4_only
def test_a_change_gives_no_client_a_new_rate(lab, forwarder):
    limits = {"rate_per_client": RATE, "at_limit": "refuse"}
    served, begun = 0, time.monotonic()
    for step in range(4):
        service = make_service(lab, "rated", RANGE, 9001, limits=limits, idle_timeout=60 + step)
        assert change(forwarder, make_config(service, workers=2))["in_place"]
        for _connection in range(6):
            with contextlib.suppress(ConnectionResetError), tcp.connect(lab, lab["a"].ipv4, RANGE) as sock:
                served += bool(tcp.receive_all(sock))
    assert served <= 3 + RATE * (time.monotonic() - begun)


@pytest.mark.ipv4_only
def test_sessions_of_a_removed_backend_stay_counted_over_a_change_and_an_exec(lab, listener, tmp_path):
    """They are in the memory of an older generation, which workers hold, also for the next program."""
    removed = document(lab, 1, drain_timeout=600)
    removed["services"][1]["backends"] = [make_service(lab, "old", OLD, 9000, ["c"])["backends"][0]]
    with Forwarder(lab, document(lab, drain_timeout=600), archive=build_archive(tmp_path)) as forwarder:
        with tcp.connection(lab, listener, OLD) as (client, server):
            for step in range(3):
                removed["services"][1]["idle_timeout"] = 100 + step
                assert change(forwarder, removed)["in_place"]
                assert sum(worker["sessions"] for worker in forwarder.status()["workers"]) == 1
            forwarder.change_archive()
            assert not change(forwarder, removed)["in_place"]
            assert sum(worker["sessions"] for worker in forwarder.status()["workers"]) == 1
            assert forwarder.status()["services"][1]["sessions"] == 1
            tcp.assert_open(client, server)
        eventually(lambda: len(forwarder.workers()) == 2, "the old worker ends", forwarder.show)
        assert forwarder.status()["services"][1]["sessions"] == 0
        assert forwarder.status()["services"][1]["connections"] == 1
        eventually(lambda: settled(forwarder), "nothing of older generations is left", forwarder.show)


class Traffic:
    """A TCP connection and a UDP session of each family, and what they have moved.

    ``moved`` are, for each: bytes to the backend and to the client, datagrams to the backend and to the client.
    """

    def __init__(self, lab, stack, forwarder):
        self._forwarder = forwarder
        self.moved = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]  # the byte is of tcp.pair
        self.pairs, self._clients = [], []
        self._server = stack.enter_context(udp.serving(lab, 9000, ["b"]))["b"]
        for family in FAMILIES:
            with tcp.listen(lab, "b", 9000, family) as listener:
                self.pairs.append(tuple(map(stack.enter_context, tcp.pair(lab, listener, OLD))))
            sock = stack.enter_context(udp.client(lab, address_of(lab["a"], family)))
            self._clients.append((sock, (address_of(lab["a"], family), DATAGRAMS), address_of(lab["client"], family)))

    def move(self, size):
        for (client, server), numbers in zip(self.pairs, self.moved):
            client.sendall(bytes(size))
            server.sendall(bytes(size // 2))
            assert len(server.recv(size, socket.MSG_WAITALL)) == size
            assert len(client.recv(size // 2, socket.MSG_WAITALL)) == size // 2
            numbers[:2] = numbers[0] + size, numbers[1] + size // 2
        for (sock, to, own), numbers in zip(self._clients, self.moved[2:]):
            udp.exchange(sock, bytes(size), to)
            seen = [one for peer, sizes in self._server.seen.items() if peer[0] == own for one in sizes]
            numbers[:] = sum(seen), sum(seen), len(seen), len(seen)  # one may have been repeated

    def counted(self):
        names = ("bytes_to_backend", "bytes_to_client", "datagrams_to_backend", "datagrams_to_client")
        by_name = {one["name"]: one["backends"][0]["families"] for one in self._forwarder.status()["services"]}
        return [[by_name[name][family][key] for key in names] for name in ("old", "datagrams") for family in FAMILIES]

    def assert_counted(self, what):
        eventually(lambda: self.counted() == self.moved, what, lambda: f"{self.counted()} instead of {self.moved}")


def test_traffic_of_open_sessions_is_counted_once_over_changes_and_new_processes(lab, tmp_path):
    def config(step):
        options = {"idle_timeout": 8, "connect_deadline": 5 + step}  # open sessions are counted each second
        old = make_service(lab, "old", OLD, 9000, ["b"], **options)
        return make_config(old, make_service(lab, "datagrams", DATAGRAMS, 9000, ["b"], protocol="udp", **options))

    with contextlib.ExitStack() as stack:
        forwarder = stack.enter_context(Forwarder(lab, config(0), archive=build_archive(tmp_path)))
        traffic = Traffic(lab, stack, forwarder)
        traffic.move(1000)
        traffic.assert_counted("open sessions are counted")
        for step in (1, 2):
            traffic.move(2000)
            assert change(forwarder, config(step))["in_place"]
            traffic.move(100)
        traffic.assert_counted("the same after changes")
        traffic.move(500)
        forwarder.change_archive()
        assert not change(forwarder, config(2))["in_place"]
        traffic.move(300)
        traffic.assert_counted("the same with new processes, which took the UDP sessions over")
        traffic.move(700)
        for sock in traffic.pairs[0]:
            sock.close()
        tcp.reset(traffic.pairs[1][0])
        forwarder.ask("kill", service="datagrams")
        eventually(lambda: not any(worker["sessions"] for worker in forwarder.status()["workers"]), "all have ended")
        assert traffic.counted() == traffic.moved
