# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of UDP sessions: whatever happens in whatever order, two flows are never taken for each other."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import flow_table, timeouts
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp.flow_table import Flow, FlowTable
from hypothesis import given
from hypothesis import strategies as st

TIMEOUT = 10.0
BACKENDS = [("198.18.0.21", 53), ("198.18.0.22", 53)]
MOST_SOCKETS = 5


class Backends:
    """What a flow is counted by: [bytes to the backend, to the client, datagrams to the backend, to the client]."""

    def __init__(self):
        self.counted = [0, 0, 0, 0]

    def add_bytes(self, _index, *numbers):
        self.counted[:2] = [sum(pair) for pair in zip(self.counted[:2], numbers)]

    def add_datagrams(self, _index, *numbers):
        self.counted[2:] = [sum(pair) for pair in zip(self.counted[2:], numbers)]


def flow(client, port, backend, now=0.0):
    """A flow of client number ``client`` with its port ``port`` to backend number ``backend``."""
    key = client, port
    return Flow(key, key, (bytes([10, 0, 0, client]), BACKENDS[backend]), Backends(), backend, TIMEOUT, now)


class Listener:
    """What the table reads of a listener."""

    def __init__(self):
        self.service, self.flows = "dns", {}


class Upstream:
    """What the table reads of a shared upstream socket."""

    family, shared, alone = socket.AF_INET, True, False

    def __init__(self, flows=None):
        self.flows = {} if flows is None else flows


class World:
    """A table with a listener and as many upstream sockets as it asks for, and a model: {client: (backend, socket)}."""

    def __init__(self):
        self.table, self.listener = FlowTable(), Listener()
        self.table.add_service("dns")
        self.sockets = []
        self.model = {}

    def datagram(self, client, port, backend, now):
        """A client writes: a flow begins unless there is one, or goes on; returns whether it had a place."""
        known = self.listener.flows.get((client, port))
        if known is None:
            known = flow(client, port, backend, now)
            may_open = len(self.sockets) < MOST_SOCKETS
            upstream = self.table.find_shared(socket.AF_INET, known.reply_key, may_open)
            if upstream is None and may_open:
                upstream = Upstream()
                self.sockets.append(upstream)
                self.table.add_shared(upstream)
            if upstream is None:
                return False
            self.table.enter(known, self.listener, upstream)
            self.model[client, port] = (backend, upstream)
        known.datagrams_to_backend += 1
        return True

    def expire(self, now):
        """End what is idle."""
        for over in timeouts.expired(self.table, now):
            self.table.leave(over)
            del self.model[over.client_key]

    def check(self):
        """The maps agree with the model, and so with each other."""
        flows = self.table.flows
        assert {one.client_key: (BACKENDS.index(one.reply_key[1]), one.upstream) for one in flows} == self.model
        assert len(self.listener.flows) == len(self.table) == sum(len(one.flows) for one in self.sockets)
        for one in self.table.flows:
            assert self.listener.flows[one.client_key] is one
            assert one.upstream.flows[one.reply_key] is one  # a reply finds the client it is for


@given(
    st.lists(
        st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 1)), st.floats(0, TIMEOUT * 2)),
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
            if not placed:  # only when that client has a flow to that backend on every socket
                pair = bytes([10, 0, 0, client]), BACKENDS[backend]
                assert all(pair in one.flows for one in world.sockets)
                assert len(world.sockets) == MOST_SOCKETS
        world.check()
    world.expire(now + TIMEOUT)
    world.expire(now + 3 * TIMEOUT)
    assert len(world.table) == 0
    assert not world.table._taken


def test_one_socket_serves_any_number_of_clients_and_one_flow_to_a_backend_of_each():
    world = World()
    for client in range(200):
        world.datagram(client, 1, 0, 0.0)
    assert (len(world.table), len(world.sockets)) == (200, 1)
    world = World()
    assert [world.datagram(1, port, 0, 0.0) for port in range(MOST_SOCKETS + 1)] == [True] * MOST_SOCKETS + [False]
    assert world.datagram(1, MOST_SOCKETS + 1, 1, 0.0)  # to another backend there is room
    assert world.datagram(2, 0, 0, 0.0)  # and for another client


