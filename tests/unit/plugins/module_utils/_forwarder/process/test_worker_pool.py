# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import worker_pool


@pytest.mark.parametrize(("most", "generations", "stopped"), [
    (4, [], []),
    (4, [7, 7, 8, 8], []),
    (4, [7, 7, 8, 8, 9], [7, 7]),
    (4, [9, 8, 8, 7, 7, 7], [7, 7, 7]),
    (4, [7, 8, 9, 9, 9, 9], [7, 8]),
    (1, [7, 7], [7, 7]),
])  # fmt: skip
def test_the_oldest_generations_are_stopped_when_too_many_processes_drain(most, generations, stopped):
    draining = [SimpleNamespace(generation=number) for number in generations]
    assert [child.generation for child in worker_pool.surplus(most, draining)] == stopped
