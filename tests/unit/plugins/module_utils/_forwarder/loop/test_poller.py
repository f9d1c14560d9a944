# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""epoll with callbacks: levels, edges, and events of descriptors that are closed in the same turn."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.poller import ENDED, READ, WRITE, Poller


class NotingPoller(Poller):
    """A poller that notes the calls of the callbacks that named() returns."""

    def __init__(self):
        super().__init__()
        self.called = []

    def named(self, name):
        return lambda mask: self.called.append((name, mask))

    def masks(self):
        """Turn without waiting; return the masks by name."""
        self.called.clear()
        self.turn(0, no_defect)
        return dict(self.called)


def no_defect(_owner, error):
    raise error


@pytest.fixture
def poller():
    poller = NotingPoller()
    yield poller
    poller.close()


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


def test_a_level_is_reported_until_it_is_read_and_nothing_after_unregister(poller, pair):
    near, far = pair
    poller.register(near, READ, poller.named("it"))
    assert poller.masks() == {}
    far.send(b"x")
    assert poller.masks() == poller.masks() == {"it": READ}
    poller.unregister(near)
    assert poller.masks() == {}
    poller.register(near.fileno(), READ, poller.named("by number"))
    assert poller.masks() == {"by number": READ}


def test_an_edge_is_reported_once(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), poller.named("it"))
    assert poller.masks() == {}, "room is only reported on request"
    for data in (b"x", b"y"):
        far.send(data)
        assert poller.masks() == {"it": READ}
        assert poller.masks() == {}
    far.close()
    assert poller.masks()["it"] & ENDED
    assert poller.masks() == {}, "an end that cannot be handled yet must not spin"


def test_what_arrived_before_watch_is_reported_and_room_once_from_watch_writable_on(poller, pair):
    near, far = pair
    poller.watch(far.fileno(), poller.named("far"))
    poller.watch_writable(far.fileno())
    assert poller.masks() == {"far": WRITE}
    assert poller.masks() == {}
    far.send(b"x")
    poller.watch(near.fileno(), poller.named("near"), writable=True)
    assert poller.masks() == {"near": READ | WRITE}


def test_the_callback_can_be_replaced_and_a_forgotten_and_closed_descriptor_is_not_reported(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), poller.named("connecting"))
    poller.replace(near.fileno(), poller.named("open"))
    far.send(b"x")
    assert poller.masks() == {"open": READ}
    far.send(b"y")
    poller.forget(near.fileno())
    near.close()
    assert poller.masks() == {}


def test_again_comes_after_the_events_of_the_next_turn_which_does_not_wait(poller, pair):
    near, far = pair
    poller.watch(near.fileno(), poller.named("other"))
    far.send(b"x")
    poller.again(poller.named("again"))
    assert poller.turn(None, no_defect)
    assert [name for name, _mask in poller.called] == ["other", "again"]
    assert poller.masks() == {}


def test_an_event_of_a_descriptor_closed_in_the_same_turn_does_not_reach_the_next_owner_of_its_number(poller, pair):
    near, far = pair
    other, other_far = socket.socketpair()
    number, opened = other.fileno(), []

    def close_the_other(_mask):
        poller.forget(number)
        other.close()
        opened.extend(socket.socketpair())
        poller.watch(number, poller.named("next owner"))

    poller.watch(near.fileno(), close_the_other)
    poller.watch(number, poller.named("the other"))
    far.send(b"x")
    other_far.send(b"x")
    with other_far:
        assert poller.masks() == {}
        numbers = [sock.fileno() for sock in opened]
        assert number in numbers, "this test would prove nothing"
        opened[1 - numbers.index(number)].send(b"x")
        assert poller.masks() == {"next owner": READ}
    for sock in opened:
        sock.close()


def test_an_exception_is_reported_with_its_owner_and_the_other_callbacks_are_called(poller, pair):
    class Owner:
        def fail(self, _mask):
            raise ZeroDivisionError

    owner, defects = Owner(), []
    near, far = pair
    poller.watch(near.fileno(), owner.fail)
    far.send(b"x")
    poller.again(poller.named("the next"))
    poller.turn(0, lambda *defect: defects.append(defect))
    assert [(owner, type(error)) for owner, error in defects] == [(owner, ZeroDivisionError)]
    assert poller.called == [("the next", READ)]
