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
  - Reads files only. It does not contact the forwarder and changes nothing.
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
    last_reload:
      description: The result of the last reload - C(attempt), C(ok), C(error) and C(at).
      type: dict
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import runtime_file
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


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "runtime_file": {"type": "path", "default": paths.RUNTIME_FILE},
            "config": {"type": "path", "default": paths.CONFIG},
            "archive": {"type": "path", "default": "/usr/local/lib/l4proxy/l4proxy.pyz"},
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
    module.exit_json(changed=False, running=running, installed=installed, current=current, reason=reason)


if __name__ == "__main__":
    main()
