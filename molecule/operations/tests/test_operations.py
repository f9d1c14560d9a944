# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations on a fleet with two proxies. Each test needs the ones before; the first needs fresh hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.lab import ansible, listing
from tests.lab.traffic import get
from tests.support.waiting import eventually

PROXIES, BACKENDS = ["a", "a2"], ["b", "c"]
WEB = {"name": "web", "listen": ["0.0.0.0:80", "[::]:80"], "backends": ["b:8080", "c:8080"]}


def services(*changed):
    """Return the extra variable that replaces the fleet's services."""
    return ["--extra-vars", json.dumps({"l4proxy_services": list(changed)})]


def cache(directory):
    """Return environment variables for a fact cache in files."""
    return {
        "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(directory),
        "ANSIBLE_CACHE_PLUGIN_TIMEOUT": "0",
    }


def marks(lab, backend):
    """Return the marks of a backend's document as {proxy: (id, addresses)}; without MACs, as in the inventory."""
    document = json.loads(lab[backend].run(["cat", "/etc/l4proxy/routing.d/return_path.json"]).stdout)
    assert {mark["mac"] for mark in document["marks"]} == {None}
    return {mark["name"]: (mark["id"], tuple(mark["via"])) for mark in document["marks"]}


def expected_marks(lab):
    proxies = [lab.topology.hosts[name] for name in PROXIES]
    return {spec.name: (spec.number, (spec.ipv4, spec.ipv6)) for spec in proxies}


def known_macs(lab, backend):
    """Return the proxies whose MAC is in the live marks of a backend."""
    ruleset = lab[backend].run(["nft", "list", "table", "inet", "l4proxy_return_path"]).stdout
    return [name for name in PROXIES if lab.topology.hosts[name].mac in ruleset]


def reached(lab, proxy):
    """Return the backends that answer through a proxy, in both families."""
    return {get(lab["client"], lab[proxy], family, 80) for family in ("ipv4", "ipv6") for _request in range(4)}


# Each host gets its own subnet.
NUMBER = "{{ groups.all.index(inventory_hostname) + 1 }}"
ELSEWHERE = ["--extra-vars", json.dumps({"l4proxy_address": [f"10.9.{NUMBER}.9/24", f"2001:db8:9:{NUMBER}::9/64"]})]

# A row for each way to a refusal: faults of services, of hosts, of variables. All others: unit tests.
BROKEN = {**WEB, "backends": ["b:0", "c:70000"], "wieght": 3}
REFUSED = [
    (
        "services",
        services(BROKEN),
        ["l4proxy_services[0].backends[0].port: 0", "l4proxy_services[0].backends[1].port: 70000", "wieght"],
    ),
    ("off the subnet", ELSEWHERE, ["shares no subnet with backend"]),
    (
        "nothing defined",
        ["--extra-vars", '{"l4proxy_services": null}'],
        ["l4proxy_services is not defined on this host"],
    ),
]


@pytest.fixture(scope="module")
def untouched(lab):
    """Listings of the fresh hosts."""
    return {name: listing.take(lab[name], packages=True) for name in lab.managed}


def assert_untouched(lab, before):
    for name in lab.managed:
        assert listing.differences(before[name], listing.take(lab[name], packages=True)) == []


