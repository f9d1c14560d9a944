# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built collection deploys the container lab with the newest ansible-core; molecule does so with the oldest.

The tests are the steps of one fleet, in the order of an operator; each depends on those before it.
"""

from __future__ import annotations

import re

import pytest

from tests.demo.__main__ import INVENTORY, WEB_SERVERS, ask_everybody
from tests.gates import environments
from tests.lab import ansible
from tests.lab.containers import ContainerLab

PREFIX = "core"
PACKAGE = environments.REPOSITORY / ".build" / "package"
NEWEST = "2.21"


@pytest.fixture(scope="module")
def play():
    """Return a function that runs a playbook with the Python and ansible-core of the other environment."""
    python, site = environments.ensure("py313")
    variables = {
        **environments.variables(site),
        "ANSIBLE_COLLECTIONS_PATH": str(PACKAGE),
        ansible.COMMAND_VARIABLE: f"{python} -m ansible playbook",
    }

    def run(name, *arguments):
        playbook = name if name.endswith(".yml") else f"trueip.l4proxy.{name}"
        done = ansible.play(PREFIX, playbook, [INVENTORY], *arguments, variables=variables)
        assert done.status == 0, done.output
        return done

    return run


@pytest.fixture(scope="module")
def lab(play):
    with ContainerLab(PREFIX) as raised:
        play(str(WEB_SERVERS))
        yield raised


def test_the_other_environment_has_the_newest_ansible_core(play):
    assert re.findall(r"core (\d+\.\d+)", play(str(WEB_SERVERS), "--version").output) == [NEWEST]


def test_check_mode_reports_changes_on_each_fresh_host(lab, play):
    assert set(play("site", "--check", "--diff").changed) == {"a", "b", "c", "d"}


def test_a_deployed_fleet_forwards_to_each_backend(lab, play):
    play("site")
    for address in (lab["a"].ipv4, f"[{lab['a'].ipv6}]"):
        assert set(ask_everybody(lab, f"http://{address}/")) == {"b", "c", "d"}


def test_a_backend_logs_the_clients_addresses(lab, play):
    play("verify")
    logged = lab["b"].run(["cat", "/var/log/nginx/access.log"]).stdout
    assert {lab["client"].ipv4, lab["client"].ipv6} == {line.split()[0] for line in logged.splitlines()}


def test_a_second_deployment_changes_nothing(lab, play):
    assert play("site").changed == {}


def test_teardown_changes_each_host(lab, play):
    assert set(play("teardown").changed) == {"a", "b", "c", "d"}
