# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: peers
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: List the hosts whose addresses a configuration depends on
description:
  - List the hosts whose facts are needed to configure some hosts, these hosts included.
  - A backend depends on the proxies that forward to it, a proxy on its backends and on the other proxies.
  - If the services are wrong, the list is empty; P(trueip.l4proxy.check_fleet#filter) says why.
positional: fleet, hostvars, names
options:
  names:
    description: The hosts that are being configured.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the hosts that the configuration of these hosts depends on
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.peers(fleet, hostvars, ansible_play_hosts) }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: Names of hosts.
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory


def peers(services: Any, fleet: Mapping[str, Any], hostvars: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """List the peers of some hosts."""
    try:
        return fleet_of(services, fleet, Inventory(hostvars)).peers([str(name) for name in names])
    except DerivationError:
        return []


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"peers": peers}
