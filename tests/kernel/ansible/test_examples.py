# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every example in the documentation of every module and filter runs, works, and changes nothing the second time.

A plugin that is added is found by itself. Where its examples need something to be there first, it gets a line in
``SCENES``. The hosts and addresses of the examples are those of the lab (tests/lab/topology.yml).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.trueip.l4proxy.plugins.filter import forwarder_config, local_delivery, return_path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.docs import examples
from tests.docs.sandbox import Sandbox
from tests.lab import ansible
from tests.lab.netns import NamespaceLab
from tests.unit.plugins.plugin_utils.fleet_data import NUMBERS, WEB, hostvars, view

LIBRARY = "/usr/local/lib/l4proxy"
COMMAND = "/usr/local/bin/l4proxy"
CONFIG = "/etc/l4proxy/forwarder.json"
PLUGINS = sorted(examples.plugins())

INVENTORY = {
    "all": {
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "l4proxy_services": [WEB],
        },
        "children": {
            "proxies": {"hosts": {"a": None}},
            "backends": {"hosts": {"b": None, "c": None, "d": None}},
        },
        # Declared, because "local" asks the host of the examples for everybody's facts, as in pull mode.
        "hosts": {
            name: {
                "l4proxy_address": [f"198.18.0.{number}/24", f"2001:db8::{number}/64"],
                "l4proxy_mac": f"02:00:00:00:00:{number}",
            }
            for name, number in NUMBERS.items()
        },
    }
}


def derived(module, host: str):
    """A document of the lab's fleet, by the filter that the roles use."""
    (derive,) = module.FilterModule().filters().values()
    return derive([WEB], view(host), hostvars())


def with_library(hosts):
    """The directory of the archive."""
    hosts["a"].run(["mkdir", "-p", LIBRARY])


def with_command(host: Sandbox):
    """The l4proxy command, as the keeper role installs it."""
    content = _archive.archive(_archive.sources(ansible.REPOSITORY))
    path = f"{LIBRARY}/{_archive.archive_name(_archive.collection_version(ansible.REPOSITORY), content)}"
    host.write(path, content, "0755")
    host.run(["ln", "-s", path, f"{LIBRARY}/l4proxy.pyz"])
    host.run(["mkdir", "-p", "/usr/local/bin"])
    host.run(["ln", "-sfn", f"{LIBRARY}/l4proxy.pyz", COMMAND])


def with_forwarder(hosts):
    """A running forwarder, and a config that was installed later."""
    host = hosts["a"]
    with_command(host)
    config = json.dumps(derived(forwarder_config, "a"))
    host.write(CONFIG, config)
    host.run(["mkdir", "-p", "/run/l4proxy"])
    host.spawn([COMMAND, "forward"])
    host.eventually_exists("/run/l4proxy/forwarder.json")
    host.write(CONFIG, config + "\n")


def with_path(hosts):
    """Both ends of the path to b, and a server there."""
    for name, module in (("a", local_delivery), ("b", return_path)):
        document = derived(module, name)
        hosts[name].write(f"/etc/l4proxy/routing.d/{document['owner']}.json", json.dumps(document))
        with_command(hosts[name])
        hosts[name].run([sys.executable, f"{LIBRARY}/l4proxy.pyz", "keep", "--once"])
    hosts["lab"].nginx("b")


# The host where the examples of a plugin run, and their preparation. Without an entry: on a, unprepared.
SCENES = {
    "forwarder_backend#module": ("a", with_forwarder),
    "forwarder_deny#module": ("a", with_forwarder),
    "forwarder_info#module": ("a", with_forwarder),
    "forwarder_session#module": ("a", with_forwarder),
    "handshake_probe#module": ("a", with_path),
    "policy_route#module": ("b", None),
    "return_path#filter": ("b", None),
    "return_path_strategy#filter": ("b", None),
    "routing_state_info#module": ("a", with_path),
    "routing_state#module": ("b", None),
    "source_proof#module": ("a", with_path),
    "zipapp#module": ("a", with_library),
}


@pytest.fixture
def hosts():
    with NamespaceLab(prefix=f"ex{os.getpid()}", hosts=["router", "a", "b"]) as lab:
        yield {"lab": lab, "a": Sandbox(lab, "a"), "b": Sandbox(lab, "b")}


def run_play(host: Sandbox, directory: Path, content) -> subprocess.CompletedProcess:
    """Run a play on a host of the lab, which is its own controller."""
    for name, data in (("inventory.yml", INVENTORY), ("play.yml", content)):
        (directory / name).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "ansible", "playbook", "--inventory", str(directory / "inventory.yml")]
    env = {**examples.collections_environment(directory / "home"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    return host.run([*command, str(directory / "play.yml")], env=env, check=False, timeout=120)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_example_runs_and_changes_nothing_the_second_time(hosts, tmp_path, plugin):
    documentation, (name, _hash, _kind) = examples.plugins()[plugin], plugin.partition("#")
    host, prepare = SCENES.get(plugin, ("a", None))
    if prepare:
        prepare(hosts)
    tasks = examples.tasks(documentation)
    done = run_play(hosts[host], tmp_path, examples.play(name, host, tasks))
    assert done.returncode == 0, done.stdout + done.stderr
    assert examples.faults(name, documentation, tasks, done.stdout) == [], done.stdout


def test_every_scene_belongs_to_a_plugin():
    assert set(SCENES) <= set(PLUGINS)
