# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: handshake_probe
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Prove the path to backends by handshakes with a spoofed source
description:
  - Run on a proxy host. Open a TCP connection to each target from a source address that the host does not own, as the
    forwarder does for its clients, and close it by a reset.
  - Where a handshake fails, say which step is at fault, by asking the kernel and not by guessing - the capability,
    local delivery on this host, the return path on the backend, the server, or the backend itself.
  - Sends packets, but changes nothing on any host. In check mode nothing is sent and the targets are skipped.
options:
  targets:
    description: What to probe.
    type: list
    elements: dict
    required: true
    suboptions:
      address:
        description: The IPv4 or IPv6 address of the backend.
        type: str
        required: true
      port:
        description: The TCP port of the backend, 1 to 65535.
        type: int
        required: true
      source:
        description: The address to come from, of the same family as O(targets[].address).
        type: str
        required: true
      name:
        description: A name for messages.
        type: str
        default: ""
  timeout:
    description: Seconds to wait for each handshake.
    type: float
    default: 3.5
  fail:
    description: Whether a handshake that fails fails the task.
    type: bool
    default: true
extends_documentation_fragment:
  - trueip.l4proxy.attributes.info
"""

EXAMPLES = r"""
- name: Prove the path to a web server over both families
  trueip.l4proxy.handshake_probe:
    targets:
      - {name: web, address: 198.18.0.21, port: 8080, source: 198.51.100.11}
      - {name: web, address: "2001:db8::21", port: 8080, source: "2001:db8:ffff::11"}
"""

RETURN = r"""
results:
  description: One result a target, in the order of O(targets).
  returned: always
  type: list
  elements: dict
  contains:
    step:
      description: V(established), or the step at fault.
      type: str
      choices: [established, server, capability, source, local_delivery, return_path, backend]
    seconds:
      description: How long the handshake took.
      type: float
    sentence:
      description: What happened, and what to do where it failed.
      type: str
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _probe

TARGET_SPEC = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "source": {"type": "str", "required": True},
    "name": {"type": "str", "default": ""},
}


def faults(targets: list[dict]) -> list[str]:
    """Say what is wrong with the targets: values that are no addresses or ports, families that differ."""
    found = []
    for index, target in enumerate(targets):
        versions = set()
        for key in ("address", "source"):
            try:
                versions.add(ipaddress.ip_address(target[key]).version)
            except ValueError:
                found.append(f"targets[{index}].{key}: {target[key]!r} is not an IP address")
        if len(versions) > 1:
            found.append(f"targets[{index}]: {target['address']} and {target['source']} are of different families")
        if not 1 <= target["port"] <= 65535:
            found.append(f"targets[{index}].port: {target['port']} is not a port (1-65535)")
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True, "options": TARGET_SPEC},
            "timeout": {"type": "float", "default": 3.5},
            "fail": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    targets = module.params["targets"]
    wrong = faults(targets)
    if wrong:
        module.fail_json(msg="; ".join(wrong))
    if module.check_mode:
        module.exit_json(changed=False, results=[], skipped=True, msg="nothing is sent in check mode")
    verdicts = _probe.probe_all([_probe.Target(**target) for target in targets], module.params["timeout"])
    results = [verdict.to_dict() for verdict in verdicts]
    broken = [verdict.sentence for verdict in verdicts if verdict.step != _probe.ESTABLISHED]
    if broken and module.params["fail"]:
        module.fail_json(msg="; ".join(broken), results=results)
    module.exit_json(changed=False, results=results)


if __name__ == "__main__":
    main()
