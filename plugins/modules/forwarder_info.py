# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: forwarder_info
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Compare the running forwarder with the installed files
description:
  - Run it on a proxy. It reads from the forwarder's runtime file which config and archive the running forwarder has
    loaded, and compares their checksums with those of the installed files.
  - A play can thus detect that an earlier play installed new files and was interrupted before the reload.
  - With O(new_config), it also asks the forwarder what that config would change, and what the last reload did.
  - Reads only. It changes nothing.
options:
  runtime_file:
    description: The file that describes the running forwarder.
    type: path
    default: /run/l4proxy/forwarder.json
  config:
    description: The installed config.
    type: path
    default: /etc/l4proxy/forwarder.json
  archive:
    description: The installed archive, or a symbolic link to it.
    type: path
    default: /usr/local/lib/l4proxy/l4proxy.pyz
  new_config:
    description: A config that is to be installed. The result then has RV(plan) and RV(report).
    type: dict
    version_added: 0.2.0
  new_archive:
    description:
      - The archive that is to be loaded with O(new_config). It need not exist yet, because its name has its checksum.
      - By default, the archive that runs.
    type: path
    version_added: 0.2.0
  restart:
    description: Whether the forwarder is to be restarted, because its unit changes.
    type: bool
    default: false
    version_added: 0.2.0
  socket:
    description: The forwarder's admin socket, for RV(plan) and RV(report).
    type: path
    default: /run/l4proxy/admin.sock
    version_added: 0.2.0
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.attributes.info
"""

EXAMPLES = r"""
- name: Compare the running forwarder with the installed files
  trueip.l4proxy.forwarder_info:
  register: forwarder

- name: Reload the forwarder if the installed files are newer
  ansible.builtin.command: l4proxy reload --wait
  changed_when: true
  when: forwarder.running is not none and not forwarder.current

- name: Find out how many connections a new config would end
  trueip.l4proxy.forwarder_info:
    new_config:
      schema: 1
      proxy_id: 11
      services:
        - name: web
          listen: [{address: 0.0.0.0, port: 80}]
          backends: [{name: b, port: 8080, ipv4: 198.18.0.21}]
  register: forwarder

- name: Show what it would change
  ansible.builtin.debug:
    msg: "{{ forwarder.plan.sentences }}"
"""

RETURN = r"""
running:
  description: The runtime file of the running forwarder; null if none runs.
  returned: always
  type: dict
  contains:
    pid:
      description: Process id of the supervisor.
      type: int
    generation:
      description: The number of successful loads of a config, including the first.
      type: int
    version:
      description: The version of the running collection code.
      type: str
    config:
      description: Path and SHA-256 of the loaded config.
      type: dict
    archive:
      description: Path and SHA-256 of the running archive; null if the forwarder runs from a directory.
      type: dict
    loaded_at:
      description: When the config was loaded, in UTC.
      type: str
    failed:
      description: The sockets that could not be bound when the forwarder started, each with the reason.
      type: dict
      version_added: 0.2.0
    last_reload:
      description:
        - The result of the last reload - C(attempt), C(ok), C(error) and C(at), whether the workers took the config
          (C(in_place)), and why they did not (C(new_processes_because)).
      type: dict
first_tier:
  description:
    - Whether this proxy should get clients (C(healthy)), why not (C(reason), a word), and both as a C(sentence), as
      C(l4proxy healthy) prints it.
    - Null if no forwarder runs, or if it does not answer on O(socket).
  returned: always
  type: dict
  version_added: 0.2.0
  sample:
    healthy: false
    reason: withdrawn
    sentence: "this proxy should not get clients: an operator has withdrawn it (new disk)"
installed:
  description: SHA-256 of the installed C(config) and C(archive); null for a missing file.
  returned: always
  type: dict
  sample: {"config": "9f86d081884c7d65", "archive": null}
current:
  description: Whether a forwarder runs and both checksums match the installed files.
  returned: always
  type: bool
reason:
  description: One sentence that explains RV(current).
  returned: always
  type: str
  sample: the forwarder runs the installed config and archive
plan:
  description: What the new config, archive or unit changes on the running forwarder.
  returned: if O(new_config) is set
  type: dict
  version_added: 0.2.0
  contains:
    action:
      description:
        - How it is loaded - C(start), C(reload), C(upgrade) (a reload with another archive), C(restart), or C(none) if
          nothing changes.
      type: str
    sentences:
      description: For people. Empty if nothing changes.
      type: list
      elements: str
    sessions:
      description: The number of open sessions that end because of it.
      type: int
    seconds:
      description: After how many seconds the last of these is ended; null if none is.
      type: float
  sample:
    action: reload
    sentences:
      - a new config is loaded; all other connections stay
      - "backend d leaves service web: 12 connections end in 30 s at the latest"
    sessions: 12
    seconds: 30.0
