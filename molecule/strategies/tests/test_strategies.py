# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three backends with three strategies, and a proxy with socket marks; by the newest ansible-core.

Each test continues where the one before ended; the first needs fresh hosts.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest

from tests.gates import environments
from tests.lab import ansible
from tests.lab.traffic import get, logged

BACKENDS = {"b", "c", "d"}
INVENTORY = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "inventory.yml"
FAMILIES = ("ipv4", "ipv6")
NEWEST = "2.21"


@pytest.fixture(scope="module", autouse=True)
def _newest_ansible_core():
    python, site = environments.ensure("py313")
    variables = {**environments.variables(site), ansible.COMMAND_VARIABLE: f"{python} -m ansible playbook"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def document(host, owner: str = "return_path") -> dict:
    return json.loads(host.run(["cat", f"/etc/l4proxy/routing.d/{owner}.json"]).stdout)


def reached(lab, family: str) -> set:
    return {get(lab["client"], lab["a"], family, 80) for _request in range(6)}


def test_the_playbooks_run_with_the_newest_ansible_core(play):
    assert re.findall(r"core (\d+\.\d+)", play("site", "--version").output) == [NEWEST]


def test_check_mode_reports_changes_on_each_fresh_host(play):
    run = play("site", "--check", "--diff")
    assert (run.status, set(run.changed)) == (0, {"a", *BACKENDS}), run.output


def test_one_run_deploys_all_strategies(lab, play):
    run = play("site")
    assert run.status == 0, run.output
    assert [mark["transparent"] for mark in document(lab["a"], "local_delivery")["marks"]] == [True]
    assert [address["address"] for address in document(lab["b"])["addresses"]] == ["198.18.0.121", "2001:db8::121"]
    assert [mark["conntrack"] for mark in document(lab["c"])["marks"]] == [False]
    assert document(lab["d"])["mark_engine"] == "iptables"
    assert "L4PROXY_RETURN_PATH" in lab["d"].run(["iptables-save", "-t", "mangle"]).stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_answers_and_logs_the_client(lab, family):
    assert reached(lab, family) == BACKENDS
    client = getattr(lab["client"], family)
    for name in BACKENDS:
        assert any(line.split()[0] == client for line in logged(lab[name])), name


def test_verify_succeeds_for_every_backend(play):
    run = play("verify")
    assert run.status == 0, run.output


def test_a_second_run_changes_nothing(play):
    # The run in the last test checks c and d.
    run = play("site", "--limit", "a,b")
    assert (run.status, run.changed) == (0, {}), run.output


class Stream:
    """A connection to the proxy that stays open between requests."""

    def __init__(self, client, proxy, family: str):
        with client.inside():
            self.socket = socket.create_connection((getattr(proxy, family), 80), timeout=20)

    def ask(self) -> str:
        self.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"\n") or b"\r\n\r\n" not in answer or answer.endswith(b"\r\n\r\n"):
            part = self.socket.recv(4096)
            assert part, "the connection has ended"
            answer += part
        return answer.rpartition(b"\r\n\r\n")[2].decode().strip()


def stream_to(lab, backend: str, family: str) -> Stream:
    # Each worker of the proxy has its own round robin, so one of many connections reaches the backend.
    streams = (Stream(lab["client"], lab["a"], family) for _turn in range(100))
    return next(stream for stream in streams if stream.ask() == backend)


def test_a_connection_survives_a_change_of_strategy(lab, tmp_path):
    streams = [stream_to(lab, "b", family) for family in FAMILIES]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps({"all": {"hosts": {"b": {"return_path_strategy": "mark"}}}}), encoding="utf-8")
    inventories = [INVENTORY, changed]
    run = ansible.play(lab.prefix, "trueip.l4proxy.site", inventories)
    assert run.status == 0, run.output
    assert set(run.changed) == {"a", "b"}
    assert [stream.ask() for stream in streams] == ["b", "b"]
    assert all(address["retiring"] for address in document(lab["b"])["addresses"])
    config = json.loads(lab["a"].run(["cat", "/etc/l4proxy/forwarder.json"]).stdout)
    assert config["services"][0]["backends"][0]["ipv4"] == lab["b"].ipv4
    for family in FAMILIES:
        assert reached(lab, family) == BACKENDS
    again = ansible.play(lab.prefix, "trueip.l4proxy.site", inventories, "--limit", "a,b")
    assert (again.status, again.changed) == (0, {}), again.output


def test_teardown_changes_each_host(play):
    run = play("teardown")
    assert (run.status, set(run.changed)) == (0, {"a", *BACKENDS}), run.output
