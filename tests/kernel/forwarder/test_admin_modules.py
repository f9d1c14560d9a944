# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules forwarder_backend and forwarder_session, and the commands that list sessions."""

from __future__ import annotations

import json
from functools import partial

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.modules import forwarder_backend, forwarder_session

from tests.support import tcp
from tests.support.forwarding import make_config, make_service, two_ports
from tests.support.waiting import PATIENCE

WEB, RAW, WIDE, OFF = 8000, 7000, 7001, 7002


def document(lab):
    web, raw = make_service(lab, "web", WEB, 9), make_service(lab, "raw", RAW, 9000, backends=["b"])
    off = make_service(lab, "off", OFF, 9, backends=["c"])
    off["backends"][0]["enabled"] = False
    return make_config(web, raw, two_ports(lab, WIDE), off, workers=2)


@pytest.fixture(autouse=True)
def ready(forwarder):
    yield
    for backend in ("b", "two"):
        forwarder.ask("ready", backend=backend)


def cli(lab, forwarder, *arguments):
    return lab.l4proxy("a", [*arguments, "--socket", str(forwarder.directory / "admin.sock")])


def module(forwarder, capsys, which=forwarder_backend, **params):
    common = {"backend": "b"} if which is forwarder_backend else {}
    common["socket"] = str(forwarder.directory / "admin.sock")
    with patch_module_args({**common, **params}), pytest.raises(SystemExit):
        which.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.ipv4_only
def test_the_module_is_idempotent_and_check_mode_predicts_the_change(forwarder, capsys):
    planned = module(forwarder, capsys, state="drain", _ansible_check_mode=True)
    assert planned["changed"] is True
    assert planned["diff"] == {"before": "raw: ready\nweb: ready\n", "after": "raw: draining\nweb: draining\n"}
    assert {backend["admin"] for backend in backends_named(forwarder, "b")} == {"ready"}
    done = module(forwarder, capsys, state="drain", wait=True)
    assert (done["changed"], done["diff"]) == (True, planned["diff"])
    assert done["services"]["raw"] == {"before": "ready", "after": "draining", "connections": 0}
    assert {backend["admin"] for backend in backends_named(forwarder, "b")} == {"draining"}
    assert module(forwarder, capsys, state="drain")["changed"] is False
    assert module(forwarder, capsys, state="maintenance", service="raw")["changed"] is True
    assert [backend["admin"] for backend in backends_named(forwarder, "b")] == ["draining", "maintenance"]
    assert module(forwarder, capsys, wait=True)["changed"] is True
    assert module(forwarder, capsys)["changed"] is False


@pytest.mark.ipv4_only
def test_the_module_drains_every_port_of_a_host(forwarder, capsys):
    done = module(forwarder, capsys, backend="two", state="drain", wait=True)
    assert done["diff"]["before"] == "wide two:9000: ready\nwide two:9001: ready\n"
    assert done["changed"] is True
    assert {backend["admin"] for name in ("two:9000", "two:9001") for backend in backends_named(forwarder, name)} == {
        "draining"
    }
    assert module(forwarder, capsys, backend="two:9001")["changed"] is True
    assert [backend["admin"] for backend in backends_named(forwarder, "two:9000")] == ["draining"]
    assert module(forwarder, capsys, backend="two", wait=True)["changed"] is True
    assert module(forwarder, capsys, backend="two")["changed"] is False


@pytest.mark.ipv4_only
def test_what_the_config_disables_cannot_be_made_ready(lab, forwarder, capsys):
    off = partial(module, forwarder, capsys, backend="c", service="off")
    for mode in ({"_ansible_check_mode": True}, {"wait": True}):
        refused = off(**mode)
        assert refused["msg"].startswith("backend c is disabled in off: l4proxy_services has enabled: false for it")
        assert refused["reason"] == "disabled"
    assert off(state="drain")["diff"] == {"before": "off: disabled\n", "after": "off: draining\n"}
    assert off(state="drain")["changed"] is False
    assert off()["reason"] == "disabled"
    assert [one["admin"] for one in backends_named(forwarder, "c")] == ["ready", "disabled"]
    module(forwarder, capsys, backend="c", state="drain")
    done = module(forwarder, capsys, backend="c", wait=True)
    assert {name: one["after"] for name, one in done["services"].items()} == {"web": "ready", "off": "disabled"}
    assert module(forwarder, capsys, backend="c", wait=True)["changed"] is False
    lines = cli(lab, forwarder, "ready", "all", "c").stdout.splitlines()
    assert lines[0] == "c is ready in web (unchanged)"
    assert lines[1].startswith("backend c is disabled in off: ")
    assert cli(lab, forwarder, "ready", "off", "c").returncode == 1


