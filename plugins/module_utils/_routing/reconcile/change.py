# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One change of a host, and the sentence that describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..document import formatting
from ..document.kernel_service import KernelService
from ..document.model import Setting, Sysctl


@dataclass(frozen=True)
class Change:
    """``verb`` is add, remove, replace, or for services restore; ``before`` and ``after`` are the object, or None.

    For the kinds ``marks`` and ``services`` they are tuples of all of them, and for marks ``engines`` names what holds
    them before and after; for kind ``sysctl`` before is a Setting and after a Sysctl.
    """

    kind: str
    verb: str
    before: Any = None
    after: Any = None
    engines: tuple[str | None, str | None] = (None, None)

    @property
    def sentence(self) -> str:
        if self.kind == "sysctl":
            return _sysctl_sentence(self.before, self.after)
        if self.kind == "marks":
            names = ", ".join(f"{mark.name} ({mark.id:#x})" for mark in self.after or self.before) or "none"
            return f"{self.verb} {formatting.mark_set(self.engines[1])}: {names}"
        if self.kind == "services":
            return _services_sentence(self.before, self.after) or f"{self.verb} the nft table of services"
        return f"{self.verb} {formatting.describe(self.after or self.before)}"


def _services_sentence(before: tuple[KernelService, ...], after: tuple[KernelService, ...]) -> str:
    """What changes; nothing if only the table in the kernel is not as it should be."""
    # Equal services may differ in whether they retire.
    old = {(service.retiring, service): service for service in before}
    new = {(service.retiring, service): service for service in after}
    added = [service for key, service in new.items() if key not in old]
    endpoints = {service.endpoint for service in added}
    gone = [service for key, service in old.items() if key not in new and service.endpoint not in endpoints]
    parts = [*map(formatting.service, added), *(f"stop {formatting.service(each, 'forwarding')}" for each in gone)]
    return "; ".join(parts)


def _sysctl_sentence(before: Setting, after: Sysctl | None) -> str:
    if after is None:
        if before.restore in (None, before.value):
            return f"release sysctl {before.name} (stays {before.value})"
        return f"restore sysctl {before.name}: {before.value} -> {before.restore}"
    if before.value == after.value:
        return f"hold sysctl {after.name} at {after.value}"
    return f"set sysctl {after.name}: {before.value or 'absent'} -> {after.value}"
