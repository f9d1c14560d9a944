# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's side of a change in place: all workers or none, whatever happens to one of them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import generation, in_place
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.children import SERVING, WORKER, Child

from tests.support import processes

from ..config.config_data import minimal

ARCHIVE = {"path": "/l4proxy.pyz", "sha256": "a"}
OTHER = {"path": "/l4proxy.pyz", "sha256": "b"}


class Channel:
    def __init__(self):
        self.sent = []
        self.full = False

    def send(self, message, _descriptors=()):
        if not self.full:
            self.sent.append(next(iter(message)))
        return not self.full


def make(number):
    loaded = config.load(minimal())
    return generation.Generation(
        number, loaded, {}, ARCHIVE, 2, shared_memory.Region(shared_memory.describe(loaded, 2))
    )


class Supervisor:
    """Everything that a change uses: the supervisor, its pool and its loop, with two workers."""

    def __init__(self):
        self.generations = generation.Generations()
        self.generations.live, self.generations.candidate = make(1), make(2)
        self.workers = [Child(10 + slot, WORKER, slot, 1, SERVING, Channel()) for slot in range(2)]
        self.done, self.replaced, self.timers = [], [], []
        loop = SimpleNamespace(log=SimpleNamespace(event=lambda *_event, **_fields: None))
        loop.now = lambda: 0.0
        loop.call_later = lambda _seconds, callback: self.timers.append(callback)
        self.change = in_place.ChangeInPlace(loop, self.generations, self, self, self)
        self.change.begin(self.generations.candidate, {})

    def serving(self, _generation):
        return {child.slot: child for child in self.workers}

    def complete(self, _generation):
        return len(self.workers) == 2

    def drain_and_replace(self, child, _timeout):
        self.replaced.append(child)

    def of(self, _generation):  # the log settings
        return {"level": "info"}

    def changed_in_place(self):
        self.done.append(None)

    def not_changed_in_place(self, reason):
        self.generations.candidate = None
        self.done.append(reason)

    def answer(self, slot, **message):
        self.change.answered(self.workers[slot], message)

    def sent(self):
        return [child.channel.sent for child in self.workers]


@pytest.fixture
def supervisor():
    return Supervisor()


def test_workers_use_the_candidate_when_all_have_prepared_it(supervisor):
    supervisor.answer(0, prepared=2)
    supervisor.answer(0, prepared=2)  # twice
    supervisor.answer(1, prepared=1)  # of another change
    assert supervisor.sent() == [["prepare"], ["prepare"]]
    assert supervisor.generations.live.number == 1
    supervisor.answer(1, prepared=2)
    assert supervisor.sent() == [["prepare", "use"]] * 2
    assert (supervisor.generations.live.number, supervisor.generations.candidate) == (2, None)
    assert [(child.generation, child.holds) for child in supervisor.workers] == [(2, {1})] * 2
    supervisor.answer(0, using=2)
    assert supervisor.change
    assert not supervisor.done
    supervisor.answer(1, using=2)
    assert supervisor.done == [None]
    assert not supervisor.change
    for timer in supervisor.timers:
        timer()
    assert (supervisor.done, supervisor.replaced) == ([None], [])


BEFORE_USE = [
    (lambda it: it.answer(1, prepared=2, refused="no room"), "worker 1: no room"),
    (lambda it: it.change.child_ended(it.workers.pop()), "worker 1 ended"),
    (lambda it: it.timers[0](), "no answer within 5 s from worker 1"),
]


@pytest.mark.parametrize(("event", "reason"), BEFORE_USE)
def test_one_worker_that_does_not_prepare_makes_all_discard(supervisor, event, reason):
    supervisor.answer(0, prepared=2)
    event(supervisor)
    assert supervisor.done == [reason]
    assert supervisor.sent()[0] == ["prepare", "discard"]
    assert (supervisor.generations.live.number, supervisor.change.cancel()) == (1, False)


