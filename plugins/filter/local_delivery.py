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
      - How replies are told from other packets. V(rules) goes by the backends' addresses and the interface they come
        in by. V(socket_mark) goes by the transparent socket a packet belongs to, so that the host can route for them.
      - V(auto) keeps what an earlier run has applied, and otherwise takes V(socket_mark) on a router, else V(rules).
        On a router that has a container of its own for a backend it takes V(socket_mark) in any case.
    type: str
    default: auto
    choices: [rules, socket_mark, auto]
  mark_engine:
    description: What makes the mark of V(socket_mark).
    type: str
    default: auto
    choices: [auto, nftables, iptables]
extends_documentation_fragment:
  - trueip.l4proxy.services
  - trueip.l4proxy.services.view
"""

EXAMPLES = r"""
- name: See by which rules this proxy accepts its backends' replies
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
    """Derive the document of the host the fleet is seen from."""
    return _local_delivery.local_delivery(fleet, fleet.name, method, mark_engine)


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"local_delivery": local_delivery}
