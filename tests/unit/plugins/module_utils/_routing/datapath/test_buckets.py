# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The buckets of a kernel service are those of the forwarder's source_hash with the hash table maglev."""

from __future__ import annotations

import random

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.algorithms import Maglev
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath import buckets
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.client_hash import client_hash, scale

SERVERS = (("b", 1), ("c", 3), ("d", 2), ("e", 1))


def service(order=SERVERS):
    servers = tuple(Server(name, f"198.18.0.{ord(name)}", 8080, weight) for name, weight in order)
    return KernelService("web", "ipv4", "tcp", "198.18.0.100", 80, servers)


@pytest.mark.parametrize("out", ["", "b", "cd", "bde"])
def test_the_kernel_and_the_forwarder_choose_the_same_backend(out):
    names, weights = zip(*SERVERS)
    maglev = Maglev(names, list(weights), None)
    maglev.weights_changed()
    candidates = [index for index, name in enumerate(names) if name not in out]
    owners = buckets.owners(service(), {names[index] for index in candidates})
    assert owners == buckets.owners(service(SERVERS[::-1]), {names[index] for index in candidates})
    for number in random.Random(7).sample(range(1 << 32), 500):
        client = ".".join(map(str, number.to_bytes(4, "big")))
        chosen = owners[scale(client_hash(client), buckets.size(service()))]
        assert chosen == names[maglev.choose(candidates, client)]
