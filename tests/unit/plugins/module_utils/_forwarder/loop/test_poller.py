# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""epoll with callbacks: levels, edges, and what becomes of events for what was closed in the same turn."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.poller import ENDED, READ, WRITE, Poller


class Noting(Poller):
    """A poller with names for callbacks: ``called`` are those that were, each with its mask."""

    def __init__(self):
        super().__init__()
        self.called = []

    def named(self, name):
        return lambda mask: self.called.append((name, mask))

    def register(self, source, events, callback):
        super().register(source, events, self.named(callback))

    def watch(self, number, callback, writable=False):
        super().watch(number, self.named(callback) if isinstance(callback, str) else callback, writable)

    def replace(self, number, callback):
        super().replace(number, self.named(callback))

    def again(self, callback):
        super().again(self.named(callback))


def no_defect(owner, error):
    raise error


@pytest.fixture
def poller():
    poller = Noting()
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
    poller.called.clear()
    poller.turn(0, no_defect)
    return dict(poller.called)


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
    assert poller.turn(None, no_defect)
    assert [callback for callback, _mask in poller.called] == ["other", "had its share"]
    assert turn(poller) == {}


def test_an_event_of_what_was_closed_in_the_same_turn_reaches_nobody_else(poller, pair):
    near, far = pair
    other, other_far = socket.socketpair()
    number, opened = other.fileno(), []

    def close_the_other(_mask):
        poller.forget(number)
        other.close()
        opened.extend(socket.socketpair())
        poller.watch(number, "who has its number now")

    poller.watch(near.fileno(), close_the_other)
    poller.watch(number, "the other")
    far.send(b"x")
    other_far.send(b"x")
    with other_far:
        assert turn(poller) == {}
        assert number in [one.fileno() for one in opened], "this test would prove nothing"
        opened[1 - [one.fileno() for one in opened].index(number)].send(b"x")
        assert turn(poller) == {"who has its number now": READ}
    for one in opened:
        one.close()


def test_a_defect_of_one_is_told_with_its_owner_and_the_others_are_called(poller, pair):
    class Owner:
        def fail(self, _mask):
            raise ZeroDivisionError

    owner, told = Owner(), []
    near, far = pair
    poller.watch(near.fileno(), owner.fail)
    far.send(b"x")
    poller.again("the next")
    poller.turn(0, lambda *defect: told.append(defect))
    assert [(one, type(error)) for one, error in told] == [(owner, ZeroDivisionError)]
    assert poller.called == [("the next", READ)]
