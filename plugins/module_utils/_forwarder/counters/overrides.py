# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overrides by operators: drain, maintenance and weight of a backend, and whether this proxy is withdrawn.

They last over reloads; those of a backend until it is removed.
"""

from __future__ import annotations

from . import shared_memory


class Overrides:
    """{(service, backend): {"state": ..., "weight": ...}}; a missing key means ready, or the weight of the config.

    ``withdrawn`` is {"since": time, "reason": text} if an operator has taken this proxy out of the first tier.
    """

    def __init__(self):
        self._overrides = {}
        self.withdrawn: dict[str, str] | None = None

    def records(self):
        """Return all overrides as JSON for the next program."""
        return [[service, backend, override] for (service, backend), override in self._overrides.items()]

    def adopt(self, records):
        """Take over the records() of the previous program."""
        self._overrides = {(service, backend): dict(override) for service, backend, override in records}

    def of(self, service, backend):
        """Return the override of a backend; {} without one."""
        return self._overrides.get((service, backend), {})

    def set(self, service, backend, key, value):
        """Set "state" or "weight" of a backend; None removes it. Return whether that changed anything."""
        before = self.of(service, backend)
        after = {name: setting for name, setting in {**before, key: value}.items() if setting is not None}
        self._overrides.pop((service, backend), None)
        if after:
            self._overrides[service, backend] = after
        return after != before

    def settle(self, config):
        """Remove the overrides of backends that ``config`` does not have, and weights where the kernel forwards."""
        for service, backend in [
            (one.name, each.name) for one in config.services if one.in_kernel for each in one.backends
        ]:
            self.set(service, backend, "weight", None)
        backends = {(service.name, backend.name) for service in config.services for backend in service.backends}
        self._overrides = {key: override for key, override in self._overrides.items() if key in backends}

    def publish(self, region):
        """Write all overrides to a region and advance its epoch, so that the workers read them."""
        for number, (service, backend, _family) in enumerate(region.targets):
            override = self.of(service, backend)
            region.set_state("admin", number, shared_memory.ADMIN_STATES.index(override.get("state", "ready")))
            region.set_state("weight", number, override.get("weight", 0))
        region.advance(shared_memory.EPOCH_ADMIN)
