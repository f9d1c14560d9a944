# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every filter of the collection has in common: a fleet is built, and faults become one readable error."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory, plain, read


def readable(error: DerivationError) -> AnsibleFilterError:
    """Put all faults of a run into one error, a line each."""
    if len(error.errors) == 1:
        return AnsibleFilterError(error.errors[0])
    return AnsibleFilterError("\n".join([f"{len(error.errors)} faults:", *(f"  - {one}" for one in error.errors)]))


def seen(services: Any, fleet: Mapping[str, Any], inventory: Inventory) -> Fleet:
    """Return the fleet as seen from a host.

    :raises DerivationError: the services are wrong, or cannot be read there.
    """
    return Fleet(read(f"{VARIABLE} of {fleet['host']}", services), plain(fleet), inventory)


def fleet_filter(derive: Callable[..., Any]) -> Callable[..., Any]:
    """Make a filter of ``(services, fleet, hostvars, …)`` out of a function of ``(Fleet, …)``."""

    @functools.wraps(derive)
    def filtered(
        services: Any, fleet: Mapping[str, Any], hostvars: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return derive(seen(services, fleet, Inventory(hostvars)), *args, **kwargs)
        except DerivationError as error:
            raise readable(error) from None

    return filtered
