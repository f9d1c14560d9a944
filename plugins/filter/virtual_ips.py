# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: virtual_ips
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Derive what VRRP needs on one proxy host
description:
  - Derive from the variable C(l4proxy_virtual_ips) of the host which virtual addresses it may have, its priority, and
    the proxies that share them.
positional: fleet, hostvars
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the virtual IPs of this proxy
  ansible.builtin.debug:
    msg: "{{ (l4proxy_services | trueip.l4proxy.virtual_ips(fleet, hostvars)).virtual_ips }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The virtual IPs, and what an operator should know about them.
  type: dict
  contains:
    virtual_ips:
      description:
        - Those of this host; empty without any.
        - Each has C(name), C(vrid), C(advert) (seconds), C(preempt), C(priority) and C(families).
        - Each of C(families) has C(family), C(interface), C(source) (the host's own address), C(peers) (addresses of
          the other proxies, by name) and C(addresses).
      type: list
      elements: dict
    warnings:
      description: What prevents another proxy from taking over.
      type: list
      elements: str
"""

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _virtual_ips
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def virtual_ips(fleet: Fleet) -> dict[str, Any]:
    """Derive the virtual IPs of the host that the fleet is seen from."""
    return _virtual_ips.virtual_ips(fleet, fleet.name)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"virtual_ips": virtual_ips}
