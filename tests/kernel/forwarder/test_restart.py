# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts: the service manager keeps the listeners, and old workers finish their connections."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.kernel.forwarder.service_manager import ServiceManager, alive, kill, kill_all
from tests.kernel.forwarder.sessions import SERVERS, Session
from tests.lab import earlier
from tests.support import tcp
from tests.support.forwarding import BACKENDS, Forwarder, as_user, make_config, make_service, web_and_raw
from tests.support.waiting import PATIENCE, eventually, in_threads

WEB, RAW, HELD = 8000, 7000, 9100


@pytest.fixture(scope="module")
def lab(lab):
    for name in BACKENDS:
        lab.nginx(name, ports=[8080])
    return lab


@pytest.fixture
def listener(lab):
    with tcp.listen(lab, "b", 9000) as listener:
        yield listener


def document(lab, **options):
    return make_config(*web_and_raw(lab, WEB, RAW), workers=2, **options)


@pytest.fixture
def manager(lab, tmp_path):
    with closing(ServiceManager(lab.tmp / f"{tmp_path.name}.notify")) as manager:
        yield manager


@pytest.fixture
def first(lab, manager):
    """A running forwarder whose listeners are stored."""
    forwarder = manager.start(lab, document(lab)).serve()
    manager.listen_until("READY")
    assert len(manager.kept) == 8, "two services, two families, two slots"
    yield forwarder
    kill(alive([forwarder.process.pid]))


GONE = {
    "everything killed": (kill_all, False),
    "supervisor killed": (lambda forwarder: kill([forwarder.process.pid]), True),
}


@pytest.mark.ipv4_only
@pytest.mark.parametrize(("end", "streams_live"), GONE.values(), ids=GONE)
def test_no_client_is_refused_between_two_supervisors(lab, manager, first, listener, end, streams_live):
    client, server = tcp.pair(lab, listener, RAW)
    workers = first.workers()
    end(first)
    assert first.process.wait(PATIENCE) in (0, -signal.SIGKILL)
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.extend(in_threads(lambda _index: tcp.get(lab, lab["a"].ipv4, WEB), 20))
    )
    waiting.start()
    with client, server, manager.start(lab, document(lab), directory=first.directory) as second:
        waiting.join(PATIENCE)
        assert len(answers) == 20, "they waited in the backlog"
        assert len(second.log("listeners adopted")[0]["listeners"]) == 8
        if streams_live:
            tcp.assert_open(client, server)
            eventually(lambda: len(alive(workers)) == 1, "the one that has nothing to do has ended")
        else:
            assert server.recv(1) == b"", "the control: it is cut"
        server.close()
        client.close()
        eventually(lambda: not alive(workers), "the workers of before have ended", second.show)
        second.process.send_signal(signal.SIGTERM)
        manager.listen_until("STOPPING")
        assert second.process.wait(PATIENCE) == 0
        while manager.kept:
            manager.listen_until("FDSTOREREMOVE")
    with pytest.raises(ConnectionRefusedError):
        tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
@pytest.mark.parametrize("reloads", [0, 1])
def test_the_next_supervisor_kills_hanging_old_workers_after_its_drain_timeout(lab, manager, first, listener, reloads):
    client, server = tcp.pair(lab, listener, RAW)
    workers = first.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    kill([first.process.pid])
    first.process.wait()
    with client, server, manager.start(lab, document(lab, drain_timeout=1), directory=first.directory) as second:
        assert second.log("workers of the previous supervisor still drain")[0]["processes"] == len(workers)
        for _reload in range(reloads):
            assert second.reload().returncode == 0
        assert alive(workers) == workers
        eventually(lambda: not alive(workers), "they are killed", second.show)
        assert client.recv(1) == b""
        assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
@pytest.mark.parametrize("workers", [1, 2])
def test_a_deadline_that_is_set_later_ends_old_workers_of_a_killed_supervisor(lab, manager, first, listener, workers):
    """By a reload in place (2 workers as before) as well as by one with new processes (1)."""
    client, server = tcp.pair(lab, listener, RAW)
    old = first.workers()
    kill([first.process.pid])
    first.process.wait()
    with client, server, manager.start(lab, document(lab), directory=first.directory) as second:
        assert second.reload().returncode == 0
        tcp.assert_open(client, server)
        second.configure({**document(lab, drain_timeout=0.2), "workers": workers})
        assert second.reload().returncode == 0
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        eventually(lambda: not alive(old), "the old workers have ended", second.show)


