# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refused clients are counted by the cause of the refusal, whatever its sentence."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import acl, limits, never_spoofed
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import balancer
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import service_counters, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import relay

TEST_CAUSES = [
    (balancer.NONE_UP, "no_backend"),
    (balancer.ALL_FULL, "no_backend"),
    (limits.PER_SERVICE, "limited"),
    (limits.PER_CLIENT, "limited"),
    (limits.RATE, "limited"),
    (acl.DENIED, "denied"),
    (acl.NOT_ALLOWED, "denied"),
    (never_spoofed.OWN, "never_spoofed"),
    (never_spoofed.BACKENDS_OWN, "never_spoofed"),
    (never_spoofed.FOREIGN_FAMILY, "never_spoofed"),
    (never_spoofed.never_spoofed("127.0.0.1"), "never_spoofed"),
    (relay.DEADLINE, "other"),
]


@pytest.mark.parametrize(("refusal", "cause"), TEST_CAUSES)
def test_a_refusal_is_counted_by_its_cause(refusal, cause):
    service = Service("web", (), (Backend("b", 80, ipv4="198.18.0.21"),))
    region = shared_memory.Region(shared_memory.describe(Config(proxy_id=1, services=(service,)), 1))
    service_counters.ServiceCounters(region, 0, "web").refused(refusal.cause)
    counted = {one: region.total("service", f"refused_{one}") for one in shared_memory.REFUSED}
    region.close()
    assert counted == {**dict.fromkeys(shared_memory.REFUSED, 0), cause: 1}
