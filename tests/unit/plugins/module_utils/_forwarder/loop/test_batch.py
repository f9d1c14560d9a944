# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches: full ones grow, and a socket with one datagram at a time is seldom asked for a second."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.batch import Batch

MOST = 64


def read(batch, waiting):
    """One turn on a socket on which so many datagrams wait; returns how many were read."""
    size = batch.size
    if waiting >= size:
        batch.was_full()
        return size
    batch.came_to(waiting)
    return waiting


def test_a_busy_socket_is_soon_read_in_big_batches():
    batch = Batch(MOST)
    assert sum(read(batch, 1000) for _turn in range(10)) > 4 * MOST
    assert batch.size == MOST


@pytest.mark.parametrize(("turns", "most_in_vain"), [(1000, 25)])
def test_a_socket_with_one_datagram_at_a_time_is_seldom_asked_in_vain(turns, most_in_vain):
    batch, in_vain = Batch(MOST), 0
    for _turn in range(turns):
        in_vain += batch.size > 1
        assert read(batch, 1) == 1
    assert 0 < in_vain <= most_in_vain


def test_it_grows_again_when_the_rush_comes():
    batch = Batch(MOST)
    for _turn in range(1000):
        read(batch, 1)
    assert sum(read(batch, 1000) for _turn in range(MOST + 10)) > 4 * MOST
    read(batch, 3)
    assert batch.size == 3


def test_a_wake_for_nothing_leaves_a_batch_of_one():
    batch = Batch(MOST)
    read(batch, 0)
    assert batch.size == 1
