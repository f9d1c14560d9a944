# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: check_fleet
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Find every fault of the services before any host is touched
description:
  - Derive the documents of all hosts of a run, and say everything that keeps any of them from being derived.
positional: names, hostvars
options:
  names:
    description:
      - The hosts of the run. Of each, the fleet as seen from it is read from the variable C(__l4proxy_fleet) and the
        state of its roles from their variables.
      - A host that did not answer is left out, as nothing is about to be done to it.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - trueip.l4proxy.services
"""

EXAMPLES = r"""
- name: Learn the addresses of both ends
  ansible.builtin.import_role:
    name: trueip.l4proxy.keeper
    tasks_from: peers

- name: Refuse what cannot be derived
  ansible.builtin.assert:
    that: faults | length == 0
    fail_msg: "{{ faults }}"
  vars:
    faults: "{{ l4proxy_services | trueip.l4proxy.check_fleet(ansible_play_hosts, hostvars) }}"
"""

RETURN = r"""
_value:
  description: One sentence a fault; empty where nothing is wrong.
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _check_fleet, _same_services
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import seen
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory

# The role's own variables that end up in the config; the role's defaults are right where a host says nothing.
SETTINGS = ("drain_timeout",)
# What the roles pass to the derivation of their state documents, by the names it has there.
LOCAL_DELIVERY = {"method": "forwarder_local_delivery", "mark_engine": "forwarder_mark_engine"}
RETURN_PATH = {"mark_engine": "return_path_mark_engine"}


def _number(value: Any) -> Any:
    """Return what the role makes of a number that was given as text, as extra variables are."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def roles_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Read which roles a host is to have, with what the derivation needs to know of their settings."""

    def given(names: Mapping[str, str]) -> dict[str, Any]:
        return {option: variables[name] for option, name in names.items() if name in variables}

    settings = {key: _number(variables[f"forwarder_{key}"]) for key in SETTINGS if f"forwarder_{key}" in variables}
    roles = {
        "forwarder": {"config": settings, "local_delivery": given(LOCAL_DELIVERY)},
        "return_path": given(RETURN_PATH),
    }
    return {
        role: options if variables.get(f"{role}_state", "present") == "present" else None
        for role, options in roles.items()
    }


def check_fleet(services: Any, names: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Derive everything for every host of a run, and return what is wrong with it."""
    inventory = Inventory(hostvars)
    asked = [name for name in names if inventory[name].get("__l4proxy_fleet", {}).get("reachable")]
    faults = _same_services.faults(asked, inventory)
    if faults:
        return faults
    try:
        hosts = [inventory[name] for name in asked]
        views = [host["__l4proxy_fleet"] for host in hosts]
        fleets = [seen(_same_services.services_of(view, services), view, inventory) for view in views]
        _check_fleet.check_fleet(zip(fleets, map(roles_of, hosts)))
    except DerivationError as error:
        return error.errors
    return []


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"check_fleet": check_fleet}
