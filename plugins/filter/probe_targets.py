# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: probe_targets
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: List the backends that a proxy host has to reach
description:
  - List every backend of every TCP service that a proxy host serves, once for each family that the service listens on.
positional: fleet, hostvars, samples
options:
  samples:
    description:
      - Include backends of UDP services, and give each its C(protocol) and its C(host), the name in the inventory.
      - Use it for O(trueip.l4proxy.source_proof#module:targets).
    type: bool
    default: false
    version_added: 0.2.0
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show what the playbook verify probes from this proxy
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.probe_targets(fleet, hostvars) }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The list, for O(trueip.l4proxy.handshake_probe#module:targets).
  type: list
  elements: dict
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _probe_targets
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def probe_targets(fleet: Fleet, samples: bool = False) -> list[dict[str, Any]]:
    """List the targets of the host the fleet is seen from."""
    return _probe_targets.probe_targets(fleet, fleet.name, samples)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"probe_targets": probe_targets}
