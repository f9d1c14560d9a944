# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: announce
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Derive what one proxy host announces by BGP
description:
  - Derive from the variable C(l4proxy_announce) of the host which addresses it announces while it is healthy, and
    to whom.
positional: fleet, hostvars
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the addresses that this proxy announces
  ansible.builtin.debug:
    msg: "{{ (l4proxy_services | trueip.l4proxy.announce(fleet, hostvars)).document }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: What the host announces, and what an operator should know about it.
  type: dict
  contains:
    document:
      description: For O(trueip.l4proxy.routing_state#module:document); null if the host announces nothing.
      type: dict
    frr:
      description:
        - What FRR needs; null if another tool announces the addresses.
        - Has C(asn), C(router_id), C(communities), C(addresses) by family, and C(peers).
      type: dict
    warnings:
      description: Addresses on which no service listens.
      type: list
      elements: str
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _announce
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def announce(fleet: Fleet) -> dict[str, Any]:
    """Derive what the host that the fleet is seen from announces."""
    return _announce.announce(fleet, fleet.name)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"announce": announce}
