# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Recognise a proxy behind a link without MAC addresses (WireGuard, TUN, PPP, IPIP) by the link itself.

That works for the one proxy at the other end of a point-to-point link. Everything else is refused: a mark that waits
for a MAC on such a link would wait forever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..document.model import Mark
from ..errors import Refused
from ..netlink.neighbour_messages import DECLARED_MAC, LINK, NOTHING

REMEDY = "set return_path_strategy: address for this host"


def resolve(kernel: Any, marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """The marks, with the interface for each proxy behind a link without MACs.

    Refused where packets of one proxy cannot be distinguished from those of another.
    """
    errors: list[str] = []
    resolved = tuple(_with_link(kernel, mark, errors) for mark in marks)
    first: dict[str, str] = {}
    for mark in resolved:
        if mark.iif and not mark.retiring and first.setdefault(mark.iif, mark.name) != mark.name:
            errors.append(
                f"proxies {first[mark.iif]} and {mark.name} are both behind {mark.iif}, which has no MAC addresses to "
                f"distinguish them by; {REMEDY}"
            )
    if errors:
        raise Refused(errors)
    return resolved


def _with_link(kernel: Any, mark: Mark, errors: list[str]) -> Mark:
    if mark.retiring or not mark.follows_neighbour:
        return mark
    identities = {dev: kernel.sender_identity(dev) for dev in map(kernel.on_link, mark.via) if dev}
    for dev, identity in sorted(identities.items()):
        if identity == NOTHING:
            errors.append(
                f"{dev} has no MAC addresses and more than one other end, so packets of proxy {mark.name} cannot be "
                f"recognised there; {REMEDY}"
            )
        elif identity == DECLARED_MAC and not mark.macs and not any(kernel.neighbour(via, 0) for via in mark.via):
            errors.append(
                f"{dev} does not use ARP, so the MAC of proxy {mark.name} cannot be looked up there; declare "
                f"l4proxy_mac in the host_vars of {mark.name}, or {REMEDY}"
            )
    links = sorted(dev for dev, identity in identities.items() if identity == LINK)
    if links and len(identities) > 1:
        errors.append(
            f"proxy {mark.name} is behind {' and '.join(sorted(identities))}, and {links[0]} has no MAC addresses: a "
            f"mark matches one interface or MACs, not both; {REMEDY}"
        )
    return replace(mark, iif=links[0]) if links else mark
