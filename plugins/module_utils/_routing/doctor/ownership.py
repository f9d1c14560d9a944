# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is ours on a host, owner by owner, and what of others is near it: for people who look, not for the checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..document import formatting, schema
from ..document.documents import Document
from ..document.model import OWNERS, Setting
from ..reconcile import host_state
from ..reconcile.host_state import Host
from . import rule_matching
from .facts.model import Facts

# RTPROT_KERNEL of linux/rtnetlink.h: the three rules every host has.
BY_THE_KERNEL = 2


def owned(host: Host, documents: Iterable[Document]) -> dict[str, dict[str, Any]]:
    """The sets of the stored documents' owners and of those this collection knows, in the sections of a document.

    MissingPackage without pyroute2 (or without nft, where marks are wanted).
    """
    known = {name: Document(name, number) for name, number in OWNERS.items()}
    known.update({one.owner: one for one in documents})
    with host.make_kernel() as kernel:
        return {name: _sections(host_state.read(kernel, host, one)[0]) for name, one in sorted(known.items())}


def _sections(state: Any) -> dict[str, Any]:
    objects = {"rules": state.rules, "routes": state.routes, "marks": state.marks}
    sections = {
        name: [schema.dump(one) for one in sorted(values, key=lambda value: value.order)]
        for name, values in objects.items()
    }
    return {**sections, "sysctls": [_setting(one) for one in state.sysctls if one.held]}


def _setting(setting: Setting) -> dict[str, Any]:
    return {"name": setting.name, "value": setting.value, "restore": setting.restore}


def foreign(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """Rules of others, but for the kernel's own, and routes of others in the tables of our documents."""
    tables = {(route.family, route.table) for one in facts.documents for route in one.routes}
    ours = facts.protocols
    rules = [one for one in facts.rules or () if one.protocol not in (BY_THE_KERNEL, *ours)]
    routes = [one for one in facts.routes or () if one.protocol not in ours and (one.family, one.table) in tables]
    return {name: [_described(one) for one in found] for name, found in (("rules", rules), ("routes", routes))}


def _described(found: Any) -> dict[str, Any]:
    return {
        "family": found.family,
        "text": rule_matching.words(found),
        "protocol": found.protocol,
        "owner": formatting.owner_name(found.protocol),
    }
