# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timeouts end a session at their length at the earliest, one check later at the latest; traffic restarts them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import timeouts
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State


def service(**options):
    return Service("web", (Listener("0.0.0.0", 80),), (Backend("b", 80, ipv4="198.18.0.21"),), **options)


class Relay:
    """What expired() reads of a relay."""

    def __init__(self, state=State.OPEN, **options):
        self.state = state
        self.runtime = SimpleNamespace(service=service(**options))
        self.seen_moved = self.seen_at = 0
        self.seen_state = None
        self.client, self.upstream = SimpleNamespace(sent=0), SimpleNamespace(sent=0)
        self.counted = self.keepalives = 0

    def count_bytes(self):
        self.counted = self.client.sent + self.upstream.sent

    def start_keepalive(self):
        self.keepalives += 1


def checks(relay, seconds, each=lambda _second: None):
    """Check once a second from second 0; return (second, reason) of the first timeout."""
    for second in range(seconds + 1):
        each(second)
        for _relay, reason in timeouts.expired([relay], 1000.0 + second):
            return second, reason
    return None


@pytest.mark.parametrize(("state", "idle", "half_closed", "ends"), [
    (State.OPEN, 10, 5, (10, "idle timeout")),
    (State.CLIENT_ENDED, 10, 5, (5, "half-closed timeout")),
    (State.BACKEND_ENDED, 10, 5, (5, "half-closed timeout")),
    (State.OPEN, 0, 5, None),
    (State.CLIENT_ENDED, 10, 0, None),
    (State.CONNECTING, 1, 1, None),
    (State.CHOOSING, 1, 1, None),
])  # fmt: skip
def test_a_session_in_which_nothing_moves_ends_by_the_timeout_of_its_state(state, idle, half_closed, ends):
    assert checks(Relay(state, idle_timeout=idle, half_closed_timeout=half_closed), 60) == ends


def test_a_byte_restarts_the_idle_timeout_and_keepalive_is_switched_on_once():
    relay = Relay(idle_timeout=10)

    def each(second):
        relay.client.sent += second == 9
        relay.upstream.sent += second == 18

    assert checks(relay, 60, each) == (28, "idle timeout")
    assert relay.keepalives == 1
    assert relay.counted == 2, "the bytes of an open session are counted"


def test_a_half_closed_session_has_the_shorter_timeout():
    relay = Relay(idle_timeout=100, half_closed_timeout=5)

    def each(second):
        relay.state = State.OPEN if second < 50 else State.CLIENT_ENDED

    assert checks(relay, 99, each) == (55, "half-closed timeout")


@pytest.mark.parametrize(("options", "seconds"), [
    ({}, 5.0),  # so that the bytes of open sessions are counted
    ({"keepalive": 8}, 4.0),  # half the keepalive
    ({"idle_timeout": 24}, 3.0),
    ({"half_closed_timeout": 16}, 2.0),
    ({"idle_timeout": 1}, 1.0),
    ({"idle_timeout": 0, "half_closed_timeout": 0, "keepalive": 0}, 5.0),
])  # fmt: skip
def test_the_interval_between_checks_suffices_for_the_shortest_timeout(options, seconds):
    assert timeouts.interval([service(), service(**options)]) == seconds
