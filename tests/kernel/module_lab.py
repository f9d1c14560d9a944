# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules as Ansible runs them on a host of a lab: one by one, and their own examples."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import yaml

COLLECTIONS = Path(__file__).resolve().parents[2] / ".build" / "collections"


def run(host, module: ModuleType, check: bool = False, within: tuple[str, ...] = (), **options) -> dict:
    """One run: a process that reads its options as JSON and writes its result; ``within`` another command."""
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check, "_ansible_diff": True}})
    environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS)}
    done = host.run([*within, sys.executable, module.__file__], input=arguments, env=environment, check=False)
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout)


def run_examples(host, module: ModuleType, directory: Path) -> list[bool]:
    """Run the tasks of a module's EXAMPLES in one play on a host; which of them changed something."""
    tasks = [{**task, "register": f"result_{index}"} for index, task in enumerate(yaml.safe_load(module.EXAMPLES))]
    results = ", ".join(f"result_{index}" for index in range(len(tasks)))
    content = f"{{{{ [{results}] | to_json }}}}"
    write = {"ansible.builtin.copy": {"content": content, "dest": str(directory / "told"), "mode": "0600"}}
    play = {"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [*tasks, write]}
    (directory / "play.yml").write_text(json.dumps([play]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_HOME": str(directory / "home"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", f"{host.name},", "--diff", "play.yml"]
    host.run(command, env=environment, cwd=directory, timeout=120)
    return [result["changed"] for result in json.loads((directory / "told").read_text())]
