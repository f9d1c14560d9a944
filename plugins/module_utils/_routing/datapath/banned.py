# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans in the nft table of kernel services. Pure.

    banned (mangle)        ADDRESS . PROTOCOL . PORT -> banned_X
    banned_X               refuse the packets of clients in the sets, also those of open connections

RST passes, so that the backend hears of the end: its client answers with RST to what still comes. A set's name says
what is in it, so a change is another set, and takes effect as a whole. Without bans there is nothing of this.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from ..document.kernel_service import KernelService
from ..host.bans import BanList
from .model import Chain, Late, Table
from .render import IP, REFUSE, counter_name, name_of

# After conntrack has seen a packet, before "bypass".
HOOK = ("filter", "prerouting", -160)


def add(table: Table, services: Iterable[KernelService], bans: Sequence[BanList]) -> Table:
    """The same table, which refuses banned clients as well."""
    # A retiring service may have the address of one that stays, which comes last and counts.
    for service in sorted(services, key=lambda service: (not service.retiring, service.order)):
        mine = [one for one in bans if one.service in ("", service.name) and one.family == service.family]
        if mine:
            _add_service(table, service, mine)
    for family, ip in IP.items():
        of = {one.endpoint: one for one in services if one.family == family}
        found = {key: one for key, one in of.items() if f"banned_{name_of(one)}" in table.chains}
        verdicts = [
            f"{one.address} . {one.protocol} . {one.port} : goto banned_{name_of(one)}" for one in found.values()
        ]
        if verdicts:
            rules = table.chains.setdefault("banned", Chain(HOOK)).rules
            rules.append(f"{ip} daddr . meta l4proto . th dport vmap {{ {', '.join(sorted(verdicts))} }}")
    return table


def _add_service(table: Table, service: KernelService, bans: Iterable[BanList]) -> None:
    counter, is_tcp = counter_name("denied", service), service.protocol == "tcp"
    table.counters.add(counter)
    rules = ["tcp flags & rst != 0 return"] if is_tcp else []
    for one in bans:
        table.sets[one.name] = Late(one.name, functools.partial(_declaration, one))
        verdict = REFUSE["tcp"] if is_tcp else "drop"
        rules.append(f'{IP[service.family]} saddr @{one.name} counter name "{counter}" {verdict}')
    table.chains[f"banned_{name_of(service)}"] = Chain(rules=list(rules))


def _declaration(one: BanList) -> str:
    return f"type {one.family}_addr; flags interval; elements = {{ {one.elements} }};"