def backends_named(forwarder, name):
    services = forwarder.status()["services"]
    return [backend for service in services for backend in service["backends"] if backend["name"] == name]


@pytest.mark.ipv4_only
def test_the_module_fails_with_a_clear_message(lab, forwarder, listener, capsys):
    unknown = module(forwarder, capsys, backend="x")
    assert unknown["msg"] == "there is no backend x in any service of this forwarder"
    assert unknown["reason"] == "unknown_backend"
    absent = module(forwarder, capsys, socket="/nonexistent/admin.sock")
    assert "no forwarder listens on /nonexistent/admin.sock" in absent["msg"]
    assert absent["reason"] == "other"
    with tcp.connection(lab, listener, RAW):
        busy = module(forwarder, capsys, state="drain", service="raw", wait=True, timeout=0.3)
    assert busy["msg"] == "backend b still has 1 connection after 0.3 s"


@pytest.mark.ipv4_only
def test_sessions_and_clients_are_listed_and_ended_by_the_command_line_and_the_module(lab, forwarder, listener, capsys):
    act = partial(module, forwarder, capsys, which=forwarder_session)
    address = lab["client"].ipv4
    with tcp.connection(lab, listener, RAW) as (client, _server):
        port = client.getsockname()[1]
        lines = cli(lab, forwarder, "sessions", "--service", "raw", "--client", f"{address}/32").stdout.splitlines()
        assert lines[0] == "1 session"
        assert lines[2].split()[:3] == ["raw", f"{address}:{port}", "b"]
        assert cli(lab, forwarder, "sessions", "--client", "203.0.113.0/24").stdout == "0 sessions\n"
        table = cli(lab, forwarder, "clients", "--by", "bytes", "--service", "raw").stdout.splitlines()
        assert table[2].split()[:3] == ["raw", address, "1"]
        assert json.loads(cli(lab, forwarder, "clients", "--json").stdout)["clients"][0]["client"] == address
        found = act(client=address)
        assert (found["changed"], found["count"], found["sessions"][0]["client_port"]) == (False, 1, port)
        planned = act(action="kill", client=address, _ansible_check_mode=True)
        assert (planned["changed"], planned["count"], "ended" in planned) == (True, 1, False)
        assert act(action="kill", client="203.0.113.7")["changed"] is False
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(PATIENCE)
        done = act(action="kill", client=address, generation=1, service="raw")
        assert (done["changed"], done["ended"], done["silent_workers"]) == (True, 1, 0)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert act(action="kill", client=address)["changed"] is False, "the second run"
    for params, sentence in (
        (
            {"action": "kill"},
            "action is kill but any of the following are missing: service, backend, client, generation",
        ),
        ({"service": "x"}, "there is no service 'x' (there are web, raw, wide, off)"),
    ):
        assert sentence in act(**params)["msg"]


@pytest.mark.ipv4_only
def test_kill_ends_sessions_and_drain_may_end_those_that_are_left(lab, forwarder, listener, capsys):
    for ended, result in (
        (lambda: cli(lab, forwarder, "kill", "--service", "raw", "--client", "0.0.0.0/0").stdout, "ended 1 session\n"),
        (
            lambda: cli(lab, forwarder, "drain", "raw", "b", "--kill", "--timeout", "0.2").stdout,
            "b is draining and has no connections (1 ended) in raw\n",
        ),
        (lambda: module(forwarder, capsys, state="maintenance", force=True, timeout=0.2)["ended"], 1),
    ):
        forwarder.ask("ready", backend="b")
        with tcp.connection(lab, listener, RAW) as (client, server):
            tcp.assert_open(client, server)
            planned = module(forwarder, capsys, state="drain", force=True, _ansible_check_mode=True)
            assert planned["changed"]
            tcp.assert_open(client, server)
            assert ended() == result
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
    assert module(forwarder, capsys, state="maintenance", force=True)["changed"] is False
    for options, status, sentence in (
        ([], 2, "select the sessions to end by at least one of --generation, --service, --backend, --client"),
        (["--service", "x"], 1, "there is no service 'x' (there are web, raw, wide, off)"),
    ):
        wrong = cli(lab, forwarder, "kill", *options)
        assert (wrong.returncode, sentence in wrong.stderr) == (status, True)