def test_a_worker_whose_queue_is_full_makes_all_discard(supervisor):
    """The parts of a change are sent one by one, when the part before has arrived."""
    supervisor.workers[1].channel.full = True
    supervisor.change._parts[11] = iter([({"prepare": 2}, [])])
    supervisor.answer(1, received=2)
    assert supervisor.done == ["worker 1 cannot be sent the new config (it has ended, or its queue is full)"]


IN_USE = [
    (lambda it: it.answer(1, using=2, refused="a defect"), True),
    (lambda it: it.timers[1](), True),
    (lambda it: it.change.child_ended(it.workers[1]), False),
]


@pytest.mark.parametrize(("event", "is_replaced"), IN_USE)
def test_there_is_no_way_back_from_use_and_a_worker_that_fails_is_replaced(supervisor, event, is_replaced):
    for slot in range(2):
        supervisor.answer(slot, prepared=2)
    supervisor.answer(0, using=2)
    event(supervisor)
    assert supervisor.done == [None]
    assert [child.slot for child in supervisor.replaced] == [1] * is_replaced
    if is_replaced:
        assert (supervisor.workers[1].generation, supervisor.workers[1].holds) == (1, set())


def test_a_cancelled_change_is_discarded_only_before_use(supervisor):
    assert supervisor.change.cancel()
    assert supervisor.sent() == [["prepare", "discard"]] * 2
    supervisor.answer(0, prepared=2)
    assert not supervisor.done


def test_what_a_worker_has_open_counts_once_while_others_have_not_switched(supervisor):
    """Both have one session at first; that of worker 1 does not move, because its backend has left the config."""
    old, new = supervisor.generations.live.region, supervisor.generations.candidate.region

    def count(region, slot, number):
        region.cells[region.cell(slot, "service", "sessions")] = number

    def is_open():
        return new.total("service", "sessions")

    for slot in range(2):
        count(old, slot, 1)
    for slot in range(2):
        supervisor.answer(slot, prepared=2)
    assert is_open() == 2
    count(old, 0, 0)  # worker 0 moves its session to its row of the new memory, which has it already
    assert is_open() == 2
    supervisor.generations.account(lambda _number: True)
    assert is_open() == 2
    supervisor.answer(0, using=2)
    assert is_open() == 2
    count(new, 1, 0)
    supervisor.answer(1, using=2)
    assert is_open() == 2, "that of worker 1 is counted elsewhere"
    assert new.cells[new.cell(2, "service", "sessions")] == 1
    count(old, 1, 0)
    supervisor.generations.account(lambda _number: False)
    assert is_open() == 1


OBSTACLES = [
    ({}, None),
    ({"installed": OTHER}, "another archive is installed"),
    ({"installed": {**ARCHIVE, "path": "/same/contents.pyz"}}, None),
    ({"archive": OTHER, "installed": OTHER}, "the workers run another archive"),
    ({"archive": None, "installed": None}, "the workers run another archive"),
]


@pytest.mark.parametrize(("changed", "reason"), OBSTACLES)
def test_new_processes_are_needed_for_another_archive(supervisor, changed, reason):
    archives = {"archive": ARCHIVE, "installed": ARCHIVE, **changed}
    assert in_place.obstacle(supervisor.generations.live, supervisor, **archives) == reason


def test_new_processes_are_needed_without_all_workers_or_a_readable_config(supervisor):
    live = supervisor.generations.live
    supervisor.workers.pop()
    assert in_place.obstacle(live, supervisor, ARCHIVE, ARCHIVE) == "a worker is being replaced"
    live.config = None
    reason = in_place.obstacle(live, supervisor, ARCHIVE, ARCHIVE)
    assert reason == "this version cannot read the config that another version has loaded"


def test_the_document_is_closed(supervisor):
    assert supervisor.change
    assert not any("l4proxy-config" in name for name in processes.open_files(os.getpid()))