@pytest.fixture
def held(lab):
    """A service for each protocol, and servers whose sessions stay."""
    servers = [server(lab, "b", HELD) for server in SERVERS.values()]
    yield [make_service(lab, protocol, HELD, HELD, backends=["b"], protocol=protocol) for protocol in SERVERS]
    for server in servers:
        server.stop()


def sessions_of(lab):
    addresses = lab["a"].ipv4, lab["a"].ipv6
    return [Session(lab, protocol, (to, HELD)) for protocol in SERVERS for to in addresses for _number in range(10)]


def counts(status):
    return [(one["connections"], one["sessions"]) for one in status["services"] if one["name"] in SERVERS]


def test_restarts_end_no_session(lab, manager, held):
    """The next supervisor takes over workers, UDP sessions, counters and what operators have set."""
    restarts = 3
    served = make_config(*web_and_raw(lab, WEB, RAW), *held, workers=2)
    forwarder = manager.start(lab, served).serve()
    while len(manager.kept) < 16:
        manager.listen_until("FDSTORE")
    first, listeners, workers = forwarder, set(manager.kept), forwarder.workers()
    sessions = sessions_of(lab)
    assert forwarder.ask("drain", backend="c")["ok"]
    before = counts(forwarder.status())
    for _restart in range(restarts):
        forwarder.process.send_signal(signal.SIGUSR1)
        manager.listen_until_end(forwarder.process)
        assert set(manager.kept) > listeners, "the state is stored"
        assert set(alive(workers)) == set(workers)
        assert tcp.get(lab, lab["a"].ipv4, WEB), "the workers go on serving"
        forwarder = manager.start(lab, served, directory=first.directory).serve()
        while set(manager.kept) != listeners:
            manager.listen_until("FDSTOREREMOVE")
    with forwarder:
        assert forwarder.log("workers adopted")[0]["processes"] >= 4, "those of both generations"
        eventually(lambda: sum(line["sessions"] for line in forwarder.log("sessions taken over")) == 20)
        for session in sessions:
            session.go_on()
        eventually(lambda: counts(forwarder.status()) == before, "the counters go on", forwarder.show)
        states = {one["name"]: one["admin"] for one in forwarder.status()["services"][0]["backends"]}
        assert states == {"b": "ready", "c": "draining", "d": "ready"}
        for session in sessions:
            session.end()
        eventually(lambda: not alive(workers), "the old workers have ended", forwarder.show)
        generations = {worker["generation"] for worker in forwarder.status()["workers"]}
        assert generations == {restarts + 1}, "it knows that they have"


def test_a_restart_to_version_0_1_0_drains_the_old_workers(lab, manager, first, listener, tmp_path):
    """It takes the stored channels for listeners that its config does not need, and closes them."""
    program = tmp_path / "earlier.pyz"
    program.write_bytes(_archive.archive(_archive.sources(earlier.unpack(tmp_path / "earlier"))))
    client, server = tcp.pair(lab, listener, RAW)
    workers = first.workers()
    first.process.send_signal(signal.SIGUSR1)
    manager.listen_until_end(first.process)
    with client, server, manager.start(lab, document(lab), directory=first.directory, archive=program) as second:
        assert second.runtime()["version"] == "0.1.0"
        while len(manager.kept) > 8:
            manager.listen_until("FDSTOREREMOVE")
        eventually(lambda: len(alive(workers)) == 1, "the one that has nothing to do has ended", second.show)
        tcp.assert_open(client, server)
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        server.close()
        client.close()
        eventually(lambda: not alive(workers), "the old workers have ended", second.show)
        second.process.send_signal(signal.SIGUSR1)
        manager.listen_until_end(second.process)
        with manager.start(lab, document(lab), directory=first.directory) as third:
            assert tcp.get(lab, lab["a"].ipv4, WEB), "the control: back again"
            assert third.runtime()["generation"] == 1


