# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A forwarder without processes, of which tests take snapshots and status documents."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import status
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin.snapshot import (
    OldGeneration,
    Process,
    Snapshot,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.totals import GenerationTotals

NOW = 1000.0


def worker(pid, slot, generation, state="serving", silent=None, sessions=0):
    return Process(pid, slot, generation, state, NOW - pid, [], silent, sessions)


class Forwarder:
    """Generation 2, which is live, and generation 1, which drains; ``regions`` are theirs, in this order."""

    def __init__(self, config):
        self.config = config
        self.regions = [shared_memory.Region(shared_memory.describe(config, 2)) for _generation in range(2)]
        self.overrides = Overrides()

    def status(self, **values):
        """Return the status document of a snapshot with these values."""
        snapshot = {
            "now": NOW, "description": {"generation": 2, "version": "0.1.0", "loaded_at": "noon"},
            "config": self.config, "region": self.regions[0], "slots": 2, "overrides": self.overrides,
            "totals": GenerationTotals().totals(self.regions),
            "workers": [worker(5, 1, 2), worker(3, 0, 1, "draining")],
            "checker": worker(7, 0, 2), "last_reload": {"ok": True, "error": None}, "reloads": {"ok": 1, "failed": 0},
            "old_generations": [OldGeneration(1, "0.1.0", None, "morning", NOW - 7300, 1, 5, 20 << 20, None)],
            "drain_memory_ended": 3, "restarts": 4, "log_level": "info",
        }  # fmt: skip
        return status.status(Snapshot(**{**snapshot, **values}))

    def count(self, kind, field, number, index=0, slot=0, generation=2):
        """Add to a counter of a worker."""
        region = self.regions[2 - generation]
        region.cells[region.cell(slot, kind, field, index)] += number

    def close(self):
        for region in self.regions:
            region.close()