@pytest.mark.parametrize(("arguments", "sentences"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_faulty_inventory_is_refused_before_any_host_is_changed(lab, play, untouched, arguments, sentences):
    run = play("site", *arguments)
    assert run.status != 0
    assert [sentence for sentence in sentences if sentence not in run.output] == [], run.output
    assert run.changed == {}, run.output
    assert_untouched(lab, untouched)


@pytest.mark.parametrize("group", ["proxies", "backends"])
def test_an_empty_group_is_refused(lab, tmp_path, group):
    other = "backends" if group == "proxies" else "proxies"
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({other: {"hosts": {"b": {}}}, group: {}}), encoding="utf-8")
    run = ansible.play(lab.prefix, "trueip.l4proxy.site", [inventory])
    assert run.status != 0
    assert f"The group {group} is missing or empty" in run.output, run.output


def test_a_run_limited_to_one_backend_changes_only_that_backend(lab, play, tmp_path, untouched):
    run = play("site", "--limit", "b", variables=cache(tmp_path))
    assert run.status == 0, run.output
    assert set(run.changed) == {"b"}, run.output
    assert marks(lab, "b") == expected_marks(lab)
    assert known_macs(lab, "b") == PROXIES
    for name in ("a", "a2", "c"):
        assert listing.differences(untouched[name], listing.take(lab[name], packages=True)) == []


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The fact cache of the run that deploys everything."""
    return tmp_path_factory.mktemp("cache")


def test_site_deploys_one_host_at_a_time(lab, play, cached):
    run = play("site", "--extra-vars", "l4proxy_serial=1", variables=cache(cached))
    assert run.status == 0, run.output
    assert set(run.changed) == {"c", "a", "a2"}, run.output
    assert marks(lab, "c") == marks(lab, "b") == expected_marks(lab)
    for proxy in PROXIES:
        assert reached(lab, proxy) == set(BACKENDS)


@pytest.mark.parametrize("limit", ["b", "a"], ids=["backend", "proxy"])
def test_a_stale_fact_cache_changes_nothing(lab, play, cached, tmp_path, limit):
    files = list(cached.iterdir())
    assert len(files) >= len([*PROXIES, *BACKENDS])
    for path in files:
        # The cache has other addresses for every host.
        content = path.read_text(encoding="utf-8")
        stale = content.replace("198.18.0.", "198.18.0.10")
        assert stale != content
        (tmp_path / path.name).write_text(stale, encoding="utf-8")
    run = play("site", "--limit", limit, variables=cache(tmp_path))
    assert run.status == 0, run.output
    assert run.changed == {}, run.output


def test_the_next_run_completes_one_that_was_killed_before_the_reload(lab, play):
    changed = services({**WEB, "connect_timeout": 1.5})
    sums = [sha256(lab["a"], "/etc/l4proxy/forwarder.json")]
    kill_at(
        lab,
        "forwarder : Apply the rules and the route of local delivery",
        "trueip.l4proxy.site",
        "--limit",
        "a",
        *changed,
    )
    sums.append(sha256(lab["a"], "/etc/l4proxy/forwarder.json"))
    assert sums[0] != sums[1]
    assert running(lab["a"])["config"]["sha256"] == sums[0]
    pid = running(lab["a"])["pid"]
    next_run = play("site", "--limit", "a", *changed)
    assert next_run.changed == {"a": 2}, next_run.output  # the reload, and the copy of the config that it serves
    assert running(lab["a"])["config"]["sha256"] == sums[1]
    assert running(lab["a"])["pid"] == pid
    assert reached(lab, "a") == set(BACKENDS)


def test_a_config_that_the_host_refuses_does_not_replace_the_running_one(lab, play):
    before = sha256(lab["a"], "/etc/l4proxy/forwarder.json")
    # The host's own check decides, here as if its archive were stricter than the controller.
    command = lab["a"].run(["readlink", "/usr/local/bin/l4proxy"]).stdout.strip()
    lab["a"].run(
        ["sh", "-c", "printf '#!/bin/sh\\necho refused by the host; exit 1\\n' >/tmp/strict; chmod +x /tmp/strict"]
    )
    lab["a"].run(["ln", "-sfn", "/tmp/strict", "/usr/local/bin/l4proxy"])
    try:
        run = play("site", "--limit", "a", "--tags", "forwarder_configure", *services({**WEB, "connect_timeout": 2}))
    finally:
        lab["a"].run(["ln", "-sfn", command, "/usr/local/bin/l4proxy"])
    assert run.status != 0
    assert "refused by the host" in run.output
    assert sha256(lab["a"], "/etc/l4proxy/forwarder.json") == before
    assert reached(lab, "a") == set(BACKENDS)


def test_site_configures_the_other_hosts_while_a_proxy_is_down(lab, play, tmp_path):
    before = marks(lab, "b")
    lab.stop("a2")
    for name in ("a", "b"):
        # Give the run something to repair, so that we notice if it stops early. The keeper would repair it first.
        lab[name].run(["systemctl", "stop", "l4proxy-keeper"])
        lab[name].run(["ip", "rule", "del", "pref", "1100"])
    try:
        run = play("site", variables=cache(tmp_path))
        assert run.recap["a2"]["unreachable"] or run.recap["a2"]["ignored"], run.output
        assert {name: run.recap[name]["failed"] for name in ("a", "b", "c")} == {"a": 0, "b": 0, "c": 0}, run.output
        # The rule and the keeper; a also the config without the service of the killed run, its reload, and its copy.
        assert run.changed == {"a": 5, "b": 2}, run.output
        assert marks(lab, "b") == before
        assert reached(lab, "a") == set(BACKENDS)
        refuse_then_declare(lab, play)
    finally:
        lab.start("a2")


def refuse_then_declare(lab, play):
    """A backend that has never met a2 refuses, because the address is unknown, until the inventory declares it."""
    taken = play("teardown", "--limit", "c")
    assert taken.status == 0, taken.output
    refused = play("site", "--limit", "c")
    assert refused.status != 0
    assert "the address of a2 is unknown to c" in refused.output, refused.output
    assert not refused.changed
    spec = lab.topology.hosts["a2"]
    inventory = lab_inventory(spec)
    for version in ("-4", "-6"):
        # c has talked to a2 until a minute ago; a new host has not.
        lab["c"].run(["ip", version, "neigh", "flush", "dev", "eth0"])
    declared = ansible.play(lab.prefix, "trueip.l4proxy.site", [scenario_inventory(), inventory], "--limit", "c")
    assert declared.recap["c"]["failed"] == 0, declared.output
    # The keeper learns the MAC when a2 is back, see the next test. Ansible wraps its warnings.
    assert "the MAC of proxy a2 is not known yet" in " ".join(declared.output.split()), declared.output
    assert marks(lab, "c") == expected_marks(lab)
    assert known_macs(lab, "c") == ["a"]


def test_the_keeper_learns_the_mac_of_a_proxy_that_was_down(lab):
    eventually(
        lambda: known_macs(lab, "c") == PROXIES,
        "the MACs of both proxies",
        lambda: lab["c"].run(["systemctl", "status", "l4proxy-keeper"], check=False).stdout,
    )
    assert reached(lab, "a2") == set(BACKENDS)


def test_site_configures_the_proxy_that_was_down(lab, play):
    assert play("site").status == 0
    for proxy in PROXIES:
        assert reached(lab, proxy) == set(BACKENDS)


def test_the_roles_work_in_a_users_own_play_with_serial_1(lab, tmp_path):
    plays = [
        {"hosts": group, "gather_facts": False, "serial": 1, "roles": [f"trueip.l4proxy.{role}"]}
        for group, role in (("backends", "return_path"), ("proxies", "forwarder"))
    ]
    own = tmp_path / "own.yml"
    own.write_text(json.dumps(plays), encoding="utf-8")
    lab["b"].run(["systemctl", "stop", "l4proxy-keeper"])
    lab["b"].run(["ip", "rule", "del", "pref", "1100"])
    run = ansible.play(lab.prefix, str(own), [scenario_inventory()])
    assert run.status == 0, run.output
    assert run.changed == {"b": 2}, run.output


def scenario_inventory():
    return ansible.REPOSITORY / "molecule" / "operations" / "inventory.yml"


def lab_inventory(spec):
    """Write an inventory that declares a2's addresses; return its path."""
    path = ansible.REPOSITORY / ".build" / "declared.json"
    variables = {"l4proxy_address": [f"{spec.ipv4}/24", f"{spec.ipv6}/64"]}
    path.write_text(json.dumps({"proxies": {"hosts": {"a2": variables}}}), encoding="utf-8")
    return path


def sha256(host, path):
    return host.run(["sha256sum", path]).stdout.split()[0]


def running(host):
    return json.loads(host.run(["cat", "/run/l4proxy/forwarder.json"]).stdout)


def kill_at(lab, task, playbook, *arguments):
    """Kill a run and its child processes as soon as it starts ``task``."""
    env = {**ansible.environment(lab.prefix), "ANSIBLE_NOCOLOR": "true", "PYTHONUNBUFFERED": "1"}
    command = ansible.command(playbook, [scenario_inventory()], *arguments)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        seen = any(task in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)
    assert seen