def test_another_user_takes_over_the_workers(lab, manager, held):
    """It may not signal them, so they drain because of a message."""
    served = make_config(*web_and_raw(lab, WEB, RAW), *held, workers=2)
    forwarder = manager.start(lab, served, user=as_user(65534)).serve()
    while len(manager.kept) < 16:
        manager.listen_until("FDSTORE")
    (checker,) = eventually(lambda: forwarder.children("l4-checker"), "the checker is there", forwarder.show)
    sessions, workers = sessions_of(lab), forwarder.workers()
    forwarder.process.send_signal(signal.SIGUSR1)
    manager.listen_until_end(forwarder.process)
    for path in forwarder.directory.iterdir():
        path.chmod(0o666)
    with manager.start(lab, served, directory=forwarder.directory, user=as_user(65533)) as second:
        eventually(lambda: sum(line["sessions"] for line in second.log("sessions taken over")) == 20, "", second.show)
        for session in sessions:
            session.go_on()
        for session in sessions:
            session.end()
        eventually(lambda: not alive([checker, *workers]), "the old processes have ended", second.show)


def test_hundreds_of_listeners_survive_a_restart(lab, manager):
    """The service manager's queue is short: READY is not sent after all descriptors."""
    many = make_service(lab, "many", "10000-10199", 8080)
    forwarder = manager.start(lab, make_config(many, workers=2)).serve()
    manager.listen_until("READY")
    assert len(manager.kept) < 800, "the control: READY came before the rest"
    while len(manager.kept) < 800:
        manager.listen_until("FDSTORE")
    kill([forwarder.process.pid])
    forwarder.process.wait()
    answers = []

    def ask(number):
        address = (lab["a"].ipv4, lab["a"].ipv6)[number % 2]
        answers.append(tcp.get(lab, address, 10000 + number))

    waiting = threading.Thread(target=lambda: in_threads(ask, 200))
    waiting.start()
    with manager.start(lab, make_config(many, workers=2), directory=forwarder.directory) as second:
        waiting.join(PATIENCE)
        assert len(answers) == 200
        assert second.log("listeners adopted")[0]["listeners"][-1] == "… and 750 more"


@pytest.mark.ipv4_only
def test_a_stop_waits_for_the_old_workers(lab, manager, first, listener):
    """Otherwise a stopped service would still have processes."""
    client, server = tcp.pair(lab, listener, RAW)
    kill([first.process.pid])
    first.process.wait()
    with manager.start(lab, document(lab), directory=first.directory) as second:
        with client, server:
            second.process.send_signal(signal.SIGTERM)
            eventually(lambda: second.log("stopping"), "it stops", second.show)
            tcp.assert_open(client, server)
            assert second.process.poll() is None
        assert second.process.wait(PATIENCE) == 0


@pytest.mark.ipv4_only
def test_a_supervisor_that_cannot_start_does_not_wait_for_old_workers(lab, manager, first, listener):
    client, server = tcp.pair(lab, listener, RAW)
    kill([first.process.pid])
    first.process.wait()
    second = manager.start(lab, {"schema": 1}, directory=first.directory)
    with client, server:
        assert second.process.wait(PATIENCE) == 1
        tcp.assert_open(client, server)


@pytest.mark.ipv4_only
def test_a_restart_with_a_config_that_cannot_be_loaded_goes_on_and_obeys_operators(lab, manager, first):
    first.process.send_signal(signal.SIGUSR1)
    manager.listen_until_end(first.process)
    with manager.start(lab, "{", directory=first.directory).serve() as second:
        status = second.status()
        assert (status["generation"], status["last_reload"]["ok"]) == (1, False)
        for name in BACKENDS[1:]:
            assert second.ask("drain", backend=name)["ok"]
        assert {tcp.get(lab, lab["a"].ipv4, WEB) for _connection in range(6)} == {b"b\n"}
        second.configure(document(lab))
        assert second.reload().returncode == 0
        assert second.status()["generation"] == 2


@pytest.mark.ipv4_only
def test_without_a_service_manager_no_worker_stays(lab):
    with Forwarder(lab, document(lab)) as forwarder:
        workers = forwarder.workers()
        assert forwarder.stop(signal.SIGUSR1) == 0
        assert not forwarder.log("leaving")
        assert not alive(workers)
