# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One playbook for one thing, on the fleet that test_operations.py leaves. Each test needs the ones before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.lab import ansible
from tests.support.waiting import eventually

RESET = 56
# Sends a request each second on one connection, until that ends.
REQUESTS = f"""
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=20)
try:
    while True:
        connection.request("GET", "/")
        connection.getresponse().read()
        time.sleep(1)
except OSError as error:
    sys.exit({RESET} if type(error) is ConnectionResetError else repr(error))
"""
LIBRARY = "/usr/local/lib/l4proxy"
EARLIER = "l4proxy-0.0.9-0a1b2c3d.pyz"


def status(host):
    return json.loads(host.run(["l4proxy", "status", "--json"]).stdout)


def backends(host):
    """The backends of the service web, by name."""
    (web,) = status(host)["services"]
    return {entry["name"]: entry for entry in web["backends"]}


@pytest.fixture(scope="module")
def streams(lab):
    """Three connections through proxy a, one or two of them to c."""
    command = ["ip", "netns", "exec", lab["client"].netns, sys.executable, "-c", REQUESTS, lab["a"].ipv4]
    processes = [subprocess.Popen(command) for _number in range(3)]
    try:
        eventually(lambda: sum(one["active"] for one in backends(lab["a"]).values()) == 3, "three connections")
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cut(lab, streams):
    """How the connections to c end when it is removed."""
    number = backends(lab["a"])["c"]["active"]
    assert 0 < number < 3
    return [RESET] * number


def ended(streams):
    return [process.returncode for process in streams if process.poll() is not None]


@pytest.fixture
def edited(lab, tmp_path):
    """Run site with an inventory from which hosts were removed, or in which a backend is disabled."""

    def run(*removed, disabled=None):
        hosts = {"proxies": ["a", "a2"], "backends": ["b", "c"]}
        groups = {group: [name for name in names if name not in removed] for group, names in hosts.items()}
        web = {"name": "web", "listen": ["0.0.0.0:80", "[::]:80"]}
        refs = [{"host": name, "port": 8080, "enabled": name != disabled} for name in groups["backends"]]
        services = [{**web, "backends": refs}]
        content = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
        path = tmp_path / "inventory.yml"
        path.write_text(json.dumps({**content, "all": {"vars": {"l4proxy_services": services}}}), encoding="utf-8")
        return ansible.play(lab.prefix, "trueip.l4proxy.site", [path])

    return run


MISTAKES = [
    ("remove_backend", ["-e", "l4proxy_backend=x"], "l4proxy_backend: x is not in the group backends"),
    ("remove_proxy", [], "l4proxy_proxy is not defined; set it to the host to remove (a, a2)"),
    ("remove_proxy", ["-e", "l4proxy_proxy=a2", "--limit", "a"], "Run the playbook again without --limit"),
    ("rolling_update", ["-e", "l4proxy_update_tasks=/x.yml"], "l4proxy_update_tasks is /x.yml"),
]


@pytest.mark.parametrize(("playbook", "arguments", "sentence"), MISTAKES)
def test_a_mistake_changes_nothing(play, playbook, arguments, sentence):
    run = play(playbook, *arguments)
    assert run.status
    assert sentence in run.output, run.output
    assert run.changed == {}, run.output


def test_the_check_of_a_removal_says_what_would_happen_and_changes_nothing(lab, play, streams, cut):
    run = play("remove_backend", "-e", "l4proxy_backend=c", "--check")
    assert run.status == 0, run.output
    assert f"backend c leaves service web: {len(cut)} connection" in run.output, run.output
    assert "c would be removed from the running fleet" in run.output, run.output
    assert {one["admin"] for name in ("a", "a2") for one in backends(lab[name]).values()} == {"ready"}
    assert ended(streams) == []


def test_a_backend_with_connections_is_not_removed_without_force(lab, play, streams, cut):
    run = play("remove_backend", "-e", "l4proxy_backend=c", "-e", "l4proxy_drain_timeout=2")
    assert run.status
    assert f"a: backend c still has {len(cut)} connection" in run.output, run.output
    assert "-e l4proxy_force=true" in run.output, run.output
    # Drained on both proxies, but nothing is removed.
    assert [backends(lab[name])["c"]["admin"] for name in ("a", "a2")] == ["draining"] * 2
    lab["c"].run(["test", "-e", "/etc/l4proxy/routing.d/return_path.json"])
    assert ended(streams) == []


