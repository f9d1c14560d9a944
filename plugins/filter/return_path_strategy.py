# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: return_path_strategy
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Tell how a backend knows which proxy a connection came through
description:
  - Tell the return path strategy of a backend, and why it is that one, which is of interest with V(auto).
  - V(auto) is sticky. What an earlier run has applied to the host stays; otherwise it is V(address) where
    C(return_path_addresses) is given, V(mark) where the host has a default route, else V(fwmark_accept).
positional: fleet, hostvars
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: See by which strategy this backend sends its replies back, and why
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
  description: The strategy and what is to be known of it.
  type: dict
  contains:
    strategy:
      description: V(mark), V(address) or V(fwmark_accept).
      type: str
    reason:
      description: Why it is that one.
      type: str
    notes:
      description: What servers on the host have to do for it; one sentence each.
      type: list
      elements: str
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _return_path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def return_path_strategy(fleet: Fleet) -> dict[str, Any]:
    """Tell the strategy of the host the fleet is seen from."""
    return _return_path.about(fleet, fleet.name)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"return_path_strategy": return_path_strategy}
