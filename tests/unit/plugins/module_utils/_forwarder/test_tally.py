# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why clients are turned away: the label that metrics have for it, whatever the log says."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import (
    acl,
    balancer,
    limits,
    shared,
    spoof,
    tally,
    tcp,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import Backend, Config, Service

TEST_CAUSES = [
    (balancer.NOBODY, "no_backend"),
    (balancer.ALL_FULL, "no_backend"),
    (limits.PER_SERVICE, "limited"),
    (limits.PER_CLIENT, "limited"),
    (limits.RATE, "limited"),
    (acl.DENIED, "denied"),
    (acl.NOT_ALLOWED, "denied"),
    (spoof.OWN, "never_spoofed"),
    (spoof.BACKENDS_OWN, "never_spoofed"),
    (spoof.FOREIGN_FAMILY, "never_spoofed"),
    (spoof.never_spoofed("127.0.0.1"), "never_spoofed"),
    (tcp.DEADLINE, "other"),
]


@pytest.mark.parametrize(("refusal", "cause"), TEST_CAUSES)
def test_a_refusal_is_counted_by_its_cause(refusal, cause):
    service = Service("web", (), (Backend("b", 80, ipv4="198.18.0.21"),))
    region = shared.Region(shared.describe(Config(proxy_id=1, services=(service,)), 1))
    tally.Tally(region, 0, "web").refused(refusal.cause)
    counted = {one: region.total("service", f"refused_{one}") for one in shared.REFUSED}
    region.close()
    assert counted == {**dict.fromkeys(shared.REFUSED, 0), cause: 1}
