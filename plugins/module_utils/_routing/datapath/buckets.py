# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backend of a kernel service owns which bucket. Pure.

The table is that of the forwarder's ``source_hash`` with ``l4proxy_hash_table: maglev``: of all backends that the
service has, also those that are down or not enabled. So a change of state moves the clients of that backend only.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from ..._shared import bucket_table
from ..document.kernel_service import KernelService


def size(service: KernelService) -> int:
    """The number of buckets of a service."""
    return bucket_table.size_for(len(service.servers))


def owners(service: KernelService, serving: Collection[str]) -> Sequence[str]:
    """The name of the backend of each bucket; ``serving`` are the names of those that get new connections.

    ValueError if there are none.
    """
    weights = {server.name: server.weight for server in service.servers}
    return _owners(tuple(sorted(weights.items())), frozenset(serving))


@functools.lru_cache(maxsize=1024)
def _owners(weights: tuple[tuple[str, int], ...], serving: frozenset[str]) -> Sequence[str]:
    names = [name for name, _weight in weights]
    table = bucket_table.fill(names, [weight for _name, weight in weights])
    candidates = {index for index, name in enumerate(names) if name in serving}
    return [names[bucket_table.owner(table, bucket, candidates)] for bucket in range(len(table))]
