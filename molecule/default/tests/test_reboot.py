# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a reboot of a and b, without a run of Ansible; their new network namespaces are connected after boot."""

from __future__ import annotations

import json

import pytest

from tests.lab.traffic import get, logged
from tests.support.waiting import eventually

RESTARTED = ["a", "b"]


@pytest.fixture(scope="module", autouse=True)
def restarted(lab):
    """Reboot a proxy and a backend; each gets a new network namespace without any rule of ours.

    Return what the proxy's forwarder knew before. An operator has drained a backend and changed the weight of another.
    """
    lab["a"].run(["l4proxy", "drain", "api", "b"])
    ask(lab, op="weight", service="web", backend="c", weight=3)
    assert get(lab["client"], lab["a"], "ipv4", 80)
    known = words_and_counters(lab)
    before = {name: netns(lab, name) for name in RESTARTED}
    for name in RESTARTED:
        lab.restart(name)
        assert netns(lab, name) != before[name]
    return known


ASK = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("/run/l4proxy/admin.sock")
    sock.sendall(sys.argv[1].encode() + b"\\n")
    sys.stdout.write(sock.makefile().readline())
"""


def ask(lab, **request):
    answer = json.loads(lab["a"].run(["python3", "-c", ASK, json.dumps(request)]).stdout)
    assert answer["ok"], answer
    assert "not_saved" not in answer
    return answer


def words_and_counters(lab):
    """Return ({service backend: (state, weight)} where an operator has said something, {service: connections})."""
    services = ask(lab, op="status")["status"]["services"]
    words = {
        f"{service['name']} {one['name']}": (one["admin"], one["weight"])
        for service in services
        for one in service["backends"]
        if one["admin"] != "ready" or one["weight"] > 2
    }
    return words, {service["name"]: service["connections"] for service in services}


def test_what_an_operator_has_said_and_the_counters_survive_a_reboot(lab, restarted):
    words, counters = restarted
    assert words == {"api b": ("draining", 2), "web c": ("ready", 3)}
    assert counters["web"] > 0
    eventually(lambda: lab["a"].run(["systemctl", "is-active", "l4proxy-forwarder"], check=False).returncode == 0)
    assert words_and_counters(lab) == restarted
    mode = lab["a"].run(["stat", "-c", "%U %a", "/var/lib/l4proxy-forwarder", "/var/lib/l4proxy-forwarder/state.json"])
    assert mode.stdout.split() == ["l4proxy", "750", "l4proxy", "600"]
    lab["a"].run(["l4proxy", "ready", "api", "b"])
    ask(lab, op="weight", service="web", backend="c")
    assert words_and_counters(lab)[0] == {}, "the control"


def netns(lab, name):
    return lab[name].run(["readlink", "/proc/1/ns/net"]).stdout


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_clients_reach_every_backend_after_a_reboot(lab, family):
    before = len(logged(lab["b"]))
    seen = set()

    def every_backend_answers():
        seen.add(get(lab["client"], lab["a"], family, 80, check=False) or "")
        return seen >= {"b", "c", "d"}

    eventually(every_backend_answers, "answers of b, c and d")
    assert {line.split()[0] for line in logged(lab["b"])[before:]} <= {lab["client"].ipv4, lab["client"].ipv6}


@pytest.mark.parametrize("name", RESTARTED)
def test_the_keeper_has_restored_everything_after_a_reboot(lab, name):
    keep = ["l4proxy", "keep", "--dry-run"]
    eventually(lambda: lab[name].run(keep, check=False).returncode == 0, "no drift", lambda: lab[name].run(keep).stdout)
    assert 'Status: "keeping ' in lab[name].run(["systemctl", "status", "l4proxy-keeper"]).stdout


def test_a_run_after_the_reboot_changes_nothing(play):
    run = play("site")
    assert run.status == 0, run.output
    assert run.changed == {}, run.output
