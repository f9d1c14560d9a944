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
  - Derive the documents of all hosts of a run, and refuse with every fault at once if any of them cannot be derived.
positional: views, hostvars
options:
  _input:
    description: The services, as in the variable O(ignore:l4proxy_services). None is refused with a sentence.
    type: list
    elements: dict
    required: true
  views:
    description:
      - >-
        One dictionary a host: C(fleet) as the other filters take it, and C(roles), a dictionary of C(forwarder) and
        C(return_path) with the settings of each role, or null where the role is absent.
    type: list
    elements: dict
    required: true
  hostvars:
    description: The variables of all hosts, as in the magic variable C(hostvars).
    type: dict
    required: true
"""

EXAMPLES = r"""
summary: "{{ l4proxy_services | trueip.l4proxy.check_fleet(views, hostvars) }}"
"""

RETURN = r"""
_value:
  description: One sentence that says what was checked.
  type: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _documents
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._filters import readable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError


def check_fleet(services: Any, views: Sequence[Mapping[str, Any]], hostvars: Mapping[str, Any]) -> str:
    """Derive everything for every host of a run, or raise with every fault."""
    try:
        fleets = [(Fleet(services, view["fleet"], hostvars), view["roles"]) for view in views]
        _documents.check_fleet(fleets)
    except DerivationError as error:
        raise readable(error) from error
    return f"{len(services)} services, {len(fleets)} hosts: every document can be derived"


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"check_fleet": check_fleet}
