# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all filters share: they build a fleet, and turn its faults into one readable error."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory, plain, read


def readable(error: DerivationError) -> AnsibleFilterError:
    """Return one error with all faults, one per line."""
    if len(error.errors) == 1:
        return AnsibleFilterError(error.errors[0])
    return AnsibleFilterError("\n".join([f"{len(error.errors)} faults:", *(f"  - {one}" for one in error.errors)]))


def fleet_of(services: Any, fleet: Mapping[str, Any], inventory: Inventory) -> Fleet:
    """Return the fleet as seen from a host.

    :raises DerivationError: the services are wrong, or cannot be evaluated there.
    """
    return Fleet(read(f"{VARIABLE} of {fleet['host']}", services), plain(fleet), inventory)


def fleet_filter(derive: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of ``(Fleet, …)`` as a filter of ``(services, fleet, hostvars, …)``."""

    @functools.wraps(derive)
    def filtered(
        services: Any, fleet: Mapping[str, Any], hostvars: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return derive(fleet_of(services, fleet, Inventory(hostvars)), *args, **kwargs)
        except DerivationError as error:
            raise readable(error) from None

    return filtered
