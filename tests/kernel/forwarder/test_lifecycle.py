# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, stop and failures: what happens to connections and to the runtime file."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.forwarder.sessions import each_once
from tests.support import tcp, udp
from tests.support.addresses import family_of
from tests.support.forwarding import AS_DAEMON, Forwarder, make_config, make_service, web_and_raw
from tests.support.waiting import PATIENCE, eventually

WEB, RAW, OTHER = 8000, 7000, 8001
NODAD = {"ipv4": (), "ipv6": ("nodad",)}


def document(lab, *more, **options):
    return make_config(*web_and_raw(lab, WEB, RAW), *more, **options)


@pytest.fixture
def forwarder(lab, servers):
    with Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


@pytest.mark.ipv4_only
def test_sigterm_finishes_a_transfer_and_refuses_new_connections(lab, forwarder, listener):
    with tcp.connection(lab, listener, RAW) as (client, server):
        server.sendall(b"first half, ")
        forwarder.process.send_signal(signal.SIGTERM)
        eventually(lambda: tcp.refused(lab, WEB), "new connections are refused")
        server.sendall(b"second half")
        server.close()
        assert tcp.receive_all(client) == b"first half, second half"
        assert forwarder.process.poll() is None, "the client has not ended yet"
    assert forwarder.process.wait(PATIENCE) == 0
    assert forwarder.log("connection")[-1]["ended"] == "closed"
    assert not (forwarder.directory / "forwarder.json").exists()


@pytest.mark.ipv4_only
def test_a_drain_ends_at_its_timeout(lab, servers, listener):
    with Forwarder(lab, document(lab, drain_timeout=0.5)) as forwarder:
        with tcp.connection(lab, listener, RAW) as (client, server):
            assert forwarder.stop() == 0
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        line = forwarder.log("connection")[-1]
        assert line["ended"] == "drain timeout"
        assert line["duration"] >= 0.5


@pytest.mark.ipv4_only
def test_only_a_stop_has_a_deadline_unless_the_config_has_one_which_generations_that_drain_get_too(
    lab, servers, listener
):
    with Forwarder(lab, document(lab)) as forwarder, tcp.connection(lab, listener, RAW) as (client, server):

        def reload(workers, **options):  # another number of workers needs new processes
            forwarder.configure(document(lab, workers=workers, **options))
            assert forwarder.reload().returncode == 0

        for workers in (2, 1):
            reload(workers)
        eventually(lambda: len(forwarder.log("draining")) == 3, "two generations drain", forwarder.show)
        assert {line["timeout"] for line in forwarder.log("draining")} == {None}
        tcp.assert_open(client, server)
        reload(2, drain_timeout=0.5)
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        assert forwarder.connections(1)[-1]["ended"] == "drain timeout"
        reload(1)
        with tcp.connection(lab, listener, RAW):
            forwarder.process.send_signal(signal.SIGTERM)
            drained = eventually(lambda: forwarder.log("draining")[6:], "the last worker drains", forwarder.show)
            assert [line["timeout"] for line in drained] == [30.0]


@pytest.mark.parametrize(("backend", "reason"), [("c", "backend removed"), (None, "service removed")])
def test_an_old_generation_ends_what_left_the_config_at_its_deadline(lab, listener, family, backend, reason):
    """The other service leaves its listener, which its connection does not need."""
    seconds = 0.5
    raw = make_service(lab, "raw", RAW, 9000, backends=["b"], drain_timeout=seconds)
    other = make_service(lab, "other", OTHER, 9000, backends=["b"], drain_timeout=seconds)
    with (
        Forwarder(lab, make_config(raw, other)) as forwarder,
        tcp.connection(lab, listener, RAW) as removed,
        tcp.connection(lab, listener, OTHER) as kept,
    ):
        changed = [make_service(lab, "other", OTHER + 1, 9000, backends=["b"], drain_timeout=seconds)]
        if backend:
            changed.append(make_service(lab, "raw", RAW, 9000, backends=[backend], drain_timeout=seconds))
        for workers in (2, 1):  # the second reload removes nothing
            forwarder.configure(make_config(*changed, workers=workers))
            assert forwarder.reload().returncode == 0
        for end in removed:
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        tcp.assert_open(*kept)
        (line,) = forwarder.connections(1)
        assert (line["service"], line["ended"]) == ("raw", reason)
        assert line["duration"] > seconds


