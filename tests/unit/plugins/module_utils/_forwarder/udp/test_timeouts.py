# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the idle timeouts of UDP sessions are checked; test_flow_table.py shows which sessions end."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import timeouts

LONGEST, SHORTEST = timeouts.LONGEST, timeouts.SHORTEST
INTERVALS = [([], LONGEST), ([24.0], 3.0), ([60.0, 4.0], 0.5), ([0.1], SHORTEST), ([1e6], LONGEST)]


@pytest.mark.parametrize(("timeouts_of_services", "seconds"), INTERVALS)
def test_checks_are_frequent_enough_for_the_shortest_timeout(timeouts_of_services, seconds):
    assert timeouts.interval(timeouts_of_services) == seconds
