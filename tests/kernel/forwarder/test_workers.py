# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several workers: even distribution, failures of one worker, and reloads that change their number."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import pytest

from tests.support import tcp
from tests.support.forwarding import Forwarder, make_config, web_and_raw
from tests.support.waiting import eventually, in_threads

WEB, RAW = 8000, 7000


def document(lab, workers, **options):
    return make_config(*web_and_raw(lab, WEB, RAW), workers=workers, **options)


@pytest.fixture
def forwarder(lab, servers):
    with Forwarder(lab, document(lab, 2)) as forwarder:
        yield forwarder


def by_slot(forwarder):
    """The workers of the current generation in the status, by slot."""
    status = forwarder.status()
    return {worker["slot"]: worker for worker in status["workers"] if worker["generation"] == status["generation"]}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_connections_are_spread_evenly_over_the_workers(lab, forwarder, family):
    count = 400
    for _connection in range(count):
        assert tcp.get(lab, getattr(lab["a"], family), WEB)
    shares = Counter(line["worker"] for line in forwarder.connections(count))
    # Five standard deviations of a fair coin.
    assert shares[0] == pytest.approx(count / 2, abs=5 * (count / 4) ** 0.5)
    assert sum(shares.values()) == count


@pytest.mark.ipv4_only
def test_a_killed_worker_loses_only_its_own_connections(lab, forwarder, listener):
    pairs = [tcp.pair(lab, listener, RAW) for _connection in range(24)]
    victim = by_slot(forwarder)[0]
    assert 0 < victim["sessions"] < len(pairs), "both workers have some"
    os.kill(victim["pid"], signal.SIGKILL)
    lost = 0
    for client, server in pairs:
        with client, server:
            try:
                client.sendall(b"!")
                server.sendall(b"?")
                lost += (server.recv(1), client.recv(1)) != (b"!", b"?")
            except OSError:
                lost += 1
    assert lost == victim["sessions"]
    eventually(lambda: by_slot(forwarder)[0]["state"] == "serving", "it is replaced", forwarder.show)
    assert by_slot(forwarder)[0]["pid"] != victim["pid"]
    assert by_slot(forwarder)[0]["sessions"] == 0, "what the dead worker had open is forgotten"
    eventually(lambda: by_slot(forwarder)[1]["sessions"] == 0, "the others have ended by themselves")


@pytest.mark.ipv4_only
def test_a_hanging_worker_is_replaced_and_waiting_clients_are_served(lab, forwarder):
    victim = by_slot(forwarder)[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    answers = in_threads(lambda _index: tcp.get(lab, lab["a"].ipv4, WEB), 20)
    assert len(answers) == 20, "half of them arrived in its slot"
    (hangs,) = forwarder.log("worker hangs")
    assert (hangs["worker"], hangs["slot"]) == (victim, 0)
    assert hangs["reason"].endswith("it is stopped (by a signal or a debugger)")
    eventually(lambda: by_slot(forwarder)[0]["state"] == "serving", "it is replaced", forwarder.show)
    assert forwarder.status()["restarts"] == 1


@pytest.mark.ipv4_only
@pytest.mark.parametrize(("name", "sentence"), [
    ("l4-worker1", "worker 1 does not beat since "),
    ("l4-checker", "the health checker does not beat since "),
    (None, "the forwarder does not answer within 0.8 s"),
])  # fmt: skip
def test_a_hanging_process_makes_the_proxy_unhealthy(lab, forwarder, name, sentence):
    forwarder.serve()
    eventually(lambda: forwarder.healthy()[0] and forwarder.children("l4-checker"), "it is healthy")
    (pid,) = forwarder.children(name) if name else [forwarder.process.pid]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        while (answer := forwarder.healthy())[0] and time.monotonic() < stopped + 5:
            time.sleep(0.01)
        assert time.monotonic() - stopped < 1.5
        assert sentence in answer[1]
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: forwarder.healthy() == (True, "this proxy should get clients"), "it is healthy again")


@pytest.mark.ipv4_only
def test_a_paused_machine_restarts_no_worker(lab, forwarder):
    everybody = [*forwarder.workers(), *forwarder.children("l4-checker"), forwarder.process.pid]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    for pid in reversed(everybody):  # the supervisor first: the worst case
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
    looks = forwarder.status()["restarts"]
    time.sleep(3)
    assert (looks, forwarder.status()["restarts"], forwarder.log("worker hangs")) == (0, 0, [])
    assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