@pytest.mark.ipv4_only
def test_beyond_the_bound_of_memory_the_oldest_generation_is_ended(lab, servers, listener):
    """The forwarder is an ordinary user, as in its unit."""
    # A worker has 5 to 8 MB of its own. The oldest generation has the most workers, so its end is enough.
    streams, most, bound = [], 12, 60
    try:
        with Forwarder(lab, document(lab, drain_memory=bound, workers=3), wrapper=AS_DAEMON) as forwarder:
            for number in range(most):
                streams.append(tcp.pair(lab, listener, RAW))
                forwarder.configure(document(lab, drain_memory=bound, workers=2 - number % 2))
                assert forwarder.reload().returncode == 0
                eventually(
                    lambda: all(old["memory"] for old in forwarder.status()["old_generations"]), "it is measured"
                )
                if forwarder.log("generation ended"):
                    break
            ended = forwarder.log("generation ended")
            assert [line["of_generation"] for line in ended] == [1]
            assert [line["sessions"] for line in ended] == [1]
            assert number > 1, forwarder.status()["old_generations"]
            for end in streams[0]:
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
            for client, server in streams[1:]:
                tcp.assert_open(client, server)
            status = forwarder.status()
            assert status["drain_memory_ended"] == 1
            assert sum(old["memory"] for old in status["old_generations"][1:]) < bound << 20
    finally:
        for end in (end for stream in streams for end in stream):
            end.close()


@pytest.mark.ipv4_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(lab, forwarder, listener, number):
    with tcp.connection(lab, listener, RAW) as (client, _server):
        forwarder.process.send_signal(number)
        eventually(lambda: forwarder.log("draining"), "the worker drains", forwarder.show)
        assert forwarder.stop(number) == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert forwarder.log("connection")[-1]["ended"] == "stopped"


@pytest.mark.ipv4_only
def test_a_killed_worker_is_replaced_and_no_client_is_refused(lab, forwarder):
    for _round in range(3):
        eventually(lambda: len(forwarder.workers()) == 1, "a worker is there")
        worker = forwarder.workers()[0]
        os.kill(worker, signal.SIGKILL)
        assert tcp.get(lab, lab["a"].ipv4, WEB) in (b"b\n", b"c\n", b"d\n"), "it waited in the backlog"
        assert worker not in forwarder.workers()
    assert [line["code"] for line in forwarder.log("worker ended")] == [-signal.SIGKILL] * 3
    assert forwarder.runtime()["generation"] == 1


@pytest.mark.parametrize(("family", "absent"), [("ipv4", "198.18.0.100"), ("ipv6", "2001:db8::100")])
def test_a_missing_listen_address_is_served_as_soon_as_it_exists(lab, servers, family, absent):
    a, shown = lab["a"], f"[{absent}]" if family == "ipv6" else absent
    web, dns = make_service(lab, "web", WEB, 8080), make_service(lab, "dns", 5300, 9000, protocol="udp")
    web["listen"], dns["listen"] = ([{"address": absent, "port": one["listen"][0]["port"]}] for one in (web, dns))
    other, listen = make_service(lab, "other", OTHER, 8080), {"metrics": {"listen": f"{shown}:9109"}}
    with udp.serving(lab, 9000), Forwarder(lab, make_config(web, dns, other, **listen)) as forwarder:
        assert tcp.get(lab, getattr(a, family), OTHER)
        assert [service["absent"] for service in forwarder.status()["services"]] == [
            [f"{shown}:8000"],
            [f"{shown}:5300"],
            [],
        ]
        assert {line["service"] for line in forwarder.log("listen address absent")} == {"web", "dns"}
        for _time in range(2):  # the address is added, removed and added again
            a.run(["ip", "address", "add", f"{absent}/{24 if family == 'ipv4' else 64}", "dev", a.dev, *NODAD[family]])
            assert eventually(lambda: tcp.get(lab, absent, WEB), "the service is served there", forwarder.show)
            with udp.client(lab, absent) as sock:
                assert udp.exchange(sock, udp.QUESTION, (absent, 5300))[1] == (absent, 5300)
            with a.inside(), socket.create_connection((absent, 9109)) as sock:
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert b"200 OK" in sock.recv(100)
            assert [service["absent"] for service in forwarder.status()["services"]] == [[], [], []]
            a.run(["ip", "address", "del", f"{absent}/{24 if family == 'ipv4' else 64}", "dev", a.dev])


@contextmanager
def taken(lab, family, protocol, port):
    """Another program has a port of host a."""
    address = {"ipv4": "0.0.0.0", "ipv6": "::"}[family]
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with lab["a"].inside():
        sock = socket.socket(family_of(address), kind)
    with sock:
        if family == "ipv6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if protocol == "tcp":
            sock.listen()
        yield f"{protocol}:{'[::]' if family == 'ipv6' else address}:{port}"


