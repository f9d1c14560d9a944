# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches grow when they are full, and a socket that has one datagram at a time is seldom read twice in a turn."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.batch import Batch

MOST = 64


def read(batch, waiting):
    """Return how many of the ``waiting`` datagrams of a socket are read in one turn."""
    size = batch.size
    if waiting >= size:
        batch.was_full()
    else:
        batch.came_to(waiting)
    return min(size, waiting)


def test_a_busy_socket_is_soon_read_in_large_batches_and_one_datagram_at_a_time_after_it_had_none():
    batch = Batch(MOST)
    assert sum(read(batch, 1000) for _turn in range(10)) > 4 * MOST
    assert batch.size == MOST
    read(batch, 0)
    assert batch.size == 1


def test_a_socket_with_one_datagram_at_a_time_is_seldom_read_in_vain_and_its_batch_grows_again_when_it_is_busy():
    batch, in_vain = Batch(MOST), 0
    for _turn in range(1000):
        in_vain += batch.size > 1
        assert read(batch, 1) == 1
    assert 0 < in_vain <= 25
    assert sum(read(batch, 1000) for _turn in range(MOST + 10)) > 4 * MOST
    read(batch, 3)
    assert batch.size == 3
