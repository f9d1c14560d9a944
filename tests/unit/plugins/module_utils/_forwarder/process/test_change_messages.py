# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker collects the parts of a change, and leaves nothing open of one that it does not use."""

from __future__ import annotations

import gc
import os
import socket
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import Log
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import change_messages, channel

from ..config.config_data import minimal

MANY = 600  # listening sockets: three messages


class Worker:
    """What config_change.prepare() is called with, and the change that it returns; ``done`` records everything."""

    def __init__(self):
        self.loop = SimpleNamespace(log=Log(fd=os.open(os.devnull, os.O_WRONLY)), now=lambda: 1.0)
        self.done = []
        self.defect = None

    def prepare(self, _worker, number, config, region, sockets):
        self.done.append((number, config, region.slots, sorted(sockets)))
        if self.defect == "prepare":
            raise ValueError("a defect")
        self.region, self.sockets = region, sockets
        return self

    def use(self):
        if self.defect == "use":
            raise ValueError("a defect")
        self.done.append("use")

    def discard(self):
        self.done.append("discard")
        self.close()

    def close(self):
        self.region.close()
        for sock in self.sockets.values():
            sock.close()


@pytest.fixture
def worker(monkeypatch):
    worker = Worker()
    monkeypatch.setattr(change_messages.config_change, "prepare", worker.prepare)
    return worker


@pytest.fixture
def sent():
    """(config, what the supervisor sends for it: [(message, descriptors)]) with many new listening sockets."""
    loaded = config.load(minimal())
    region = shared_memory.Region(shared_memory.describe(loaded, 2))
    document = change_messages.document(loaded, region)
    with socket.socket() as sock:
        new = {f"tcp:0.0.0.0:{number}#0": sock for number in range(MANY)}
        yield loaded, list(change_messages.parts(7, document, region.fd, new))
    os.close(document)
    region.close()


@pytest.fixture
def ends(worker):
    """(the supervisor's end of a channel, a function that makes the worker act on what is in it)."""
    ours, theirs = channel.pair()
    receiver = change_messages.Receiver(worker, theirs)

    def act():
        for message in theirs.receive()[0]:
            receiver.receive(message)
            channel.close_descriptors(message)
        return ours.receive()[0]

    yield ours, act
    ours.close()
    theirs.close()


def open_files():
    gc.collect()  # what other tests have left
    return len(os.listdir("/proc/self/fd"))


def test_a_change_is_prepared_when_its_last_part_has_arrived_and_used_when_its_number_is_named(worker, sent, ends):
    (loaded, parts), (ours, act) = sent, ends
    for number, (message, descriptors) in enumerate(parts):
        assert not worker.done
        ours.send(message, descriptors)
        assert act() == [{"received": 7, "part": number} if number + 1 < len(parts) else {"prepared": 7}]
    assert worker.done == [(7, loaded, 2, sorted(f"tcp:0.0.0.0:{number}#0" for number in range(MANY)))]
    ours.send({"use": 6, "until": 1.0})
    assert (act(), len(worker.done)) == ([], 1), "of another change"
    ours.send({"use": 7, "until": 1.0})
    assert (act(), worker.done[1:]) == ([{"using": 7}], ["use"])
    worker.close()


def test_a_worker_that_hung_until_it_was_replaced_does_not_count_in_the_row_of_the_other_one(worker, sent, ends):
    (_loaded, parts), (ours, act) = sent, ends
    before = open_files()
    for message, descriptors in parts:
        ours.send(message, descriptors)
        act()
    ours.send({"use": 7, "until": 0.9})
    assert act() == [{"using": 7, "refused": change_messages.TOO_LATE}]
    assert (worker.done[1:], open_files()) == (["discard"], before)


@pytest.mark.parametrize("parts_sent", [1, 2, 3])
def test_a_discarded_change_leaves_nothing_open(worker, sent, ends, parts_sent):
    (_loaded, parts), (ours, act) = sent, ends
    before = open_files()
    for message, descriptors in parts[:parts_sent]:
        ours.send(message, descriptors)
        act()
    assert open_files() > before
    ours.send({"discard": 7})
    assert act() == []
    assert worker.done[1:] == (["discard"] if parts_sent == 3 else [])
    assert open_files() == before


def test_a_change_is_refused_if_descriptors_are_missing(worker, sent, ends):
    (_loaded, parts), (ours, act) = sent, ends
    before = open_files()
    message, descriptors = parts[0]
    ours.send(message, descriptors[:-1])
    assert act() == [{"prepared": 7, "refused": change_messages.NOT_ARRIVED}]
    ours.send(*parts[1])
    assert act() == [{"prepared": 7, "refused": change_messages.NOT_ARRIVED}], "its beginning is missing"
    assert (worker.done, open_files()) == ([], before)


@pytest.mark.parametrize(("defect", "answer"), [("prepare", "prepared"), ("use", "using")])
def test_a_defect_is_an_answer(worker, sent, ends, defect, answer):
    (_loaded, parts), (ours, act) = sent, ends
    worker.defect = defect
    before = open_files()
    answers = []
    for message, descriptors in parts:
        ours.send(message, descriptors)
        answers += act()
    ours.send({"use": 7, "until": 1.0})
    last = [*answers, *act()][-1]
    assert last[answer] == 7
    assert last["refused"].startswith("internal error: ValueError('a defect') at ")
    if defect == "prepare":
        assert open_files() == before
    else:
        worker.close()
