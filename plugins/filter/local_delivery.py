# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: local_delivery
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Derive the state document of local delivery on one proxy host
description:
  - Derive the rules and routes that make a proxy host accept its backends' replies to addresses it does not own.
positional: fleet, hostvars, method, mark_engine
options:
  method:
    description:
      - How the host recognizes replies. V(rules) matches the backends' addresses and the interface that packets
        arrive on. V(socket_mark) matches the transparent socket that a packet belongs to, so the host can still route
        other packets of its backends.
      - V(auto) keeps the method that an earlier run has applied. Otherwise it uses V(socket_mark) on a router and
        V(rules) on other hosts. On a router with one of its own containers as a backend it always uses V(socket_mark).
    type: str
    default: auto
    choices: [rules, socket_mark, auto]
  mark_engine:
    description: The tool that sets the mark of V(socket_mark).
    type: str
    default: auto
    choices: [auto, nftables, iptables]
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: Show the rules by which this proxy accepts its backends' replies
  ansible.builtin.debug:
    msg: "{{ l4proxy_services | trueip.l4proxy.local_delivery(fleet, hostvars) }}"
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

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_filter
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet


@fleet_filter
def local_delivery(fleet: Fleet, method: str = "auto", mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the document of the host that the fleet is seen from."""
    return _local_delivery.local_delivery(fleet, fleet.name, method, mark_engine)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"local_delivery": local_delivery}
