# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of UDP sessions: whatever happens in whatever order, two flows are never taken for each other."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import flow_table
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp.flow_table import Door, Flow, Lane, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TIMEOUT = 10.0
BACKENDS = [("198.18.0.21", 53), ("198.18.0.22", 53)]
MOST_LANES = 5


def flow(client, port, backend, now=0.0):
    """A flow of client number ``client`` with its port ``port`` to backend number ``backend``."""
    key = client, port
    return Flow(key, key, (bytes([10, 0, 0, client]), BACKENDS[backend]), None, backend, TIMEOUT, now)


class World:
    """A table with a door and as many lanes as it asks for, and a model: {client: (backend, lane)}."""

    def __init__(self):
        self.table, self.door = Table(), Door("dns")
        self.table.serve("dns")
        self.lanes = []
        self.model = {}

    def datagram(self, client, port, backend, now):
        """A client writes: a flow begins unless there is one, or goes on; returns whether it had a place."""
        known = self.door.flows.get((client, port))
        if known is None:
            known = flow(client, port, backend, now)
            lane = self.table.place(socket.AF_INET, known.reply, len(self.lanes) < MOST_LANES)
            if lane is None and len(self.lanes) < MOST_LANES:
                lane = Lane(socket.AF_INET, 40000 + len(self.lanes))
                self.lanes.append(lane)
                self.table.offer(lane)
            if lane is None:
                return False
            self.table.enter(known, self.door, lane)
            self.model[client, port] = (backend, lane)
        known.datagrams_to_backend += 1
        return True

    def expire(self, now):
        """End what is idle."""
        for over in self.table.idle(now):
            self.table.leave(over)
            del self.model[over.origin]

    def check(self):
        """The maps agree with the model, and so with each other."""
        assert {one.origin: (BACKENDS.index(one.reply[1]), one.lane) for one in self.table.flows} == self.model
        assert len(self.door.flows) == len(self.table) == sum(len(lane.flows) for lane in self.lanes)
        for one in self.table.flows:
            assert self.door.flows[one.origin] is one
            assert one.lane.flows[one.reply] is one  # a reply finds the client it is for


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no defect
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 1)),
            st.floats(0, TIMEOUT * 2),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_datagrams_and_timeouts_mixes_two_sessions(steps):
    world, now = World(), 0.0
    for step in steps:
        if isinstance(step, float):
            now += step
            world.expire(now)
        else:
            client, port, backend = step
            placed = world.datagram(client, port, backend, now)
            if not placed:  # only when that client has a flow to that backend on every lane
                pair = bytes([10, 0, 0, client]), BACKENDS[backend]
                assert all(pair in lane.flows for lane in world.lanes)
                assert len(world.lanes) == MOST_LANES
        world.check()
    world.expire(now + TIMEOUT)
    world.expire(now + 3 * TIMEOUT)
    assert len(world.table) == 0
    assert not world.table._held


def test_one_lane_serves_any_number_of_clients():
    world = World()
    for client in range(200):
        world.datagram(client, 1, 0, 0.0)
    assert len(world.table) == 200
    assert len(world.lanes) == 1


def test_a_client_with_many_flows_has_a_lane_for_each():
    world = World()
    assert [world.datagram(1, port, 0, 0.0) for port in range(MOST_LANES + 1)] == [True] * MOST_LANES + [False]
    assert world.datagram(1, MOST_LANES + 1, 1, 0.0)  # to another backend there is room
    assert world.datagram(2, 0, 0, 0.0)  # and for another client


@pytest.mark.parametrize(("silence", "over"), [(TIMEOUT - 0.1, False), (TIMEOUT, True)])
def test_a_flow_is_over_when_nothing_moved_for_its_timeout(silence, over):
    world = World()
    world.datagram(1, 1, 0, 0.0)
    assert world.table.idle(5.0) == []
    (one,) = world.table.flows
    one.datagrams_to_client += 1  # a reply counts as well
    assert world.table.idle(7.0) == []
    assert bool(world.table.idle(7.0 + silence)) is over


def test_those_in_which_nothing_moves_make_room_before_the_others():
    world = World()
    for client in range(4):
        world.datagram(client, 1, 0, 0.0)
    world.table.idle(2.0)
    for client in (0, 2):
        world.datagram(client, 1, 0, 2.0)
    world.table.idle(4.0)
    assert [flow.client[0] for flow in world.table.flows] == [1, 3, 0, 2]
    world.check()


@pytest.mark.parametrize(
    ("timeouts", "seconds"),
    [
        ([], flow_table.LATEST),
        ([60.0], 7.5),
        ([60.0, 4.0], 0.5),
        ([0.1], flow_table.SOONEST),
        ([1e6], flow_table.LATEST),
    ],
)
def test_looks_are_frequent_enough_for_the_shortest_timeout(timeouts, seconds):
    assert flow_table.interval(timeouts) == seconds


def test_a_lane_that_is_withdrawn_is_given_to_nobody():
    world = World()
    world.datagram(1, 1, 0, 0.0)
    world.expire(TIMEOUT)
    world.expire(2 * TIMEOUT)
    world.table.withdraw(world.lanes[0])
    assert world.table.place(socket.AF_INET, (b"", BACKENDS[0]), True) is None


class Watched(dict):
    """Flows of a lane that count how often somebody looked whether a pair is among them."""

    looks = 0

    def __contains__(self, key):
        Watched.looks += 1
        return super().__contains__(key)


def lanes(count, most):
    """The lanes of a table, ``count`` and up to ``most`` when they are crowded; a function that begins a flow."""
    table, door, opened = Table(), Door("dns"), []
    table.serve("dns")

    def another():
        lane = Lane(socket.AF_INET, 40000 + len(opened))
        lane.flows = Watched()
        opened.append(lane)
        table.offer(lane)
        return lane

    def begin(client, port):
        new = flow(client, port, 0)
        lane = table.place(socket.AF_INET, new.reply, grow=len(opened) < most) or another()
        table.enter(new, door, lane)

    for _lane in range(count):
        another()
    return opened, begin


@pytest.mark.parametrize("count", [1, 1000])
def test_the_search_for_a_place_goes_on_where_the_last_one_ended(count):
    opened, begin = lanes(count, most=1000)
    Watched.looks = 0
    for port in range(700):  # nearly as many as one client may have
        for client in range(5):
            begin(client, port)
    assert len(opened) <= 1000
    assert Watched.looks < 2 * 5 * 700


def test_the_flows_of_many_clients_are_spread_over_the_lanes():
    few, begin = lanes(10, most=10)
    for client in range(200):
        begin(client, 1)
        begin(client, 2)
    assert max(len(lane.flows) for lane in few) < 2 * 2 * 200 / 10
