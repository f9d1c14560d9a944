# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin socket, and what uses it: the commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import MAX_NAME

from tests.lab import netns
from tests.support import tcp, udp
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service, two_ports
from tests.support.waiting import PATIENCE, eventually

WEB, RAW, WIDE, ECHO = 8000, 7000, 7001, 7002


def document(lab):
    web, raw = make_service(lab, "web", WEB, 9), make_service(lab, "raw", RAW, 9000, backends=["b"])
    echo = make_service(lab, "echo", ECHO, 9000, backends=["d"], protocol="udp", idle_timeout=1)
    return make_config(web, raw, two_ports(lab, WIDE), echo, workers=2)


@pytest.fixture(autouse=True)
def ready(forwarder):
    yield
    for backend in (*BACKENDS, "two"):
        forwarder.ask("ready", backend=backend)


def raw_client(forwarder):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(forwarder.directory / "admin.sock"))
    return sock


@pytest.mark.ipv4_only
def test_the_admin_socket_admits_its_owner_and_group_only(forwarder):
    assert stat.S_IMODE(os.stat(forwarder.directory / "admin.sock").st_mode) == 0o660


REFUSED = [  # the other sentences: tests/unit/plugins/module_utils/_forwarder/admin/test_commands.py
    (b"[]\n", "a request must be a JSON object"),
    (b'{"op": "drain", "backend": "x"}\n', "there is no backend 'x' (there are b, c, d, two:9000, two:9001)"),
    (b'{"op": "status", "x": "' + b"y" * 70_000, "longer than 16384 bytes"),
]


@pytest.mark.ipv4_only
@pytest.mark.parametrize(("request_line", "sentence"), REFUSED)
def test_a_bad_request_is_answered_with_one_error_sentence(forwarder, request_line, sentence):
    with raw_client(forwarder) as sock:
        try:
            sock.sendall(request_line)
        except BrokenPipeError:
            pass  # the server has closed the connection
        answer = json.loads(sock.makefile().readline())
    assert answer["ok"] is False
    assert sentence in answer["error"]
    assert forwarder.status()["generation"] == 1, "others are served"


@pytest.mark.ipv4_only
def test_sessions_lists_the_connections_of_all_workers(lab, forwarder, listener):
    pairs = [tcp.pair(lab, listener, RAW) for _connection in range(10)]
    try:
        answer = forwarder.ask("sessions", service="raw", limit=3)
        assert (answer["count"], answer["silent_workers"], len(answer["sessions"])) == (10, 0, 3)
        oldest = answer["sessions"][0]
        assert (oldest["service"], oldest["backend"], oldest["client"]) == ("raw", "b", lab["client"].ipv4)
        assert oldest["client_port"] == pairs[0][0].getsockname()[1]
        assert forwarder.ask("sessions", backend="c")["count"] == 0
    finally:
        for end in sum(pairs, ()):
            end.close()


def test_sessions_works_with_the_longest_names(lab, listener, family):
    """The response of a worker has a bound, whatever the length of names; the supervisor survives it."""
    names = make_service(lab, "n" * 63, RAW + 10, 9000, backends=["b"])
    names["backends"][0]["name"] = "b" + (MAX_NAME - 1) * ":"
    with Forwarder(lab, make_config(names)) as forwarder:
        pairs = [tcp.pair(lab, listener, RAW + 10) for _connection in range(110)]
        answer = forwarder.ask("sessions")
        assert (answer["count"], answer["silent_workers"], len(answer["sessions"])) == (110, 0, 100)
        assert forwarder.status()["restarts"] == 0
        for end in sum(pairs, ()):
            end.close()


@pytest.mark.ipv4_only
def test_log_level_changes_the_level_of_every_process(lab, forwarder):
    before = len(forwarder.log("connection"))
    assert forwarder.ask("log_level", level="error")["level"] == "error"
    with pytest.raises(OSError):
        tcp.get(lab, lab["a"].ipv4, WEB)
    assert forwarder.ask("log_level", level=None)["level"] == "info"
    with pytest.raises(OSError):
        tcp.get(lab, lab["a"].ipv4, WEB)
    eventually(lambda: len(forwarder.log("connection")) == before + 1, "the second one is in the log", forwarder.show)


