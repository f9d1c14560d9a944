# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which starts get more time."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.starting import StartTimer

from tests.lab.ansible import REPOSITORY

UNIT = REPOSITORY / "roles" / "keeper" / "templates" / "l4proxy-keeper.service.j2"
MORE = "EXTEND_TIMEOUT_USEC=20000000"


@pytest.mark.parametrize(("used", "at", "expected"), [
    ((0.01, 0), 5, [MORE]),
    ((0.0, 100), 5, [MORE]),
    ((0.001, 2), 5, []),
    ((0.01, 0), 99, [MORE]),
    ((0.01, 100), 100, []),
])  # fmt: skip
def test_a_start_that_works_gets_more_time_but_not_for_ever(used, at, expected):
    sent, usage, now = [], [(1.0, 50)], [1000.0]
    timer = StartTimer(sent.append, lambda: now[0], lambda: usage[0])
    usage[0] = (1.0 + used[0], 50 + used[1])
    now[0] += at
    timer.extend()
    assert sent == expected
    timer.extend()
    assert sent == expected, "it has done nothing since"


def test_each_extension_is_the_timeout_of_the_unit():
    assert "\nTimeoutStartSec=20\n" in UNIT.read_text(encoding="utf-8")
