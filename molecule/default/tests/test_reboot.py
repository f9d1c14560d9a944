# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a reboot of a and b, without a run of Ansible; their new network namespaces are connected after boot."""

from __future__ import annotations

import pytest

from tests.lab.traffic import get, logged
from tests.support.waiting import eventually

RESTARTED = ["a", "b"]


@pytest.fixture(scope="module", autouse=True)
def restarted(lab):
    """Reboot a proxy and a backend; each gets a new network namespace without any rule of ours."""
    before = {name: netns(lab, name) for name in RESTARTED}
    for name in RESTARTED:
        lab.restart(name)
        assert netns(lab, name) != before[name]


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
