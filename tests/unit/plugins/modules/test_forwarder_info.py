# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""forwarder_info: what runs against what is installed."""

from __future__ import annotations

import ast
import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import runtime_file
from ansible_collections.trueip.l4proxy.plugins.modules import forwarder_info


@pytest.fixture
def host(tmp_path):
    """Paths of a host on which the installed config and archive are what runs: this very process."""
    paths = {name: str(tmp_path / name) for name in ("runtime_file", "config", "archive")}
    running = {"schema": 1, "pid": os.getpid(), "started": runtime_file.start_time(os.getpid()), "generation": 4}
    for name in ("config", "archive"):
        (tmp_path / name).write_text(name, encoding="utf-8")
        running[name] = {"path": f"/old/{name}", "sha256": runtime_file.sha256_file(paths[name])}
    running["last_reload"] = {"attempt": 0, "ok": True, "error": None, "at": "x"}
    runtime_file.write(running, paths["runtime_file"])
    return paths


@pytest.fixture
def run(call):
    return lambda paths, check=False: call(forwarder_info, check, **paths)


def change_runtime(paths, **fields):
    runtime_file.write({**runtime_file.read(paths["runtime_file"]), **fields}, paths["runtime_file"])


@pytest.mark.parametrize("check_mode", [False, True])
def test_matching_checksums_are_current(host, run, check_mode):
    result = run(host, check_mode)
    assert (result["current"], result["changed"]) == (True, False)
    assert result["running"]["generation"] == 4
    assert result["installed"]["config"] == result["running"]["config"]["sha256"]
    assert result["reason"] == "the forwarder runs the installed config and archive"


def test_the_first_tier_is_what_the_forwarder_answers(host, run, monkeypatch):
    assert run(host)["first_tier"] is None, "nobody listens"
    answer = {"healthy": False, "reason": "stopping", "sentence": "this proxy should not get clients: x"}
    monkeypatch.setattr(forwarder_info.client, "ask", lambda path, op: {"ok": True, **answer})
    assert run(host)["first_tier"] == answer
    assert run({**host, "runtime_file": "/none"})["first_tier"] is None


@pytest.mark.parametrize("name", ["config", "archive"])
def test_a_newer_installed_file_is_reported(host, run, name):
    with open(host[name], "a", encoding="utf-8") as stream:
        stream.write("new")
    change_runtime(host, last_reload={"attempt": 1, "ok": False, "error": "services: is required", "at": "x"})
    result = run(host)
    assert result["current"] is False
    assert result["reason"] == (
        f"the forwarder is out of date: the installed {name} differs from the one it runs (/old/{name});"
        " its last reload failed: services: is required"
    )


def test_a_missing_installed_file_and_a_forwarder_that_runs_from_a_directory_are_reported(host, run):
    os.unlink(host["config"])
    result = run(host)
    assert result["installed"]["config"] is None
    assert "the config it runs (/old/config) is no longer installed" in result["reason"]
    change_runtime(host, archive=None)
    assert "it does not run from an archive" in run(host)["reason"]


def test_without_a_running_forwarder_running_is_null(host, run):
    change_runtime(host, started=1)
    result = run(host)
    assert (result["running"], result["current"], result["reason"]) == (None, False, "no forwarder runs")
    os.unlink(host["runtime_file"])
    assert run(host)["running"] is None


def test_an_unreadable_file_is_an_error_with_its_path(host, run):
    host["config"] = os.path.dirname(host["config"])
    result = run(host)
    assert result["failed"]
    assert result["msg"] == f"{host['config']} cannot be read: Is a directory"


def test_the_payload_is_small():
    """AnsiballZ ships whatever is imported, so runtime_file.py must not import the engine."""
    with open(runtime_file.__file__, encoding="utf-8") as stream:
        imports = [node for node in ast.walk(ast.parse(stream.read())) if isinstance(node, ast.ImportFrom)]
    assert {str(node.module).partition(".")[0] for node in imports if node.level} == {"_shared"}


NEW = {
    "schema": 1,
    "proxy_id": 11,
    "services": [
        {
            "name": "web",
            "listen": [{"address": "0.0.0.0", "port": 80}],
            "backends": [{"name": "b", "port": 80, "ipv4": "198.18.0.21", "ipv6": "2001:db8::21"}],
        }
    ],
}


def test_a_plan_needs_an_answer_of_the_forwarder_but_does_not_fail_without_it(host, run, tmp_path):
    options = {**host, "socket": str(tmp_path / "none"), "new_config": NEW}
    (sentence,) = run(options)["plan"]["sentences"]
    assert sentence.startswith("the running forwarder does not say what it serves: no forwarder listens on")
    assert run({**options, "new_config": {**NEW, "schema": 2}})["msg"].startswith("new_config: schema")
    change_runtime(host, started=1)
    assert run(options)["plan"]["action"] == "start"
    assert "plan" not in run(host)


def taken_ports(status, *addresses, port, protocol="tcp"):
    services = [
        {**NEW["services"][0], "protocol": protocol, "listen": [{"address": one, "port": port} for one in addresses]}
    ]
    return list(forwarder_info.taken_ports.taken(status, forwarder_info.config.load({**NEW, "services": services})))


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_ports_of_other_programs_are_taken_and_those_of_the_forwarder_are_not(family, address, protocol, kind):
    """A specific address conflicts with the wildcard address of its family, in both directions."""
    shown = f"[{address}]" if family == socket.AF_INET6 else address
    wildcard = "::" if family == socket.AF_INET6 else "0.0.0.0"
    with socket.socket(family, kind) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # which must not hide it
        other.bind((address, 0))
        if protocol == "tcp":
            other.listen()
        port = other.getsockname()[1]
        name = f"{shown}:{port}"
        assert taken_ports(None, address, port=port, protocol=protocol) == [f"{protocol}:{name}"]
        assert len(taken_ports(None, wildcard, port=port, protocol=protocol)) == 1
        service = {"protocol": protocol, "listen": [name], "failed": {}}
        assert taken_ports({"services": [service]}, address, port=port, protocol=protocol) == []
        assert taken_ports({"services": [service]}, wildcard, port=port, protocol=protocol) == []
        failed = {"services": [{**service, "failed": {name: "EADDRINUSE"}}]}
        assert len(taken_ports(failed, address, port=port, protocol=protocol)) == 1
    assert taken_ports(None, wildcard, port=port, protocol=protocol) == [], "the control: it is free"
