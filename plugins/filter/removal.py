# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: removal
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Check whether a host can leave the fleet, and list what to remove from the inventory
description:
  - The playbooks C(remove_backend) and C(remove_proxy) call it before they change anything.
positional: groups, hostvars, group, name
options:
  groups:
    description: The hosts of each group, as in the magic variable C(groups).
    type: dict
    required: true
  group:
    description: The group that the host leaves.
    type: str
    choices: [backends, proxies]
    required: true
  name:
    description: The name of the host.
    type: str
    required: true
extends_documentation_fragment:
  - trueip.l4proxy.services
"""

EXAMPLES = r"""
- name: Show what has to be removed from the inventory together with a backend
  ansible.builtin.debug:
    msg: "{{ (l4proxy_services | trueip.l4proxy.removal(groups, hostvars, 'backends', 'd')).edits }}"
"""

RETURN = r"""
_value:
  description: What forbids the removal, and what to remove from the inventory. A sentence each.
  type: dict
  contains:
    faults:
      description: Why the host cannot leave, such as a service without another backend; empty if it can.
      type: list
      elements: str
    edits:
      description: Where the inventory names the host.
      type: list
      elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _removal
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import readable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory, read


def removal(
    services: Any, groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any], group: str, name: str
) -> dict[str, list[str]]:
    """Return the faults and the edits of a removal."""
    try:
        return _removal.removal(read(VARIABLE, services), groups, group, name, Inventory(hostvars))
    except DerivationError as error:
        raise readable(error) from None


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"removal": removal}