@each_once
def test_a_start_serves_all_that_it_can_bind_and_the_rest_later(lab, servers, udp_servers, family, protocol):
    """A port is taken by another program, and so is that of the metrics; a reload changes nothing then."""
    dns = make_service(lab, "dns", 5300, 9000, protocol="udp")
    config = make_config(make_service(lab, "web", OTHER, 8080), dns, workers=2, metrics={"listen": "127.0.0.1:9109"})
    port = {"tcp": OTHER, "udp": 5300}[protocol]
    address = getattr(lab["a"], family)
    other = getattr(lab["a"], "ipv4" if family == "ipv6" else "ipv6")

    def served(to):
        if protocol == "tcp":
            return tcp.get(lab, to, OTHER)
        with udp.client(lab, to) as sock:
            return udp.who(sock, (to, 5300))

    with ExitStack() as stack:
        name = stack.enter_context(taken(lab, family, protocol, port))
        with lab["a"].inside():
            stack.enter_context(socket.create_server(("127.0.0.1", 9109)))
        forwarder = Forwarder(lab, config).serve()
        reason = "EADDRINUSE: Address already in use"
        assert forwarder.runtime()["failed"] == {name: reason, "metrics:127.0.0.1:9109": reason}
        assert served(other), "the rest is served"
        status = {one["name"]: one["failed"] for one in forwarder.status()["services"]}
        service = {"tcp": "web", "udp": "dns"}[protocol]
        assert status.pop(service) == {name.partition(":")[2]: reason}
        assert [*status.values()] == [{}]
        assert {line["on"] for line in forwarder.log("not listening")} == {name, "metrics:127.0.0.1:9109"}
        result = forwarder.reload()
        assert result.returncode == 0, "what failed at the start may fail again"
        assert f"cannot listen on {name}: {reason}" in result.stdout
        with taken(lab, family, "tcp", 6000):
            forwarder.configure({**config, "services": [*config["services"], make_service(lab, "new", 6000, 8080)]})
            result = forwarder.reload()
            assert result.returncode == 1
            assert "service new: cannot listen on " in result.stderr, "the control: a reload is refused"
            assert name not in result.stderr
        forwarder.configure(config)
    with forwarder:
        eventually(lambda: forwarder.runtime()["failed"] == {}, "it is served when the port is free", forwarder.show)
        assert served(address)
        assert served(other)
        assert [one["failed"] for one in forwarder.status()["services"]] == [{}, {}]


@pytest.mark.ipv4_only
@pytest.mark.parametrize("broken", ["{", '{"schema": 2}'])
def test_a_start_serves_the_last_good_config_if_the_other_cannot_be_loaded(lab, servers, broken):
    forwarder = Forwarder(lab, broken)
    assert forwarder.process.wait(PATIENCE) == 1, "the control: there is none"
    good = forwarder.config.with_name("config.json.last-good")
    good.write_text(json.dumps(make_config(make_service(lab, "web", OTHER, 8080))), encoding="utf-8")
    with Forwarder(lab, broken, directory=forwarder.directory) as second:
        assert tcp.get(lab, lab["a"].ipv4, OTHER)
        config = second.runtime()["config"]
        assert config["path"] == str(good)
        assert config["error"] == second.log("last good config")[0]["reason"] != ""
        assert second.reload().returncode == 1, "a reload is refused"
        assert tcp.get(lab, lab["a"].ipv4, OTHER)
        second.configure(make_config(make_service(lab, "web", OTHER, 8080)))
        assert second.reload().returncode == 0
        assert "error" not in second.runtime()["config"]


@pytest.mark.ipv4_only
def test_a_second_forwarder_refuses_to_start_and_changes_nothing(lab, forwarder):
    """It would get half of the connections (SO_REUSEPORT) and remove the first one's files when it ends."""

    def refusal(**options):
        second = Forwarder(lab, document(lab), **options)
        assert second.process.wait(PATIENCE) == 1
        return second.log("cannot start")[0]["errors"]

    before, workers = forwarder.runtime(), forwarder.workers()
    for _reload in range(2):  # the lock survives the exec
        (said,) = refusal(directory=forwarder.directory)
        assert said.startswith(f"another forwarder (pid {forwarder.process.pid}) runs with the runtime directory")
        said = refusal()
        assert said[0] == "service web: cannot listen on 0.0.0.0:8000: EADDRINUSE: Address already in use"
        assert forwarder.runtime() == before
        assert forwarder.workers() == workers
        assert forwarder.reload().returncode == 0
        eventually(lambda: len(forwarder.workers()) == 1, "the old worker has ended", forwarder.show)
        before, workers = forwarder.runtime(), forwarder.workers()
    with Forwarder(lab, make_config(make_service(lab, "web", OTHER, 8080))):
        assert tcp.get(lab, lab["a"].ipv4, OTHER), "the control: other ports and another directory"
    with Forwarder(lab, document(lab), host="c"):
        pass  # another network namespace does not conflict
    assert forwarder.status()["pid"] == forwarder.process.pid
    forwarder.process.kill()
    forwarder.process.wait()
    with Forwarder(lab, document(lab), directory=forwarder.directory) as third:
        eventually(lambda: third.runtime()["pid"] == third.process.pid, "the next one starts", third.show)
        assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
def test_workers_finish_and_free_the_port_after_the_supervisor_dies(lab, forwarder, listener):
    client, server = tcp.pair(lab, listener, RAW)
    worker = forwarder.workers()[0]
    forwarder.process.kill()
    forwarder.process.wait()
    eventually(lambda: tcp.refused(lab, WEB), "the port is free for a new forwarder")
    with client, server:
        tcp.assert_open(client, server)
    eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker has ended")
