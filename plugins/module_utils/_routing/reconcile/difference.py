# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The difference between two states as text, for Ansible's --diff."""

from __future__ import annotations

from ..document import formatting
from ..document.model import Sysctl
from .plan import in_order
from .state import State


def difference(before: State, after: State) -> dict[str, str] | None:
    """Ansible's before/after pair; None when the states are equal."""
    if before == after:
        return None  # saves writing thousands of lines just to compare them
    texts = {"before": lines(before), "after": lines(after)}
    if texts["before"] == texts["after"]:
        return None
    return {**texts, "before_header": "routing", "after_header": "routing"}


def lines(state: State) -> str:
    """The state as text, one line an object."""
    objects = [
        value for values in (state.addresses, state.announce, state.rules, state.routes) for value in in_order(values)
    ]
    marks = [formatting.mark(mark, state.engine) for mark in in_order(state.marks)]
    settings = [Sysctl(setting.name, setting.value) for setting in sorted(state.sysctls, key=lambda each: each.name)]
    services = [formatting.service_details(service) for service in in_order(state.services)]
    listing = [*map(formatting.describe, objects), *marks, *services, *map(formatting.describe, settings)]
    if not state.sound:
        listing.append(f"{formatting.mark_set(state.engine)} differs from what was written")
    if not state.services_sound:
        listing.append("the nft table of services differs from what was written")
    return "".join(f"{line}\n" for line in listing)
