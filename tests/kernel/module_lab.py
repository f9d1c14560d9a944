# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module's own examples, as Ansible runs them on a host of a lab."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import yaml

COLLECTIONS = Path(__file__).resolve().parents[2] / ".build" / "collections"


def run_examples(host, module: ModuleType, directory: Path) -> int:
    """Run the tasks of a module's EXAMPLES in one play on a host; how many of them changed something."""
    examples = yaml.safe_load(module.EXAMPLES)
    play = {"hosts": "all", "connection": "local", "gather_facts": False, "tasks": examples}
    (directory / "play.yml").write_text(json.dumps([play]))
    settings = {
        "COLLECTIONS_PATH": COLLECTIONS,
        "HOME": directory / "home",
        "PIPELINING": 1,
        "PYTHON_INTERPRETER": sys.executable,
    }
    environment = {**os.environ, **{f"ANSIBLE_{key}": str(value) for key, value in settings.items()}}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", f"{host.name},", "--diff", "play.yml"]
    done = host.run(command, env=environment, cwd=directory, timeout=120)
    counted = re.search(r"ok=(\d+) +changed=(\d+) .* failed=0 ", done.stdout)
    assert counted, done.stdout
    assert int(counted[1]) == len(examples)
    return int(counted[2])
