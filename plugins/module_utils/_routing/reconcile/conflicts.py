# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Refuse a desired state that cannot coexist with what others have, or that would cut the host off."""

from __future__ import annotations

from collections.abc import Iterable

from ..document import formatting
from ..document.model import Route
from ..errors import Refused
from . import forwarding, own_sources
from .run import Run
from .state import Foreign, State


def refuse(run: Run) -> None:
    """Raise Refused with every conflict; nothing has been changed yet."""
    if run.left_out and not run.options.partial:
        raise Refused(run.left_out)
    errors = conflicts(run.want, run.foreign) + own_sources.unbounded(run)
    errors += forwarding.conflicts(run.document, run.host.sysctls)
    if errors:
        raise Refused(errors)


def conflicts(want: State, foreign: Foreign) -> list[str]:
    """Why the desired state cannot coexist with what others have; a sentence each."""
    rules = {rule.key for rule in want.rules if not rule.retiring}
    addresses = {address.address for address in want.addresses if not address.retiring}
    errors = [
        f"rule priority {rule.priority} already has these selectors for another owner "
        f"({formatting.owner_name(protocol)}): {formatting.rule(rule)}; remove that rule or choose another priority"
        for rule, protocol in foreign.rules
        if rule.key in rules
    ]
    errors += [
        f"address {address.address} is already on this host and not ours "
        f"(dev {address.dev}, {formatting.owner_name(protocol) if protocol else 'set by another tool'}); "
        f"remove it or choose another address"
        for address, protocol in foreign.addresses
        if address.address in addresses
    ]
    announced = {each.address for each in want.announce if not each.retiring}
    errors += [
        f"address {address.address} is on {address.dev} as well, and not by us: a routing daemon has a connected route "
        f"for it and would not announce ours; remove it there (`ip addr del {address.address} dev {address.dev}`, and "
        "what configures it)"
        for address, _protocol in foreign.addresses
        if address.address in announced
    ]
    return errors + _shared_tables(want.routes, foreign)


def _shared_tables(routes: Iterable[Route], foreign: Foreign) -> list[str]:
    tables = {(route.family, route.table) for route in routes if not route.retiring}
    first: dict[tuple[str, int], tuple[int, str]] = {}
    for family, table, protocol, line in foreign.routes:
        if (family, table) in tables:
            first.setdefault((family, table), (protocol, line))
    return [
        f"table {table} already holds routes of another owner ({formatting.owner_name(protocol)}): {line}; "
        f"remove them or choose another table"
        for (_family, table), (protocol, line) in first.items()
    ]
