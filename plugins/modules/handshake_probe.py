# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: handshake_probe
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Probe the path to backends by handshakes from a spoofed source
description:
  - Run it on a proxy. It opens a TCP connection to each target from a source address that the host does not own, as
    the forwarder does for its clients, and resets it.
  - When a handshake fails, the kernel's state tells which step is at fault - the capability, local delivery on this
    host, the return path on the backend, the server, or the backend itself.
  - Sends packets, but changes nothing on any host. In check mode, nothing is sent and the targets are skipped.
options:
  timeout:
    description: Seconds to wait for each handshake.
    type: float
    default: 3.5
  fail:
    description: Whether a failed handshake fails the task.
    type: bool
    default: true
extends_documentation_fragment:
  - trueip.l4proxy.attributes.info
  - trueip.l4proxy.probe_targets
"""

EXAMPLES = r"""
- name: Probe the path to a web server over IPv4 and IPv6
  trueip.l4proxy.handshake_probe:
    targets:
      - {name: web, address: 198.18.0.21, port: 8080, source: 198.51.100.11}
      - {name: web, address: "2001:db8::21", port: 8080, source: "2001:db8:ffff::11"}
"""

RETURN = r"""
results:
  description: One result for each target, in the order of O(targets).
  returned: always
  type: list
  elements: dict
  contains:
    step:
      description: V(established), or the step at fault.
      type: str
      choices: [established, server, capability, source, local_delivery, return_path, backend]
    seconds:
      description: How long the handshake took, in seconds.
      type: float
    sentence:
      description: What happened, and what to do if it failed.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _probe, _probe_targets


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True, "options": _probe_targets.SPEC},
            "timeout": {"type": "float", "default": 3.5},
            "fail": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    targets = module.params["targets"]
    errors = [
        error for index, target in enumerate(targets) for error in _probe_targets.errors_of(target, f"targets[{index}]")
    ]
    if errors:
        module.fail_json(msg="; ".join(errors))
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
