# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: forwarder_config
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Derive the forwarder's config of one proxy host
description:
  - Derive C(forwarder.json) of one proxy host from the services of the fleet.
  - The result has passed the same check as C(l4proxy check) on the host.
positional: fleet, hostvars, settings
options:
  settings:
    description: >-
      Top-level keys of the config that do not come from the services, such as C(workers). An empty text is a key that
      is not set.
    type: dict
    default: {}
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the forwarder's config of this proxy
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.forwarder_config(fleet, hostvars, {'workers': 2}) }}"
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"
"""

RETURN = r"""
_value:
  description: The config.
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def forwarder_config(fleet: Fleet, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Derive the config of the host that the fleet is seen from."""
    return _forwarder_config.forwarder_config(fleet, fleet.name, settings or {})


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"forwarder_config": forwarder_config}
