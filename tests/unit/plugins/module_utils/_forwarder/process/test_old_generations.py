# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import old_generations
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.old_generations import (
    MIB,
    OldGenerations,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.orphans import Orphans

LIVE = 9


class Supervisor:
    """Generations of two workers each, with one session for each worker; ``memory`` is what a worker uses (MiB)."""

    def __init__(self, monkeypatch, memory, most):
        self.killed, self.logged = [], []
        self.time = 1000.0
        log = SimpleNamespace(event=lambda _name, **fields: self.logged.append(fields))
        loop = SimpleNamespace(now=lambda: self.time, log=log)
        self.children = {
            10 * number + slot: self.child(number, slot) for number in (*memory, LIVE) for slot in range(2)
        }
        live = SimpleNamespace(number=LIVE, config=SimpleNamespace(most_drain_memory=most))
        self.orphans = Orphans(loop)
        pool = SimpleNamespace(children=self.children, sessions=lambda child: 1)
        self.old = OldGenerations(loop, pool, SimpleNamespace(live=live), self.orphans)
        self.memory = memory
        monkeypatch.setattr(old_generations, "memory_of", lambda pid: self.memory[pid // 10] * MIB)

    def child(self, number, slot):
        state = "serving" if number == LIVE else "draining"

        def end(sent):
            self.killed.append((number, sent))
            return True

        return SimpleNamespace(
            pid=10 * number + slot, slot=slot, generation=number, role="worker", state=state, kill_at=None,
            started=900.0, signal=end,
        )  # fmt: skip


@pytest.mark.parametrize(("memory", "most", "ended"), [
    ({}, 100, []),
    ({3: 10, 4: 10, 5: 10}, 60, []),
    ({3: 10, 4: 10, 5: 10}, 59, [3]),
    ({5: 10, 4: 1, 3: 1}, 20, [3, 4]),
    ({3: 50, 4: 10}, 20, [3]),
    ({3: 50, 4: 50}, 20, [3, 4]),
])  # fmt: skip
def test_the_oldest_generations_are_ended_until_the_others_are_within_the_bound_of_memory(
    monkeypatch, memory, most, ended
):
    supervisor = Supervisor(monkeypatch, memory, most)
    supervisor.old.enforce_bound()
    assert supervisor.killed == [(number, signal.SIGTERM) for number in ended for _worker in range(2)]
    assert [line["of_generation"] for line in supervisor.logged] == ended
    assert all(f"more than drain_memory ({most} MiB)" in line["reason"] for line in supervisor.logged)
    assert supervisor.old.sessions_ended == 2 * len(ended)


@pytest.mark.parametrize(("most", "orphans_end", "ended"), [(40, False, []), (39, True, []), (19, True, [3])])
def test_orphans_count_as_the_oldest_generation(monkeypatch, most, orphans_end, ended):
    supervisor = Supervisor(monkeypatch, {3: 10}, most)
    supervisor.memory[2] = 10
    signals = []
    monkeypatch.setattr(Orphans, "__iter__", lambda orphans: iter([20, 21]))
    monkeypatch.setattr(Orphans, "signal", lambda orphans, number: signals.append(number))
    supervisor.old.enforce_bound()
    assert signals == [signal.SIGTERM] * orphans_end
    assert {number for number, _signal in supervisor.killed} == set(ended)


def test_memory_is_measured_from_time_to_time(monkeypatch):
    supervisor = Supervisor(monkeypatch, {3: 1, 4: 1}, 10)
    supervisor.old.check()
    assert [entry.memory for entry in supervisor.old.entries()] == [2 * MIB, 2 * MIB]
    supervisor.memory[3] = 7
    supervisor.old.check()
    assert not supervisor.killed, "not yet"
    supervisor.time += old_generations.MEASURE_INTERVAL
    supervisor.old.check()
    assert {number for number, _signal in supervisor.killed} == {3}


def test_what_is_known_of_old_generations_is_handed_over(monkeypatch):
    supervisor = Supervisor(monkeypatch, {3: 1, 4: 1}, 10)
    description = {"version": "0.2.0", "archive": {"path": "x"}, "loaded_at": "noon", "generation": 4, "config": {}}
    supervisor.old.note(SimpleNamespace(number=4, description=lambda: description))
    supervisor.children[40].kill_at = supervisor.time + 100 + old_generations.DRAIN_GRACE
    later = Supervisor(monkeypatch, {3: 1, 4: 1}, 10)
    later.old.adopt(supervisor.old.records())
    later.old.adopt({})
    assert later.old.entries()[1].version is None, "version 0.1.0 hands nothing over"
    later.old.adopt(supervisor.old.records())
    unknown, known = later.old.entries()
    assert (unknown.number, unknown.version, unknown.since, unknown.seconds_left) == (3, None, 900.0, None)
    assert (known.number, known.version, known.archive, known.loaded_at) == (4, "0.2.0", {"path": "x"}, "noon")
    assert (known.since, known.workers, known.sessions) == (1000.0, 2, 2)
    assert supervisor.old.entries()[1].seconds_left == 100


def test_only_an_old_generation_can_be_ended_as_a_whole(monkeypatch):
    supervisor = Supervisor(monkeypatch, {3: 1, 4: 1}, 10)
    assert [supervisor.old.end(number, "test") for number in (2, 3, LIVE)] == [None, 2, None]
    assert supervisor.killed == [(3, signal.SIGTERM)] * 2


def test_the_memory_of_a_process_is_its_share_or_its_own_pages(tmp_path):
    assert old_generations.memory_of(os.getpid()) > MIB
    assert old_generations.memory_of(os.getpid(), str(tmp_path)) == 0
    directory = tmp_path / "7"
    directory.mkdir()
    (directory / "statm").write_text("1000 300 100 1 0 600 0\n", encoding="ascii")
    assert old_generations.memory_of(7, str(tmp_path)) == 200 * os.sysconf("SC_PAGE_SIZE")
    (directory / "smaps_rollup").write_text(
        "00400000-7ffe0000 ---p 0 [rollup]\nRss: 99 kB\nPss: 12 kB\n", encoding="ascii"
    )
    assert old_generations.memory_of(7, str(tmp_path)) == 12 << 10
