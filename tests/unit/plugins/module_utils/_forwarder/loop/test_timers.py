# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A timer is due at its deadline at the earliest, and one tick later at the latest."""

from __future__ import annotations

from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import TICK, Timers
from hypothesis import given
from hypothesis import strategies as st


def expire(timers, now):
    for callback in timers.due(now):
        callback()


@given(st.floats(0, 1e7), st.floats(0, 100))
def test_a_callback_is_called_once_between_its_deadline_and_one_tick_later(now, delay):
    timers, ran = Timers(), []
    timers.add(now + delay, lambda: ran.append(1))
    expire(timers, now + delay - 1e-6)
    assert not ran or delay < 1e-5
    expire(timers, now + delay + TICK + 1e-6)
    assert ran == [1]
    expire(timers, now + delay + 10)
    assert ran == [1]
    assert timers.timeout(now) is None


def test_the_timeout_is_the_time_to_the_next_callback():
    timers = Timers()
    assert timers.timeout(100.0) is None
    timers.add(105.0, print)
    timers.add(101.0, len)
    assert timers.timeout(100.0) == pytest.approx(1.0, abs=TICK + 1e-6)
    assert timers.timeout(200.0) == 0.0


def test_a_discarded_callback_is_not_called_and_one_that_a_callback_adds_waits_for_the_next_time():
    timers, ran = Timers(), []
    first, second = partial(ran.append, 1), partial(ran.append, 2)
    handle = timers.add(100.0, first)
    timers.add(100.0, second)
    timers.discard(handle, first)
    timers.discard(handle, first)
    timers.add(100.0, lambda: timers.add(100.0, lambda: ran.append("again")))
    expire(timers, 101.0)
    assert ran == [2]
    timers.discard(handle, second)
    expire(timers, 101.0)
    assert ran == [2, "again"]
