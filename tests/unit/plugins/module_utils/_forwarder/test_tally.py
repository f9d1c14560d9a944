# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why clients are turned away, from what the log says of it."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import balancer, limits, spoof, tally

TEST_CAUSES = [
    (balancer.NOBODY, 0, "no_backend"),
    (balancer.ALL_FULL, 0, "no_backend"),
    (limits.RATE, 0, "limited"),
    ("client address is not allowed", 0, "denied"),
    (spoof.OWN, 0, "never_spoofed"),
    ("client address is loopback", 0, "never_spoofed"),
    (spoof.FOREIGN_FAMILY, 0, "never_spoofed"),
    ("no PROXY header within 3 s", 0, "bad_header"),
    ("ECONNREFUSED: Connection refused", 2, "connect_failed"),
    ("stopped", 0, "other"),
]


@pytest.mark.parametrize(("reason", "attempts", "cause"), TEST_CAUSES)
def test_the_cause_of_a_refusal(reason, attempts, cause):
    assert tally.cause_of(reason, attempts) == cause
