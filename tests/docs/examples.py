# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the examples in the documentation of modules and filters into plays, and check the output of these plays.

A task of the plugin itself runs three times: in check mode, for real, and again. Other tasks, such as a reload that
depends on a registered result, run once.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.lab import ansible

COLLECTION = "trueip.l4proxy"
TYPES = ("module", "filter", "lookup", "test")
CHECK, RUN, AGAIN = "check: ", "run: ", "again: "
WORST = ["nothing", "skipping", "ok", "changed", "failed", "fatal"]
OUTCOME = re.compile(r"^(ok|changed|skipping|fatal|failed): \[", re.MULTILINE)


def collections_environment(home: Path) -> dict[str, str]:
    """Return the environment in which Ansible finds the collection of this checkout."""
    return {**ansible.environment("examples"), "ANSIBLE_HOME": str(home), "ANSIBLE_NOCOLOR": "true"}


@functools.lru_cache(maxsize=1)
def plugins() -> Mapping[str, Mapping[str, Any]]:
    """Return the output of ansible-doc for each plugin, by ``NAME#TYPE``."""
    env = collections_environment(ansible.REPOSITORY / ".build" / "ansible")
    dumped = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "--metadata-dump", COLLECTION],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(dumped.stdout)["all"]
    return {
        f"{name.removeprefix(COLLECTION + '.')}#{kind}": documentation
        for kind in TYPES
        for name, documentation in sorted(found.get(kind, {}).items())
    }


def tasks(documentation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the examples as tasks.

    :raises ValueError: they are not a list of tasks with different names.
    """
    found = yaml.safe_load(documentation.get("examples") or "")
    if not isinstance(found, list) or not all(isinstance(task, dict) and task.get("name") for task in found):
        raise ValueError("EXAMPLES must be a list of tasks, each with a name")
    names = [task["name"] for task in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two examples have the same name: {names}")
    return found


def is_read_only(documentation: Mapping[str, Any]) -> bool:
    """Return whether the documented attributes of a module say that it changes nothing."""
    return documentation["doc"].get("attributes", {}).get("diff_mode", {}).get("support") == "N/A"


def play(name: str, host: str, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a play that runs the examples of the module or filter ``name``."""
    steps = []
    for task in examples:
        own = f"{COLLECTION}.{name}" in task
        if own:
            steps.append({**task, "name": CHECK + task["name"], "check_mode": True})
        steps.append({**task, "name": RUN + task["name"]})
        if own:
            steps.append({**task, "name": AGAIN + task["name"]})
    return [{"name": f"Examples of {name}", "hosts": host, "gather_facts": False, "tasks": steps}]


def outcomes(output: str) -> dict[str, str]:
    """Return the result of each task (ok, changed, skipping, fatal) from the output of ansible-playbook."""
    found = {}
    for part in re.split(r"^TASK \[", output, flags=re.MULTILINE)[1:]:
        name, _bracket, rest = part.partition("] **")
        found[name] = max(OUTCOME.findall(rest) or ["nothing"], key=WORST.index)  # a loop has a result for each item
    return found


def own_faults(title: str, became: Mapping[str, str], expected: tuple[str, ...]) -> list[str]:
    """Return what is wrong with the three runs of a task of the plugin; the real one must end as in ``expected``."""
    predicted, ran, again = (became.get(mode + title) for mode in (CHECK, RUN, AGAIN))
    wrong = []
    if ran not in expected:
        wrong.append(f"{title}: {ran} in its first run, expected {' or '.join(expected)}")
    if predicted != ran and not (predicted == "skipping" and ran == "ok"):
        wrong.append(f"{title}: check mode says {predicted}, the run {ran}")
    if again != "ok":
        wrong.append(f"{title}: {again} in its second run, expected ok")
    return wrong


def _expected(options: Mapping[str, Any], documentation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outcomes that the first run of a task with these options may have."""
    if is_read_only(documentation) or options.get("action", _default(documentation, "action")) == "info":
        return ("ok",)
    # State absent changes nothing if the object has never existed, nor does the end of what is not there.
    removes = options.get("state") == "absent" or options.get("action") == "kill"
    return ("ok", "changed") if removes else ("changed",)


def _default(documentation: Mapping[str, Any], option: str) -> Any:
    return documentation["doc"].get("options", {}).get(option, {}).get("default")


def faults(name: str, documentation: Mapping[str, Any], examples: list[dict[str, Any]], output: str) -> list[str]:
    """Return what the output of a play shows to be wrong with the examples or the plugin."""
    became, plugin, wrong = outcomes(output), f"{COLLECTION}.{name}", []
    for task in examples:
        title, ran = task["name"], became.get(RUN + task["name"])
        # The import of a role prints no task.
        if ran not in ("ok", "changed") and "ansible.builtin.import_role" not in task:
            wrong.append(f"{title}: {ran}, expected it to run")
        if plugin in task:
            wrong += own_faults(title, became, _expected(task[plugin] or {}, documentation))
    if plugin not in json.dumps(examples):
        wrong.append(f"no example uses {plugin}")
    return wrong