taken:
  description:
    - The listen addresses of O(new_config) that another program on this host has, each with the reason. A start would
      not serve them, and a reload would be refused.
  returned: if O(new_config) is set
  type: dict
  version_added: 0.2.0
  sample: {"tcp:0.0.0.0:80": "EADDRINUSE: Address already in use"}
report:
  description: What the last reload did, and which old generations still serve connections. Empty if no forwarder runs.
  returned: if O(new_config) is set
  type: list
  elements: str
  version_added: 0.2.0
  sample: ["the config was taken in place: no process was replaced"]
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import (
    change_plan,
    client,
    runtime_file,
    taken_ports,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths


def installed_sum(path: str) -> str | None:
    """Return the SHA-256 of an installed file, None if it is missing; raise OSError if it cannot be read."""
    try:
        return runtime_file.sha256_file(path)
    except FileNotFoundError:
        return None


def compare(running: dict | None, installed: dict) -> tuple[bool, str]:
    """Return (current, reason) for the running forwarder (None: none runs) and the installed checksums."""
    if running is None:
        return False, "no forwarder runs"
    differing = []
    for name in ("config", "archive"):
        loaded = running.get(name)
        if loaded is None:
            differing.append(f"it does not run from an {name}")
        elif installed[name] is None:
            differing.append(f"the {name} it runs ({loaded['path']}) is no longer installed")
        elif loaded["sha256"] != installed[name]:
            differing.append(f"the installed {name} differs from the one it runs ({loaded['path']})")
    if not differing:
        return True, "the forwarder runs the installed config and archive"
    last = running.get("last_reload") or {}
    failed = f"; its last reload failed: {last['error']}" if last.get("error") else ""
    return False, f"the forwarder is out of date: {' and '.join(differing)}{failed}"


def outlook(params: dict, running: dict | None, installed: dict) -> dict:
    """Return ``plan``, ``report`` and ``taken`` of the module; ``running`` and ``installed`` as in its result.

    :raises config.ConfigError: the new config is wrong.
    """
    new, old, archive, status = config.load(params["new_config"]), None, None, None
    if running is not None:
        try:
            status = client.ask(params["socket"], "status")["status"]
        except client.AdminError as error:
            plan = change_plan.Plan(change_plan.RELOAD, [f"the running forwarder does not say what it serves: {error}"])
            return {"plan": plan._asdict(), "report": [], "taken": {}}
        if running["config"]["sha256"] == installed["config"]:
            old = installed_config(params["config"])
        loaded = running["archive"]["path"] if running["archive"] else None
        if params["new_archive"] and os.path.basename(params["new_archive"]) != os.path.basename(loaded or ""):
            archive = os.path.basename(params["new_archive"])
    plan = change_plan.plan(status, old, new, archive, params["restart"])
    # An installed forwarder that does not run may have its listeners in systemd.
    fresh = installed["config"] is None
    taken = taken_ports.taken(status, new) if status or fresh else {}
    return {"plan": plan._asdict(), "report": change_plan.report(status) if status else [], "taken": taken}


def first_tier(path: str, running: dict | None) -> dict | None:
    """Return ``first_tier`` of the module."""
    try:
        answer = client.ask(path, "healthy") if running else None
    except client.AdminError:
        return None
    return {key: answer[key] for key in ("healthy", "reason", "sentence")} if answer else None


def installed_config(path: str) -> config.Config | None:
    """Return the installed config, None if this version cannot read it."""
    try:
        with open(path, encoding="utf-8") as stream:
            return config.load(json.load(stream))
    except (ValueError, config.ConfigError):
        return None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "runtime_file": {"type": "path", "default": paths.RUNTIME_FILE},
            "config": {"type": "path", "default": paths.CONFIG},
            "archive": {"type": "path", "default": "/usr/local/lib/l4proxy/l4proxy.pyz"},
            "new_config": {"type": "dict"},
            "new_archive": {"type": "path"},
            "restart": {"type": "bool", "default": False},
            "socket": {"type": "path", "default": f"{paths.RUNTIME_DIRECTORY}/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        running = runtime_file.read(module.params["runtime_file"])
        installed = {name: installed_sum(module.params[name]) for name in ("config", "archive")}
    except OSError as error:
        module.fail_json(msg=f"{error.filename} cannot be read: {error.strerror}")
    if running is not None and not runtime_file.alive(running):
        running = None
    current, reason = compare(running, installed)
    more: dict = {}
    if module.params["new_config"] is not None:
        try:
            more = outlook(module.params, running, installed)
        except config.ConfigError as error:
            module.fail_json(msg=f"new_config: {error}")
    more["first_tier"] = first_tier(module.params["socket"], running)
    module.exit_json(changed=False, running=running, installed=installed, current=current, reason=reason, **more)


if __name__ == "__main__":
    main()
