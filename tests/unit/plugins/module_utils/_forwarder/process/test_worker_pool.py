# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deadlines of children that drain, without processes."""

from __future__ import annotations

import os
import selectors
import signal
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import TICK, Timers
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, children, generation
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.worker_pool import (
    ABORT_GRACE,
    DRAIN_GRACE,
    WorkerPool,
)

from ..config.config_data import minimal

LIVE = SimpleNamespace(number=3)


class Host:
    """A pool with a worker of each of the generations 1 to 3; ``happened`` is what it does to them, with the time."""

    def __init__(self):
        self.time = 0.0
        self.happened = []
        log = SimpleNamespace(event=lambda *_arguments, **_fields: None)
        loop = SimpleNamespace(now=lambda: self.time, timers=Timers(), log=log)
        self.pool = WorkerPool(loop, None, {}, None, None)
        self.pool.children = {number: self.child(number) for number in (1, 2, 3)}
        self.timers = loop.timers

    def child(self, number):
        def note(what):
            self.happened.append((number, round(self.time), what))
            return True

        channel = SimpleNamespace(send=note)
        return SimpleNamespace(
            pid=number, generation=number, role="worker", state="serving", kill_at=None, channel=channel, signal=note
        )

    def pass_time(self, seconds):
        """Let time pass; return what happens meanwhile."""
        self.happened.clear()
        end = self.time + seconds
        while self.time < end:
            self.time += TICK
            for callback in self.timers.due(self.time):
                callback()
        return self.happened


@pytest.fixture
def host():
    return Host()


def test_without_a_deadline_draining_workers_are_left_alone_until_one_is_set(host):
    host.pool.drain_all_but(LIVE, None)
    assert host.happened == [
        step
        for number in (1, 2)
        for step in ((number, 0, {"hand_over": True}),)
    ] + [
        step
        for number in (1, 2)
        for step in ((number, 0, {"drain_deadline": None}), (number, 0, signal.SIGTERM))
    ]  # fmt: skip
    assert host.pass_time(3600) == []
    host.happened.clear()
    host.pool.drain_all_but(LIVE, 60.0)
    assert host.happened == [(number, 3600, {"drain_deadline": 60.0}) for number in (1, 2)]
    del host.pool.children[2]  # it has ended
    assert host.pass_time(120) == [
        (1, round(3600 + 60 + ABORT_GRACE), signal.SIGTERM),  # for versions that do not know the message
        (1, round(3600 + 60 + DRAIN_GRACE), signal.SIGKILL),
    ]


@pytest.mark.parametrize(("first", "second", "ends"), [(100.0, 10.0, 10), (10.0, 100.0, 10), (10.0, None, 10)])
def test_of_two_deadlines_the_earlier_one_counts(host, first, second, ends):
    host.pool.drain_all_but(LIVE, first)
    host.pool.drain_all_but(LIVE, second)
    killed = [(number, at) for number, at, what in host.pass_time(200) if what == signal.SIGKILL]
    assert {number for number, _at in killed} == {1, 2}
    assert min(at for _number, at in killed) == round(ends + DRAIN_GRACE)
    assert host.pool.children[1].kill_at == ends + DRAIN_GRACE


def test_a_stop_gives_its_deadline_to_all_also_to_those_that_drain_without_one(host):
    host.pool.drain_all_but(LIVE, None)
    host.happened.clear()
    host.pool.stop(30.0)
    assert [(number, what) for number, _at, what in host.happened] == [
        (1, {"drain_deadline": 30.0}),
        (2, {"drain_deadline": 30.0}),
        (3, {"drain_deadline": 30.0}),
        (3, signal.SIGTERM),
    ]
    killed = [number for number, at, what in host.pass_time(60) if (at, what) == (35, signal.SIGKILL)]
    assert sorted(killed) == [1, 2, 3]


@pytest.mark.parametrize("may_signal", [True, False])
def test_a_second_stop_tells_a_worker_of_another_user_to_end_its_sessions(host, may_signal):
    sent = []
    host.pool.children = {1: host.child(1)}
    host.pool.children[1].signal = lambda _number: may_signal
    host.pool.children[1].channel.send = sent.append
    host.pool.signal_all(signal.SIGTERM)
    assert sent == ([] if may_signal else [{"drain_deadline": 0}])


class Counting:
    """A pool whose live generation 2 and draining generation 1 have one session in each of two slots."""

    def __init__(self):
        loaded = config.load(minimal())
        self.regions = [shared_memory.Region(shared_memory.describe(loaded, 2)) for _number in (1, 2)]
        for region in self.regions:
            for slot in range(2):
                region.cells[region.cell(slot, "service", "sessions")] = 1
        self.generations = generation.Generations()
        self.generations.live = generation.Generation(2, loaded, {}, None, 2, self.regions[1])
        self.generations._draining = {1: self.regions[0]}
        loop = SimpleNamespace(
            now=lambda: 0.0,
            timers=Timers(),
            log=SimpleNamespace(event=lambda *_arguments, **_fields: None),
            selector=selectors.DefaultSelector(),
        )
        self.pool = WorkerPool(loop, self.generations, {}, None, None)

    @staticmethod
    def child(slot, number, state):
        ours, theirs = channel.pair()
        theirs.close()
        return children.Child(1000 + slot, children.WORKER, slot, number, state, ours)

    def open(self):
        return [[region.sessions(slot) for slot in range(2)] for region in self.regions]

    def close(self):
        for child in self.pool.children.values():
            child.close()
        self.pool._loop.selector.close()
        for region in self.regions:
            region.close()


@pytest.fixture
def counting():
    made = Counting()
    yield made
    made.close()


@pytest.mark.parametrize("state", [children.SERVING, children.DRAINING])
def test_a_worker_that_has_ended_has_no_session_in_any_memory_also_before_it_is_replaced(counting, state):
    """Until then a reload may come: what it counted would be open for as long as others of its generation drain."""
    child = counting.child(1, 2, state)
    child.holds.add(1)
    counting.pool._add(child)
    counting.pool.reaped(child.pid, 9)
    assert counting.open() == [[1, 0], [1, 0]]


def test_backends_that_a_checker_has_found_down_just_before_it_ended_are_passed_on(counting):
    """A reload ends the checker, and the next one finds nothing new: the backend is down already."""
    ours, theirs = channel.pair()
    checker = children.Child(1000, children.CHECKER, 0, 2, children.DRAINING, ours)
    worker = counting.child(1, 2, children.SERVING)
    sent = []
    worker.channel.send = sent.append
    for child in (checker, worker):
        counting.pool._add(child)
    down = {"down": [["web", "b", "ipv4", "198.18.0.2"]]}
    theirs.send(down)
    theirs.close()
    counting.pool.reaped(checker.pid, -15)
    assert sent == [down]


def test_a_worker_that_ended_while_there_was_no_supervisor_has_no_session(counting):
    child = counting.child(0, 2, children.SERVING)
    record = {**child.record(), "channel": os.dup(child.channel.fileno())}
    child.close()
    counting.pool.adopt({"restarts": 0, "children": [], "adopted": [record], "holds": {"1000": [1]}})
    assert counting.open() == [[1, 0], [1, 0]]
