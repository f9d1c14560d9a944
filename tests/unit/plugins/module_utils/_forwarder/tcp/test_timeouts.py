# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timeouts by looking: kept for at least their length, at most a look longer, and reset by what moves."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import timeouts
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.session import State


def service(**options):
    return Service("web", (Listener("0.0.0.0", 80),), (Backend("b", 80, ipv4="198.18.0.21"),), **options)


class Relay:
    """What look() needs of one."""

    def __init__(self, state=State.OPEN, **options):
        self.state = state
        self.service = service(**options)
        self.seen_moved = self.seen_at = 0
        self.seen_state = None
        self.bytes = 0
        self.lasting = 0

    def bytes_moved(self):
        return self.bytes

    def start_keepalive(self):
        self.lasting += 1


def looks(relay, seconds, each=lambda _second: None):
    """Look once a second from second 0; returns (second, reason) of the first timeout."""
    for second in range(seconds + 1):
        each(second)
        for _relay, reason in timeouts.expired([relay], 1000.0 + second):
            return second, reason
    return None


TEST_IDLE = [
    (State.OPEN, 10, 5, (10, "idle timeout")),
    (State.CLIENT_ENDED, 10, 5, (5, "half-closed timeout")),
    (State.BACKEND_ENDED, 10, 5, (5, "half-closed timeout")),
    (State.OPEN, 0, 5, None),
    (State.CLIENT_ENDED, 10, 0, None),
    (State.CONNECTING, 1, 1, None),
    (State.CHOOSING, 1, 1, None),
]


@pytest.mark.parametrize(("state", "idle", "half_closed", "ends"), TEST_IDLE)
def test_nothing_moves(state, idle, half_closed, ends):
    assert looks(Relay(state, idle_timeout=idle, half_closed_timeout=half_closed), 60) == ends


def test_a_byte_begins_it_anew():
    relay = Relay(idle_timeout=10)

    def each(second):
        relay.bytes += second in (9, 18)

    assert looks(relay, 60, each) == (28, "idle timeout")


def test_an_end_of_one_side_begins_the_shorter_one():
    relay = Relay(idle_timeout=100, half_closed_timeout=5)

    def each(second):
        if second == 50:
            relay.state = State.CLIENT_ENDED

    assert looks(relay, 99, each) == (55, "half-closed timeout")


def test_a_session_is_told_once_that_it_lasts():
    relay = Relay()
    looks(relay, 5)
    assert relay.lasting == 1


TEST_INTERVALS = [
    ({}, 30.0),  # half the keepalive
    ({"keepalive": 0}, 30.0),
    ({"keepalive": 10}, 5.0),
    ({"idle_timeout": 80}, 10.0),
    ({"half_closed_timeout": 16}, 2.0),
    ({"idle_timeout": 1}, 1.0),
    ({"idle_timeout": 0, "half_closed_timeout": 0, "keepalive": 0}, 30.0),
]


@pytest.mark.parametrize(("options", "seconds"), TEST_INTERVALS)
def test_how_often_one_has_to_look(options, seconds):
    assert timeouts.interval([service(), service(**options)]) == seconds
