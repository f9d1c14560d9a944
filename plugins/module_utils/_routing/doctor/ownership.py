# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which objects of a host belong to this collection, by owner, and which to others: for routing_state_info."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..document import formatting, schema
from ..document.documents import Document
from ..document.model import OWNERS, Setting
from ..reconcile.host import Host
from ..reconcile.read import owned_state
from . import rule_matching
from .facts.model import Facts

# RTPROT_KERNEL of linux/rtnetlink.h: the three rules that every host has.
BY_THE_KERNEL = 2


def owned(host: Host, documents: Iterable[Document]) -> dict[str, dict[str, Any]]:
    """The host's objects by owner, in the sections of a document, for owners of stored documents and known ones.

    MissingPackage without pyroute2 (or without nft, if a document has marks).
    """
    by_owner = {name: Document(name, number) for name, number in OWNERS.items()}
    by_owner.update({document.owner: document for document in documents})
    with host.make_kernel() as kernel:
        return {name: _sections(owned_state(kernel, host, by_owner[name])[0]) for name in sorted(by_owner)}


def _sections(state: Any) -> dict[str, Any]:
    objects = {"rules": state.rules, "routes": state.routes, "marks": state.marks, "services": state.services}
    sections = {
        name: [schema.dump(value) for value in sorted(values, key=lambda value: value.order)]
        for name, values in objects.items()
    }
    return {**sections, "sysctls": [_setting(setting) for setting in state.sysctls if setting.held]}


def _setting(setting: Setting) -> dict[str, Any]:
    return {"name": setting.name, "value": setting.value, "restore": setting.restore}


def foreign(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """Rules of other owners, without the kernel's own, and other owners' routes in the tables of our documents."""
    ours = facts.protocols
    tables = {(route.family, route.table) for document in facts.documents for route in document.routes}
    rules = [rule for rule in facts.rules or () if rule.protocol not in (BY_THE_KERNEL, *ours)]
    routes = [
        route for route in facts.routes or () if route.protocol not in ours and (route.family, route.table) in tables
    ]
    return {"rules": [_described(rule) for rule in rules], "routes": [_described(route) for route in routes]}


def _described(found: Any) -> dict[str, Any]:
    return {
        "family": found.family,
        "text": rule_matching.format_found(found),
        "protocol": found.protocol,
        "owner": formatting.owner_name(found.protocol),
    }