def test_a_sibling_covers_the_slot_of_a_worker_that_keeps_dying(lab, forwarder):
    for death in range(6):  # the last one is replaced only after 2 s
        eventually(lambda: by_slot(forwarder)[0]["state"] == "serving", "it is there", forwarder.show)
        os.kill(by_slot(forwarder)[0]["pid"], signal.SIGKILL)
        eventually(lambda death=death: len(forwarder.log("worker to be replaced")) > death, "its death is noticed")
    assert by_slot(forwarder)[1]["covers"] == [0]
    begun = time.monotonic()
    for _connection in range(30):  # half of them arrive in the dead worker's slot
        assert tcp.get(lab, lab["a"].ipv4, WEB)
    assert by_slot(forwarder)[0]["state"] == "gone" or time.monotonic() - begun > 2, (
        "nobody had to wait for its successor"
    )
    eventually(lambda: by_slot(forwarder)[0]["state"] == "serving", "it comes back", forwarder.show)
    assert by_slot(forwarder)[1]["covers"] == []
    assert forwarder.status()["restarts"] == 6


def test_reloads_with_more_and_fewer_workers_lose_no_connection(lab, forwarder, listener):
    """Continuous requests during reloads: nothing is refused, reset or left waiting."""
    held = [tcp.pair(lab, listener, RAW) for _connection in range(8)]
    stop, done = threading.Event(), Counter()

    def ask(index):
        while not stop.is_set():
            done[tcp.get(lab, lab["a"].ipv4 if index % 2 else lab["a"].ipv6, WEB)] += 1

    results = []
    load = threading.Thread(target=lambda: results.append(in_threads(ask, 4, patience=120)))
    load.start()
    for workers in (4, 1, 3, 2, 2):
        forwarder.configure(document(lab, workers))
        before = sum(done.values())
        outcome = forwarder.reload()
        assert outcome.returncode == 0, outcome.stderr
        eventually(lambda before=before: sum(done.values()) > before + 40, "requests go on")
        assert sorted(by_slot(forwarder)) == list(range(workers))
    stop.set()
    load.join()
    assert results == [[None] * 4], "a thread ended by an error"
    assert set(done) == {b"b\n", b"c\n", b"d\n"}
    assert (forwarder.runtime()["generation"], forwarder.runtime()["pid"]) == (6, forwarder.process.pid)
    for client, server in held:
        with client, server:
            tcp.assert_open(client, server)
    assert {line["ended"] for line in forwarder.log("connection")} == {"closed"}


@pytest.mark.ipv4_only
def test_after_a_reload_with_fewer_workers_every_listening_socket_is_served(lab, servers):
    with Forwarder(lab, document(lab, 4)) as forwarder:
        forwarder.configure(document(lab, 1))
        assert forwarder.reload().returncode == 0
        eventually(lambda: len(forwarder.workers()) == 1, "old workers have ended", forwarder.show)
        sockets = [name for name in forwarder.log("serving")[-1]["listeners"] if name.startswith(f"tcp:0.0.0.0:{WEB}#")]
        assert len(sockets) == 4, "a socket that leaves its group resets what is queued in it"
        for _connection in range(40):
            assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
def test_counters_and_overrides_survive_reloads(lab, forwarder):
    for _connection in range(12):
        tcp.get(lab, lab["a"].ipv4, WEB)
    forwarder.connections(12)
    before = [backend["connections"] for backend in forwarder.status()["services"][0]["backends"]]
    assert sum(before) == 12
    # Each of the two workers has a round of its own, so it differs by at most one connection.
    assert all(one == pytest.approx(4, abs=2) for one in before)
    assert forwarder.ask("drain", service="web", backend="c")["changed"] is True
    assert forwarder.ask("weight", service="web", backend="b", weight=3)["changed"] is True
    for _reload in range(2):
        assert forwarder.reload().returncode == 0
    web, raw = forwarder.status()["services"]
    assert (web["connections"], raw["connections"]) == (12, 0)
    assert [backend["connections"] for backend in web["backends"]] == before
    assert [(backend["state"], backend["weight"]) for backend in web["backends"]][:2] == [
        ("unknown", 3),
        ("draining", 1),
    ]
    answers = Counter(tcp.get(lab, lab["a"].ipv4, WEB) for _connection in range(40))
    assert set(answers) == {b"b\n", b"d\n"}
    assert answers[b"b\n"] == pytest.approx(30, abs=2)
