# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: kernel_datapath
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Derive the state document of the services that one proxy host's kernel forwards
description:
  - Derive what makes the kernel of a proxy host forward the services with C(datapath) V(kernel), and those for which
    C(datapath) V(auto) chooses it.
positional: fleet, hostvars
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show which datapath each service with auto has on this proxy, and why
  ansible.builtin.debug:
    msg: "{{ (l4proxy_services | trueip.l4proxy.kernel_datapath(fleet, hostvars)).notes }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The document, and what an operator should know about it.
  type: dict
  contains:
    document:
      description:
        - The document, for O(trueip.l4proxy.routing_state#module:document).
        - Without a service that the kernel forwards, V(null), or a document without objects if an earlier run has
          stored one.
      type: dict
    notes:
      description: Which datapath C(auto) has chosen for each service and why, and which connections cannot move.
      type: list
      elements: str
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _datapath, _kernel_datapath
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def kernel_datapath(fleet: Fleet) -> dict[str, Any]:
    """Derive the document of the host that the fleet is seen from, and the notes on it."""
    return {
        "document": _kernel_datapath.kernel_datapath(fleet, fleet.name),
        "notes": _datapath.notes(fleet, fleet.name),
    }


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"kernel_datapath": kernel_datapath}
