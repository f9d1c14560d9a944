# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators have said of backends: drain, maintenance, weights. Kept over reloads, forgotten with the backend."""

from __future__ import annotations

from . import shared_memory


class Overrides:
    """{(service, backend): {"state": ..., "weight": ...}}; a missing key means ready, or the config's weight."""

    def __init__(self, records=()):
        self._orders = {(service, backend): dict(order) for service, backend, order in records}

    def records(self):
        """Return everything as JSON, for the constructor."""
        return [[service, backend, order] for (service, backend), order in self._orders.items()]

    def of(self, service, backend):
        """Return what was said of one backend."""
        return self._orders.get((service, backend), {})

    def give(self, service, backend, key, value):
        """Say something of a backend; ``value`` None takes it back. Returns whether that changed anything."""
        order = dict(self.of(service, backend))
        before = order.get(key)
        order[key] = value
        self._orders[service, backend] = {name: one for name, one in order.items() if one is not None}
        if not self._orders[service, backend]:
            del self._orders[service, backend]
        return before != value

    def settle(self, config):
        """Forget backends that ``config`` does not have any more."""
        there = {(service.name, backend.name) for service in config.services for backend in service.backends}
        self._orders = {key: order for key, order in self._orders.items() if key in there}

    def publish(self, region):
        """Write everything to a region, and have its workers look."""
        for number, (service, backend, _family) in enumerate(region.targets):
            order = self.of(service, backend)
            region.set_state("admin", number, shared_memory.ADMIN_STATES.index(order.get("state", "ready")))
            region.set_state("weight", number, order.get("weight", 0))
        region.advance(shared_memory.EPOCH_ADMIN)
