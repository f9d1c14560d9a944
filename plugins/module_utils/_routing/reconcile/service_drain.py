# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a new document of services leaves out: whole services, and servers of a service that stays. Pure.

Servers that have left a service are kept as a retiring service with the same address and port, one for each time at
which they are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..document.documents import Document
from ..document.kernel_service import KernelService, Server
from ..document.model import MAIN
from .state import State


@dataclass(frozen=True)
class Retired:
    """Services that retire; ``begins`` if one of their servers did not retire already."""

    services: tuple[KernelService, ...] = ()
    begins: bool = False


def begin(document: Document, have: Iterable[KernelService], stored: Document | None, deadline: float) -> Retired:
    """The retiring services for what ``have`` has and the document does not list.

    What retires already by the ``stored`` document keeps its time if that is earlier.
    """
    known = {
        (service.endpoint, server.address, server.port): service.retire_at
        for service in (stored.services if stored else ())
        for server in service.servers
        if service.retire_at is not None
    }
    parts = []
    begins = False
    for service, servers in _left(document.services, have):
        for server in servers:
            place = (service.endpoint, server.address, server.port)
            begins = begins or place not in known
            until = min(int(deadline), known.get(place, int(deadline)))
            parts.append(replace(service, servers=(server,), retiring=True, retire_at=until))
    return Retired(_merged(parts), begins)


def _merged(services: Iterable[KernelService]) -> tuple[KernelService, ...]:
    """The services, those with one key as one."""
    merged: dict[Any, KernelService] = {}
    for service in services:
        earlier = merged.get(service.key)
        merged[service.key] = replace(service, servers=earlier.servers + service.servers) if earlier else service
    return tuple(merged.values())


def superset(document: Document, have: State, stored: Document | None) -> Document:
    """The document with what it does not list, for a run without purge; the keeper then leaves that as well.

    Services stay active, unless one in the document has their servers. These, and servers that have left a service,
    keep their connections. What an earlier run has left to the ``stored`` document needs its rules.
    """
    used = {(service.protocol, one.address, one.port) for service in document.services for one in service.servers}
    listed = {service.endpoint for service in document.services}
    kept = []
    for service, servers in _left(document.services, have.services):
        places = {(service.protocol, one.address, one.port) for one in servers}
        idle = service.retiring or service.endpoint in listed or bool(places & used)
        kept.append(replace(service, servers=servers, retiring=idle))
    services = (*document.services, *_merged(kept))
    families = {service.family for service in services}
    earlier = (*have.rules, *(stored.rules if stored else ()))
    rules = {rule.key: rule for rule in earlier if rule.table == MAIN and rule.family in families}
    bypassed = {rule.family for rule in document.rules if rule.table == MAIN}
    more = tuple(rule for rule in rules.values() if rule.family not in bypassed)
    forwarding = tuple(sorted({*document.forwarding, *families}))
    settle_at = stored.settle_at if stored else None
    return replace(
        document, services=services, rules=(*document.rules, *more), forwarding=forwarding, settle_at=settle_at
    )


def _left(
    listed: Iterable[KernelService], have: Iterable[KernelService]
) -> Iterator[tuple[KernelService, tuple[Server, ...]]]:
    """Each service that has servers which are not listed for its address and port, and these."""
    known = {(service.endpoint, server.address, server.port) for service in listed for server in service.servers}
    for service in have:
        some = (one for one in service.servers if (service.endpoint, one.address, one.port) not in known)
        servers = tuple(some)
        if servers:
            yield service, servers
