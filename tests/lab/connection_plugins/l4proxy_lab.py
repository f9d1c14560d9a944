# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible's way into a host of the lab: the command line that tests/lab wrote down for it, run without any network.

nsenter takes 3 ms where podman exec takes 150.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: l4proxy_lab
short_description: Run tasks on a host of the test lab
description:
  - Enters the namespaces of a host that C(python -m tests.lab up) raised. A powered-off host is unreachable.
author: The trueip.l4proxy authors
options:
  prefix:
    description: The lab's prefix.
    type: str
    default: lab
    vars: [{name: l4proxy_lab_prefix}]
    env: [{name: L4PROXY_LAB_PREFIX}]
  lab_host:
    description: The host's name in the lab.
    type: str
    vars: [{name: inventory_hostname}, {name: ansible_host}, {name: l4proxy_lab_host}]
  state_directory:
    description: Where the lab keeps what it knows.
    type: path
    vars: [{name: l4proxy_lab_state_directory}]
    env: [{name: L4PROXY_LAB_STATE}]
extends_documentation_fragment: [connection_pipelining]
"""

STATE = Path(__file__).resolve().parents[3] / ".build" / "lab"


class Connection(ConnectionBase):
    """A connection without a connection: every command finds its own way in, so a rebooted host is no special case."""

    transport = "l4proxy_lab"
    has_pipelining = True

    def _connect(self) -> Connection:
        return self

    def close(self) -> None:
        pass

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        process = subprocess.Popen(
            [*self._way_in(), "/bin/sh", "-c", cmd],
            stdin=subprocess.PIPE if in_data is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(in_data)
        if process.returncode:
            self._way_in()  # a host that went down meanwhile is unreachable, the task has not failed
        return process.returncode, out, err

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        if not os.path.exists(in_path):
            raise AnsibleFileNotFound(f"{in_path} is to be copied to {self.get_option('lab_host')}, but does not exist")
        with open(in_path, "rb") as source:
            self._copy(["/usr/bin/env", "dd", "bs=256K", "status=none", f"of={out_path}"], source, subprocess.DEVNULL)

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as target:
            self._copy(["/usr/bin/env", "cat", "--", in_path], subprocess.DEVNULL, target)

    def _copy(self, command, stdin, stdout) -> None:
        done = subprocess.run(
            [*self._way_in(), *command], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            self._way_in()
            raise AnsibleConnectionFailure(f"{command}: {done.stderr.decode(errors='replace').strip()}")

    def _way_in(self) -> list[str]:
        """The command line into the host; AnsibleConnectionFailure (unreachable) if the host is not up."""
        prefix, name = self.get_option("prefix"), self.get_option("lab_host")
        state = Path(self.get_option("state_directory") or STATE) / prefix / "lab.json"
        try:
            hosts = json.loads(state.read_text(encoding="utf-8"))["hosts"]
        except FileNotFoundError:
            raise AnsibleConnectionFailure(f"no lab {prefix} is up: there is no {state}") from None
        if name not in hosts:
            raise AnsibleConnectionFailure(f"the lab {prefix} has no host {name}, it has {', '.join(hosts)}")
        if not _is_up(hosts[name]):
            raise AnsibleConnectionFailure(f"{name} of the lab {prefix} is powered off")
        return hosts[name]["enter"]


def _is_up(host: dict) -> bool:
    """The namespace is there and, for a container, is that of the pid we know (pids are used again), and it stays up.

    Tasks of a host that goes down are killed by systemd-shutdown, which has then taken the place of its init.
    """
    try:
        named = os.stat(f"/run/netns/{host['netns']}")
        if not host["pid"]:
            return bool(host["enter"])
        process = Path(f"/proc/{host['pid']}")
        init = (process / "comm").read_text(encoding="utf-8")
        return os.path.samestat(named, os.stat(process / "ns" / "net")) and not init.startswith("systemd-shutdow")
    except (FileNotFoundError, ProcessLookupError):
        return False
