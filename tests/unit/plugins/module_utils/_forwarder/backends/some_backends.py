# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends of one service, as a worker has them, with the memory that it shares with another worker and the checker."""

from __future__ import annotations

import errno
from collections import Counter

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import balancer
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory

CLIENT, OTHER = "203.0.113.7", "203.0.113.8"


class Some(balancer.Backends):
    """Backends of one service in slot 0 of two, with the region they share."""

    def __init__(self, *weights, balance="round_robin", backups=(), priorities=(), limits=None, disabled=(), **options):
        made = []
        for n, weight in enumerate(weights):
            more = {"weight": weight, "backup": n in backups, "max_connections": (limits or {}).get(n)}
            more |= {"priority": priorities[n] if priorities else None, "enabled": False if n in disabled else None}
            made.append(Backend(name=f"b{n}", ipv4=f"198.18.0.{n + 1}", port=80, **more))
        service = Service("web", (), tuple(made), balance=balance, **options)
        self.region = shared_memory.Region(shared_memory.describe(Config(proxy_id=1, services=(service,)), 2))
        super().__init__(service, "ipv4", self.region, 0)
        self.sibling = balancer.Backends(service, "ipv4", self.region, 1)

    def __del__(self):
        self.region.close()

    def set(self, index, **states):
        """Set published states, as the checker or an operator does."""
        for field, value in states.items():
            self.region.set_state(field, index, value)
        self.region.advance(shared_memory.EPOCH_HEALTH)

    def shares(self, count=1, now=1.0, client=CLIENT):
        """Return {index: connections} of ``count`` connections of a client, each of which ends at once."""
        found = Counter()
        for _turn in range(count):
            index = self.next(client, (), now)
            found[index] += 1
            if index is not None:
                self.release(index)
        return dict(found)

    def fail(self, index, now, client=CLIENT, **options):
        return self.failed(client, index, errno.ECONNREFUSED, now, True, **options)