def test_an_update_stops_before_it_cuts_a_connection_and_says_how_to_go_on(play, streams, tmp_path):
    tasks = tmp_path / "update.yml"
    tasks.write_text('[{"ansible.builtin.fail": {"msg": "the update has begun"}}]', encoding="utf-8")
    run = play("rolling_update", "-e", f"l4proxy_update_tasks={tasks}", "-e", "l4proxy_update_timeout=2")
    assert run.status
    assert "a: backend b still has" in run.output, run.output
    assert "run this playbook again with --limit b,c" in run.output, run.output
    assert "the update has begun" not in run.output, run.output
    assert ended(streams) == []


def test_all_ready_puts_everything_back_into_rotation(lab, play):
    run = play("all_ready")
    assert run.changed == {"a": 1, "a2": 1}, run.output
    assert "c in web, was draining" in run.output, run.output
    assert [backends(lab[name])["c"]["admin"] for name in ("a", "a2")] == ["ready"] * 2


def test_a_removed_backend_can_leave_the_inventory(lab, play, edited, streams, cut):
    run = play("remove_backend", "-e", "l4proxy_backend=c", "-e", "l4proxy_drain_timeout=2", "-e", "l4proxy_force=true")
    assert run.status == 0, run.output
    assert "remove c:8080 from the backends of service web (l4proxy_services[0].backends[1])" in run.output, run.output
    # What is left was reset, and nothing else.
    eventually(lambda: ended(streams) == cut, "the end of the connections to c", lambda: ended(streams))
    assert list(backends(lab["a"])) == ["b"]
    assert lab["c"].run(["test", "-e", "/etc/l4proxy"], check=False).returncode
    run = edited("c")
    assert (run.status, run.changed) == (0, {}), run.output


def test_a_removed_proxy_can_leave_the_inventory(lab, play, edited, streams, cut):
    run = edited(disabled="c")
    assert set(run.changed) == {"a", "a2", "c"}, run.output
    assert play("all_ready").changed == {}
    assert backends(lab["a2"])["c"]["admin"] == "disabled"
    # By this inventory, c is enabled.
    run = play("remove_proxy", "-e", "l4proxy_proxy=a2", "-e", "l4proxy_drain_timeout=4")
    assert run.status == 0, run.output
    assert "remove a2 from the group proxies" in run.output, run.output
    assert lab["a2"].run(["systemctl", "is-active", "l4proxy-forwarder"], check=False).stdout == "inactive\n"
    run = edited("a2")
    assert (run.status, run.changed) == (0, {}), run.output
    # a has all ports again, and kept its connections.
    assert ended(streams) == cut


def test_a_host_that_fails_is_named_at_the_end_and_the_next_run_completes(lab, play):
    config = "/etc/l4proxy/forwarder.json"
    lab["a"].run(["mount", "--bind", config, config])  # so that it cannot be replaced
    try:
        run = play("site")
    finally:
        lab["a"].run(["umount", config])
    assert run.status
    assert run.recap["a2"]["failed"] == 0, run.output
    assert run.recap["a"]["failed"] == 1, run.output
    assert "a failed: Write the forwarder" in run.output, run.output
    for name in ("a", "a2", "b", "c"):
        assert f"{name}: keeper l4proxy-" in run.output, run.output
    assert set(play("site").changed) == {"a"}


def test_a_rollback_goes_to_the_archive_before_the_upgrade(lab, play, streams, cut):
    current = lab["a"].run(["readlink", f"{LIBRARY}/l4proxy.pyz"]).stdout.strip()
    run = play("roll_back", "--limit", "a")
    assert run.status
    assert f"a runs {current} and has no record of an earlier one" in run.output, run.output
    # As if this run of site were an upgrade.
    lab["a"].run(["cp", f"{LIBRARY}/{current}", f"{LIBRARY}/{EARLIER}"])
    lab["a"].run(["ln", "-sfn", EARLIER, f"{LIBRARY}/l4proxy.pyz"])
    assert play("site", "--limit", "a").status == 0
    assert "would replace" in play("roll_back", "--limit", "a", "--check").output
    run = play("roll_back", "--limit", "a")
    assert run.status == 0, run.output
    assert "trueip.l4proxy:==0.0.9" in run.output, run.output
    assert status(lab["a"])["archive"]["path"] == f"{LIBRARY}/{EARLIER}"
    keeper = json.loads(lab["a"].run(["cat", "/run/l4proxy-keeper/state.json"]).stdout)
    assert keeper["archive"].endswith(EARLIER)
    assert play("roll_back", "--limit", "a").changed == {}
    assert ended(streams) == cut


def test_teardown_changes_nothing_on_a_host_without_the_collection(lab, play):
    assert play("teardown", "--limit", "c").changed == {"c": 3}
    lab["c"].run(["dpkg", "--purge", "python3-pyroute2"])
    run = play("teardown", "--limit", "c")
    assert (run.status, run.changed) == (0, {}), run.output