@pytest.mark.ipv4_only
def test_an_admin_client_does_not_delay_a_stop(lab):
    """A connection to the admin socket must not delay a stop."""
    document = make_config(make_service(lab, "other", 8001, 9))
    with Forwarder(lab, document) as forwarder, raw_client(forwarder) as sock:
        begun = time.monotonic()
        assert forwarder.stop() == 0
        assert sock.recv(1) == b""
        assert time.monotonic() - begun < PATIENCE
        assert not (forwarder.directory / "admin.sock").exists()


# -- the command line ------------------------------------------------------------------------------------------------


def cli(lab, forwarder, *arguments):
    return lab.l4proxy("a", [*arguments, "--socket", str(forwarder.directory / "admin.sock")])


@pytest.mark.ipv4_only
def test_status_prints_a_table_or_json(lab, forwarder):
    table = cli(lab, forwarder, "status").stdout
    assert table.startswith("l4proxy ")
    assert "2 of 2 workers" in table
    assert "web  0.0.0.0:8000, [::]:8000  tcp, round_robin" in table
    assert json.loads(cli(lab, forwarder, "status", "--json").stdout)["services"][1]["name"] == "raw"
    nobody = lab.l4proxy("a", ["status", "--socket", "/nonexistent/admin.sock"])
    assert nobody.returncode == 1
    assert "no forwarder listens on /nonexistent/admin.sock" in nobody.stderr


@pytest.mark.ipv4_only
def test_drain_waits_until_the_last_connection_has_ended(lab, forwarder, listener):
    client, server = tcp.pair(lab, listener, RAW)
    early = cli(lab, forwarder, "drain", "raw", "b", "--wait", "--timeout", "0.5")
    assert early.returncode == 1
    assert "b is draining in raw, but still has 1 connection after 0.5 s" in early.stderr
    with pytest.raises(ConnectionResetError), tcp.connect(lab, lab["a"].ipv4, RAW) as other:
        other.recv(1)
    outcome = []
    waiting = threading.Thread(target=lambda: outcome.append(cli(lab, forwarder, "drain", "raw", "b", "--wait")))
    waiting.start()
    with client, server:
        tcp.assert_open(client, server)
    waiting.join(PATIENCE)
    assert outcome[0].stdout == "b is draining and has no connections in raw (unchanged)\n"
    assert cli(lab, forwarder, "ready", "all", "b").stdout == "b is ready in web, raw\n"
    for end in tcp.pair(lab, listener, RAW):
        end.close()


@contextlib.contextmanager
def going_on(sock, to):
    """Keep a UDP session busy."""
    over = threading.Event()

    def ask():
        while not over.wait(0.2):
            udp.who(sock, to)

    udp.who(sock, to)
    asking = threading.Thread(target=ask)
    asking.start()
    yield
    over.set()
    asking.join()


def test_drain_waits_until_the_last_udp_session_has_ended(lab, forwarder, udp_servers, family):
    to = (getattr(lab["a"], family), ECHO)
    eventually(lambda: forwarder.ask("sessions", service="echo")["count"] == 0, "nobody is there", forwarder.show)
    with udp.client(lab, to[0]) as sock, udp.client(lab, to[0]) as other:
        with going_on(sock, to):
            early = cli(lab, forwarder, "drain", "echo", "d", "--wait", "--timeout", "0.1")
        assert early.returncode == 1
        assert "d is draining in echo, but still has 1 connection after 0.1 s" in early.stderr
        assert udp.silent(other, udp.QUESTION, to), "there is no other backend"
        done = cli(lab, forwarder, "drain", "echo", "d", "--wait")
        assert done.stdout == "d is draining and has no connections in echo (unchanged)\n"
        assert cli(lab, forwarder, "ready", "echo", "d").returncode == 0
        udp.who(other, to)


@pytest.mark.ipv4_only
def test_top_redraws_until_it_is_interrupted(lab, forwarder):
    argv = [sys.executable, "-c", netns.CLI, "top", "--interval", "0.2"]
    environment = {**netns.cli_environment(), "RUNTIME_DIRECTORY": str(forwarder.directory)}
    # In the background of a shell, the tests would ignore SIGINT.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with open(os.devnull, "rb") as nothing:
        process = lab["a"].spawn(argv, env=environment, stdin=nothing, preexec_fn=heed)
    eventually(lambda: process.log.read_text(encoding="utf-8").count("2 of 2 workers") >= 3, "three pictures")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) in (0, 130), process.log.read_text(encoding="utf-8")
    assert "Traceback" not in process.log.read_text(encoding="utf-8")
