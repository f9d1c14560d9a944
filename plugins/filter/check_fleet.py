# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: check_fleet
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Find every fault of the services before any host is changed
description:
  - Derive the documents of all hosts of a run, and list every fault that prevents it.
positional: names, hostvars
options:
  names:
    description:
      - The hosts of the run. The variable C(__l4proxy_fleet) of each has the fleet as seen from it; the state of its
        roles is in their variables.
      - A host that did not answer is skipped, because the run does not change it.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - trueip.l4proxy.services
"""

EXAMPLES = r"""
- name: Gather the addresses of both ends
  ansible.builtin.import_role:
    name: trueip.l4proxy.keeper
    tasks_from: peers

- name: Refuse services that cannot be deployed
  ansible.builtin.assert:
    that: faults | length == 0
    fail_msg: "{{ faults }}"
  vars:
    faults: "{{ l4proxy_services | trueip.l4proxy.check_fleet(ansible_play_hosts, hostvars) }}"
"""

RETURN = r"""
_value:
  description: One sentence per fault; empty if there is none.
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _check_fleet, _same_services
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import fleet_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory

# Settings of the config that have a variable of the role. The role's defaults need no check.
SETTINGS = {
    "drain_timeout": "forwarder_drain_timeout",
    "drain_memory": "forwarder_drain_memory",
    "hash_table": _same_services.HASH_TABLE,
}
# Options that the roles pass to the derivation of their state documents, with the variables of the roles.
LOCAL_DELIVERY = {"method": "forwarder_local_delivery", "mark_engine": "forwarder_mark_engine"}
RETURN_PATH = {"mark_engine": "return_path_mark_engine"}


def _number(value: Any) -> Any:
    """Return a number that is written as text, as extra variables are, like the role does."""
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def roles_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of each role of a host that the derivation needs; None for a role that is absent."""

    def given(names: Mapping[str, str]) -> dict[str, Any]:
        return {option: variables[name] for option, name in names.items() if name in variables}

    roles = {
        "forwarder": {
            "config": {key: _number(value) for key, value in given(SETTINGS).items()},
            "local_delivery": given(LOCAL_DELIVERY),
        },
        "return_path": given(RETURN_PATH),
        "virtual_ip": {},
        "announce": {},
    }
    return {
        role: options if variables.get(f"{role}_state", "present") == "present" else None
        for role, options in roles.items()
    }


def check_fleet(services: Any, names: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the faults of all hosts of a run."""
    inventory = Inventory(hostvars)
    reachable = [name for name in names if inventory[name].get("__l4proxy_fleet", {}).get("reachable")]
    faults = _same_services.faults(reachable, inventory)
    if faults:
        return faults
    try:
        hosts = [inventory[name] for name in reachable]
        views = [host["__l4proxy_fleet"] for host in hosts]
        fleets = [fleet_of(_same_services.services_of(view, services), view, inventory) for view in views]
        _check_fleet.check_fleet(zip(fleets, map(roles_of, hosts)))
    except DerivationError as error:
        return error.errors
    return []


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"check_fleet": check_fleet}
