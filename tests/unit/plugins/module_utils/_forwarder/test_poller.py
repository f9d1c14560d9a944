# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""epoll with callbacks: levels, edges, and what becomes of events for what was closed in the same turn."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.poller import ENDED, READ, WRITE, Poller


@pytest.fixture
def poller():
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


def turn(poller):
    """Run one turn; returns the masks by callback, and does not wait."""
    return dict(poller.select(0))


def test_a_level_is_reported_until_it_is_taken_and_nothing_after_unregister(poller, pair):
    near, far = pair
    poller.register(near, READ, "it")
    assert turn(poller) == {}
    far.send(b"x")
    assert turn(poller) == turn(poller) == {"it": READ}
    poller.unregister(near)
    assert turn(poller) == {}
    poller.register(near.fileno(), READ, "by number")
    assert turn(poller) == {"by number": READ}


def test_an_arrival_is_reported_once(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), "it")
    assert turn(poller) == {}, "room alone is not reported unasked"
    far.send(b"x")
    assert turn(poller) == {"it": READ}
    assert turn(poller) == {}
    far.send(b"y")
    assert turn(poller) == {"it": READ}
    far.close()
    assert turn(poller)["it"] & ENDED
    assert turn(poller) == {}, "an end that nobody may look at yet must not spin"


def test_what_was_there_before_is_reported(poller, pair):
    near, far = pair
    far.send(b"x")
    poller.watch(near.fileno(), "it", writable=True)
    assert turn(poller) == {"it": READ | WRITE}


def test_room_is_reported_from_when_it_is_asked_for(poller, pair):
    near, _far = pair
    poller.watch(near.fileno(), "it")
    poller.watch_writable(near.fileno())
    assert turn(poller) == {"it": WRITE}
    assert turn(poller) == {}


def test_what_is_closed_leaves_by_itself(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), "it")
    far.send(b"x")
    poller.forget(near.fileno())
    near.close()
    assert turn(poller) == {}


def test_the_callback_can_be_replaced(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), "connecting")
    poller.replace(near.fileno(), "open")
    far.send(b"x")
    assert turn(poller) == {"open": READ}


def test_again_comes_after_the_others_and_does_not_wait(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), "other")
    far.send(b"x")
    poller.again("had its share")
    assert [callback for callback, _mask in poller.select(None)] == ["other", "had its share"]
    assert turn(poller) == {}