@pytest.mark.parametrize(("silence", "over"), [(TIMEOUT - 0.1, False), (TIMEOUT, True)])
def test_a_flow_expires_when_nothing_has_moved_for_its_timeout(silence, over):
    world = World()
    world.datagram(1, 1, 0, 0.0)
    assert timeouts.expired(world.table, 5.0) == []
    (one,) = world.table.flows
    one.datagrams_to_client += 1  # a reply counts as well
    assert timeouts.expired(world.table, 7.0) == []
    assert bool(timeouts.expired(world.table, 7.0 + silence)) is over


def test_many_flows_are_counted_some_at_a_time_and_those_that_have_ended_are_not(monkeypatch):
    monkeypatch.setattr(flow_table, "MOST_COUNTED", 2)
    world = World()
    for client in range(5):
        world.datagram(client, 1, 0, 0.0)
    flows = list(world.table.flows)
    timeouts.expired(world.table, 1.0)
    world.table.leave(flows[4])
    for counted in (2, 4, 4, 4):
        world.table.count_some()
        assert sum(one.backends.counted[2] for one in flows) == counted


def test_what_an_open_flow_has_forwarded_is_counted_once():
    world = World()
    world.datagram(1, 1, 0, 0.0)
    (known,) = world.table.flows
    for datagrams, now in ((1, 1.0), (1, 2.0), (2, 3.0), (2, 4.0)):
        known.datagrams_to_backend = known.datagrams_to_client = datagrams
        known.bytes_to_backend, known.bytes_to_client = 100 * datagrams, 10 * datagrams
        timeouts.expired(world.table, now)
        world.table.count_some()
        assert known.backends.counted == [100 * datagrams, 10 * datagrams, datagrams, datagrams]
    known.bytes_to_client += 1
    known.count_traffic()
    assert known.backends.counted == [200, 21, 2, 2]


def test_flows_in_which_nothing_moves_come_first():
    world = World()
    for client in range(4):
        world.datagram(client, 1, 0, 0.0)
    timeouts.expired(world.table, 2.0)
    for client in (0, 2):
        world.datagram(client, 1, 0, 2.0)
    timeouts.expired(world.table, 4.0)
    assert [flow.client[0] for flow in world.table.flows] == [1, 3, 0, 2]
    world.check()


def test_a_removed_socket_gets_no_more_flows():
    world = World()
    world.datagram(1, 1, 0, 0.0)
    world.expire(TIMEOUT)
    world.expire(2 * TIMEOUT)
    world.table.remove_shared(world.sockets[0])
    assert world.table.find_shared(socket.AF_INET, (b"", BACKENDS[0]), True) is None


class CountingFlows(dict):
    """Flows of an upstream socket; counts the searches for a key among them."""

    searches = 0

    def __contains__(self, key):
        CountingFlows.searches += 1
        return super().__contains__(key)


def crowd(count, most):
    """Return the upstream sockets of a table, ``count`` and up to ``most`` once they are crowded, and begin(flow)."""
    table, listener, opened = FlowTable(), Listener(), []
    table.add_service("dns")

    def open_another():
        opened.append(Upstream(CountingFlows()))
        table.add_shared(opened[-1])
        return opened[-1]

    def begin(client, port, place=0):
        new = flow(client, port, 0)
        may_open = len(opened) < most
        upstream = table.find_shared(socket.AF_INET, new.reply_key, may_open, place) or open_another()
        table.enter(new, listener, upstream)

    for _socket in range(count):
        open_another()
    return opened, begin


@pytest.mark.parametrize("count", [1, 1000])
def test_the_search_for_a_free_socket_continues_where_the_last_one_ended(count):
    opened, begin = crowd(count, most=1000)
    CountingFlows.searches = 0
    for port in range(700):  # nearly as many as one client may have
        for client in range(5):
            begin(client, port)
    assert len(opened) <= 1000
    assert CountingFlows.searches < 2 * 5 * 700


def test_flows_with_one_place_share_a_socket_and_further_ones_of_a_client_are_spread():
    few, begin = crowd(10, most=10)
    for client in range(200):
        begin(client, 1, place=73)
    assert [len(upstream.flows) for upstream in few] == [0, 0, 0, 200, 0, 0, 0, 0, 0, 0]
    for client in range(200):
        begin(client, 2, place=73)
    assert max(len(upstream.flows) for upstream in few if upstream is not few[3]) < 3 * 200 / 9
