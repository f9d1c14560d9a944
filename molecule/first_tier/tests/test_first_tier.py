# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxies a and a2 share virtual IPs, which move while clients connect and hold streams there.

Each test needs the ones before.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.lab import earlier, listing
from tests.support.waiting import eventually
from tests.walk import fleet as walk

VIRTUAL = ["198.18.0.100", "2001:db8::100"]
PROXIES = ("a", "a2")
RATE, STREAMS = 200, 50
KERNEL, KERNEL_ECHO = 7002, 9002


class Fleet(walk.Fleet):
    """Clients use the virtual addresses only."""

    def targets(self, proxies, port):
        return [(address, port) for address in VIRTUAL]


@pytest.fixture(scope="module")
def fleet(lab, tmp_path_factory):
    found = Fleet(lab, tmp_path_factory.mktemp("first_tier"))
    inventory = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "inventory.yml"
    found.inventory = yaml.safe_load(inventory.read_text(encoding="utf-8"))
    found.serve("b", "c")
    found.serve("b", "c", port=KERNEL_ECHO)  # a port of a backend has one datapath
    yield found
    found.end()


@pytest.fixture(scope="module")
def fresh(lab):
    """Listings with the package of keepalived, which stays with its files when the role has gone."""
    for name in PROXIES:
        lab[name].run(["apt-get", "install", "--yes", "--no-install-recommends", "keepalived"], timeout=120)
        lab[name].run(["systemctl", "disable", "keepalived"])
    return {name: listing.take(lab[name], packages=False) for name in lab.managed}


def holders(lab):
    """The proxies that have any virtual address on their link."""
    shown = {name: lab[name].run(["ip", "-json", "address", "show", "dev", "eth0"]).stdout for name in PROXIES}
    return [
        name
        for name, text in shown.items()
        if any(one.get("local") in VIRTUAL for link in json.loads(text) for one in link["addr_info"])
    ]


def traces(lab):
    """What a window leaves behind."""
    left = (
        "nft list tables | grep second_chance; ip -o address show dev lo dynamic; ip -6 route show dev lo | grep ::100"
    )
    script = f"{left}; l4proxy healthy"
    return {name: lab[name].run(["sh", "-c", script], check=False).stdout for name in PROXIES}


HEALTHY = dict.fromkeys(PROXIES, "this proxy should get clients\n")


@contextmanager
def clients(fleet):
    """Connections and streams meanwhile: none may fail or break."""
    fleet.start_load(RATE)
    try:
        fleet.web("all")
        for port in (walk.STREAM, KERNEL):
            fleet.open("stream", STREAMS // 2, "all", port=port, reopen=True, life=15)
        fleet.open("flow", 10, "all", reopen=True)
        yield
        eventually(lambda: len(fleet.events()) > 1000)
        events = fleet.events()
    finally:
        fleet.end()
        fleet._read, fleet._events = 0, []
    assert [one for one in events if one.get("error")] == []
    broken = [one for one in events if one["event"] == "broken"]
    assert [one for one in broken if one["kind"] == "stream"] == []
    # A UDP session begins anew at the other proxy; with source_hash, at the same backend.
    assert {one["how"] for one in broken} <= {"another port"}


def test_check_mode_changes_nothing(lab, play, fresh):
    run = play("site", "--check")
    assert run.status == 0, run.output
    assert set(run.changed) == set(lab.managed), run.output
    after = {name: listing.take(lab[name], packages=False) for name in PROXIES}
    assert [line for name in after for line in listing.differences(fresh[name], after[name])] == []


def test_one_proxy_has_the_addresses_and_the_next_run_changes_nothing(lab, play):
    run = play("site")
    assert run.status == 0, run.output
    assert len(holders(lab)) == 1
    run = play("site")
    assert (run.status, run.changed) == (0, {}), run.output


MISTAKES = [
    (
        "failover",
        ["-e", "l4proxy_virtual_ip=x"],
        "x is not a name in l4proxy_virtual_ips; use one of web",
    ),
    ("failover", ["-e", "l4proxy_virtual_ip=web", "--limit", "a"], "Run the playbook again without --limit"),
]


@pytest.mark.parametrize(("playbook", "arguments", "sentence"), MISTAKES)
def test_a_mistake_changes_nothing(play, playbook, arguments, sentence):
    run = play(playbook, *arguments)
    assert run.status
    assert sentence in run.output, run.output
    assert run.changed == {}


def test_an_address_moves_on_purpose(lab, play, fleet):
    (holder,) = holders(lab)
    run = play("failover", "-e", "l4proxy_virtual_ip=web", "--check")
    assert (run.status, run.changed) == (0, {}), run.output
    assert f"{holder} would leave the first tier" in run.output, run.output
    other = next(name for name in PROXIES if name != holder)
    with clients(fleet):
        run = play("failover", "-e", "l4proxy_virtual_ip=web", "-e", f"l4proxy_to={other}")
    assert run.status == 0, run.output
    assert holders(lab) == [other]
    assert traces(lab) == HEALTHY


@pytest.mark.slow
def test_an_upgrade_of_both_proxies_breaks_nothing(lab, play, fleet, scratch):
    newer = earlier.newer(scratch / "newer")
    with clients(fleet):
        run = play("rolling_update_proxies", "-e", "l4proxy_update_timeout=60", collections=newer)
    assert run.status == 0, run.output
    assert {fleet.status(name)["version"] for name in PROXIES} == {earlier.NEWER}
    assert len(holders(lab)) == 1
    assert traces(lab) == HEALTHY


@pytest.mark.slow
def test_a_failed_update_leaves_the_proxy_withdrawn_and_all_ready_puts_it_back(lab, play, tmp_path):
    tasks = tmp_path / "update.yml"
    tasks.write_text('[{"ansible.builtin.fail": {"msg": "no power"}}]', encoding="utf-8")
    run = play("rolling_update_proxies", "-e", f"l4proxy_update_tasks={tasks}", "-e", "l4proxy_update_timeout=2")
    assert run.status
    assert "no power" in run.output, run.output
    assert "run this playbook again with --limit a,a2" in run.output, run.output
    assert holders(lab) == ["a2"]
    assert "an operator has withdrawn it (rolling update)" in play("verify").output
    run = play("all_ready")
    assert (run.status, set(run.changed)) == (0, {"a", "a2"}), run.output
    assert traces(lab) == HEALTHY


def test_teardown_leaves_the_hosts_as_they_were(lab, play, fresh):
    run = play("teardown")
    assert run.status == 0, run.output
    # Not the backends, which have the servers of the test's clients; molecule default compares those.
    after = {name: listing.take(lab[name], packages=False) for name in PROXIES}
    lines = [line for name in after for line in listing.differences(fresh[name], after[name])]
    # keepalived itself writes a file there when it starts.
    left = [line for line in lines if "/etc/iproute2" not in line]
    assert left == [], "\n".join(left)
