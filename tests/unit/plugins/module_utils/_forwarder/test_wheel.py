# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timer wheel keeps a deadline for at least its length and at most a tick more."""

from __future__ import annotations

from functools import partial

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.wheel import TICK, Wheel
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0, 1e7), st.floats(0, 100))
def test_an_item_runs_once_after_its_deadline_and_within_a_tick(now, delay):
    wheel, ran = Wheel(), []
    wheel.add(now + delay, lambda: ran.append(1))
    wheel.expire(now + delay - 1e-6)
    assert not ran or delay < 1e-5
    wheel.expire(now + delay + TICK + 1e-6)
    assert ran == [1]
    wheel.expire(now + delay + 10)
    assert ran == [1]
    assert wheel.timeout(now) is None


def test_the_timeout_leads_to_the_next_item():
    wheel = Wheel()
    assert wheel.timeout(100.0) is None
    wheel.add(105.0, print)
    wheel.add(101.0, len)
    assert wheel.timeout(100.0) == pytest.approx(1.0, abs=TICK + 1e-6)
    assert wheel.timeout(200.0) == 0.0


def test_discard():
    wheel, ran = Wheel(), []
    first, second = partial(ran.append, 1), partial(ran.append, 2)
    handle = wheel.add(100.0, first)
    wheel.add(100.0, second)
    wheel.discard(handle, first)
    wheel.discard(handle, first)
    wheel.expire(101.0)
    assert ran == [2]
    wheel.discard(handle, second)


def test_an_item_may_add_another():
    wheel, ran = Wheel(), []
    wheel.add(100.0, lambda: wheel.add(100.0, lambda: ran.append("again")))
    wheel.expire(101.0)
    assert ran == []
    wheel.expire(101.0)
    assert ran == ["again"]
