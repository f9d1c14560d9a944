# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a restart of a and b, in fresh network namespaces that were wired after boot, without running Ansible."""

from __future__ import annotations

import time

import pytest

from tests.lab.traffic import get, logged

PATIENCE = 30.0
RESTARTED = ["a", "b"]


@pytest.fixture(scope="module", autouse=True)
def restarted(lab):
    """Restart a proxy and a backend; what comes up is another network namespace, without a rule of ours."""
    before = {name: netns(lab, name) for name in RESTARTED}
    for name in RESTARTED:
        lab.restart(name)
        assert netns(lab, name) != before[name]


def netns(lab, name):
    return lab[name].run(["readlink", "/proc/1/ns/net"]).stdout


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_it_works_again(lab, family):
    before = len(logged(lab["b"]))
    deadline = time.monotonic() + PATIENCE
    seen = set()
    while seen < {"b", "c", "d"} and time.monotonic() < deadline:
        seen.add(get(lab["client"], lab["a"], family, 80, check=False) or "")
    assert seen >= {"b", "c", "d"}
    assert {line.split()[0] for line in logged(lab["b"])[before:]} <= {lab["client"].ipv4, lab["client"].ipv6}


@pytest.mark.parametrize("name", RESTARTED)
def test_the_keeper_finds_no_drift(lab, name):
    deadline = time.monotonic() + PATIENCE
    while (done := lab[name].run(["l4proxy", "keep", "--dry-run"], check=False)).returncode:
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.3)
    assert 'Status: "keeping ' in lab[name].run(["systemctl", "status", "l4proxy-keeper"]).stdout


def test_a_second_run_after_the_restart_changes_nothing(play):
    run = play("site")
    assert run.status == 0, run.output
    assert run.changed == {}, run.output
