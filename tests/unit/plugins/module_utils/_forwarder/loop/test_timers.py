# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timer timers keeps a deadline for at least its length and at most a tick more."""

from __future__ import annotations

from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import TICK, Timers
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0, 1e7), st.floats(0, 100))
def test_an_item_runs_once_after_its_deadline_and_within_a_tick(now, delay):
    timers, ran = Timers(), []
    timers.add(now + delay, lambda: ran.append(1))
    timers.expire(now + delay - 1e-6)
    assert not ran or delay < 1e-5
    timers.expire(now + delay + TICK + 1e-6)
    assert ran == [1]
    timers.expire(now + delay + 10)
    assert ran == [1]
    assert timers.timeout(now) is None


def test_the_timeout_leads_to_the_next_item():
    timers = Timers()
    assert timers.timeout(100.0) is None
    timers.add(105.0, print)
    timers.add(101.0, len)
    assert timers.timeout(100.0) == pytest.approx(1.0, abs=TICK + 1e-6)
    assert timers.timeout(200.0) == 0.0


def test_discard():
    timers, ran = Timers(), []
    first, second = partial(ran.append, 1), partial(ran.append, 2)
    handle = timers.add(100.0, first)
    timers.add(100.0, second)
    timers.discard(handle, first)
    timers.discard(handle, first)
    timers.expire(101.0)
    assert ran == [2]
    timers.discard(handle, second)


def test_an_item_may_add_another():
    timers, ran = Timers(), []
    timers.add(100.0, lambda: timers.add(100.0, lambda: ran.append("again")))
    timers.expire(101.0)
    assert ran == []
    timers.expire(101.0)
    assert ran == ["again"]
