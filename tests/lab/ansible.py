# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run playbooks of the collection on a running lab, as an operator does, and read their results."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
INVENTORY = REPOSITORY / "tests" / "lab" / "inventory" / "hosts.yml"
CONNECTIONS = REPOSITORY / "tests" / "lab" / "connection_plugins"

#: Where a scenario or the demo installs the built collection; the checkout's own link serves everything else.
COLLECTIONS = REPOSITORY / ".build" / "collections"

#: The command in place of this interpreter's own ansible-playbook, where another ansible-core is to be tested.
COMMAND_VARIABLE = "L4PROXY_ANSIBLE_PLAYBOOK"

RECAP = re.compile(r"^(?P<host>\S+)\s+: (?P<counts>ok=.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """The result of ansible-playbook: exit status, output, and the recap as {host: {counter: number}}."""

    status: int
    output: str
    recap: Mapping[str, Mapping[str, int]]

    @property
    def changed(self) -> dict[str, int]:
        """The number of changed tasks by host, without hosts where nothing changed."""
        return {host: counts["changed"] for host, counts in self.recap.items() if counts["changed"]}


def environment(prefix: str, collections: Path | None = None) -> dict[str, str]:
    """The environment in which Ansible finds the lab ``prefix`` and the collection."""
    chosen = collections or Path(os.environ.get("ANSIBLE_COLLECTIONS_PATH", COLLECTIONS))
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(chosen),
        "ANSIBLE_CONNECTION_PLUGINS": str(CONNECTIONS),
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_PIPELINING": "true",
        "L4PROXY_LAB_PREFIX": prefix,
    }


def command(playbook: str, inventories: list[Path], *arguments: str, program: str | None = None) -> list[str]:
    """The command line of one playbook, a file or a name such as ``trueip.l4proxy.site``."""
    own = str(Path(sys.executable).with_name("ansible-playbook"))
    sources = [part for inventory in (INVENTORY, *inventories) for part in ("--inventory", str(inventory))]
    return [*shlex.split(program or own), *sources, *arguments, playbook]


def parse_recap(output: str) -> dict[str, dict[str, int]]:
    """Read the PLAY RECAP of a run without colours."""
    return {
        found["host"]: {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", found["counts"])}
        for found in RECAP.finditer(output)
    }


def play(
    prefix: str,
    playbook: str,
    inventories: list[Path],
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    collections: Path | None = None,
    timeout: float = 600,
) -> Run:
    """Run a playbook.

    :param variables: more of the environment, over what :func:`environment` gives.
    :param collections: where the collection is found, in place of the usual path.
    :param timeout: seconds; a run that takes longer is killed and raises.
    """
    env = {
        **environment(prefix, collections),
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_FORCE_COLOR": "false",
        **(variables or {}),
    }
    done = subprocess.run(
        command(playbook, inventories, *arguments, program=env.get(COMMAND_VARIABLE)),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout, parse_recap(done.stdout))
