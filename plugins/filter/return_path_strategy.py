# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: return_path_strategy
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Return the return path strategy of a backend
description:
  - Return the return path strategy of a backend, and the reason why V(auto) has chosen it.
  - V(auto) keeps the strategy that an earlier run has applied to the host. Otherwise it chooses V(address) if
    C(return_path_addresses) is set, V(mark) if the host has a default route, else V(fwmark_accept).
positional: fleet, hostvars
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the return path strategy of this backend, and why
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.return_path_strategy(fleet, hostvars) }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The strategy, the reason for it, and notes.
  type: dict
  contains:
    strategy:
      description: V(mark), V(address) or V(fwmark_accept).
      type: str
    reason:
      description: Why it was chosen.
      type: str
    notes:
      description: What servers on the host have to do for it, one sentence each.
      type: list
      elements: str
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _return_path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def return_path_strategy(fleet: Fleet) -> dict[str, Any]:
    """Return the strategy of the host that the fleet is seen from."""
    return _return_path.describe_strategy(fleet, fleet.name)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"return_path_strategy": return_path_strategy}
