# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxies behind links without MAC addresses (WireGuard, TUN, PPP, IPIP): the link itself tells their packets.

That is right for one proxy at the other end of a point-to-point link. Anything else is refused, since a mark that
waits for a MAC there would wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..document.model import Mark
from ..errors import Refused

# What tells a sender on a link: its MAC, which ARP and ND find; its MAC, which somebody has to declare; nothing but the
# link, which has one other end; nothing at all.
MAC, DECLARED, LINK, NOTHING = "mac", "declared", "link", "nothing"
ADDRESS = "set return_path_strategy: address for this host"


def resolve(kernel: Any, marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """The marks, with the interface for each proxy behind a link without MACs.

    Refused where such a link does not tell one proxy from another.
    """
    errors: list[str] = []
    found = tuple(_resolved(kernel, mark, errors) for mark in marks)
    first: dict[str, str] = {}
    for mark in found:
        if mark.iif and not mark.retiring and first.setdefault(mark.iif, mark.name) != mark.name:
            errors.append(
                f"proxies {first[mark.iif]} and {mark.name} are both behind {mark.iif}, which has no MAC addresses to "
                f"tell them apart by; {ADDRESS}"
            )
    if errors:
        raise Refused(errors)
    return found


def _resolved(kernel: Any, mark: Mark, errors: list[str]) -> Mark:
    if mark.retiring or not mark.follows_neighbour:
        return mark
    kinds = {dev: kernel.told_by(dev) for dev in map(kernel.on_link, mark.via) if dev}
    for dev, kind in sorted(kinds.items()):
        if kind == NOTHING:
            errors.append(
                f"{dev} has no MAC addresses, and more than one other end: packets of proxy {mark.name} cannot be told "
                f"there; {ADDRESS}"
            )
        elif kind == DECLARED and not mark.macs and not any(kernel.neighbour(via, 0) for via in mark.via):
            errors.append(
                f"{dev} does not use ARP, so the MAC of proxy {mark.name} cannot be found there; declare l4proxy_mac "
                f"in the host_vars of {mark.name}, or {ADDRESS}"
            )
    links = sorted(dev for dev, kind in kinds.items() if kind == LINK)
    if links and len(kinds) > 1:
        errors.append(
            f"proxy {mark.name} is behind {' and '.join(sorted(kinds))}, and {links[0]} has no MAC addresses: a mark "
            f"goes by one interface or by MACs; {ADDRESS}"
        )
    return replace(mark, iif=links[0]) if links else mark
