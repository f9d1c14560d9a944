# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: return_path
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Derive the state document of the return path on one backend
description:
  - Derive the rules, routes, marks, addresses and sysctls that send a backend's replies to the proxy they came through.
positional: fleet, hostvars, strategy, mark_engine
options:
  strategy:
    description:
      - The return path strategy. It has to equal C(return_path_strategy) of the host in the inventory, because the
        proxies read it there. The role passes its own value, so that a difference is refused.
      - P(trueip.l4proxy.return_path_strategy#filter) returns the one that V(auto) chooses.
    type: str
    choices: [mark, address, fwmark_accept, auto]
  mark_engine:
    description: The tool that sets the marks.
    type: str
    default: auto
    choices: [auto, nftables, iptables]
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the rules, routes and marks that send this backend's replies back
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.return_path(fleet, hostvars) }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The document, for O(trueip.l4proxy.routing_state#module:document).
  type: dict
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _return_path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def return_path(fleet: Fleet, strategy: str | None = None, mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the document of the host that the fleet is seen from."""
    return _return_path.return_path(fleet, fleet.name, strategy, mark_engine)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"return_path": return_path}
