# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hangs, and who is only slow: by its silence, by what it does, and by whether the supervisor was on time."""

from __future__ import annotations

import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import heartbeat

TEST_VERDICTS = [
    ("T", False, heartbeat.STOPPED),
    ("t", False, heartbeat.STOPPED),
    ("S", False, heartbeat.BLOCKED),
    ("R", True, heartbeat.BUSY),
    ("R", False, heartbeat.STARVED),
    ("D", False, heartbeat.STARVED),
]


@pytest.mark.parametrize(("state", "busy", "seconds"), TEST_VERDICTS)
def test_how_long_a_process_may_be_silent(state, busy, seconds):
    assert heartbeat.verdict(seconds - 0.1, state, busy) is None
    assert heartbeat.verdict(seconds, state, busy).startswith(f"no sign of life for {seconds:.0f} s: it ")


class Machine:
    """A clock, a look a second, and process 1, whose state and CPU are as told; it fell silent at 100."""

    def __init__(self, monkeypatch, state="S", load=0.0):
        self.now, self.state, self.load = 100.0, state, load
        self.beats = heartbeat.Beats(self.now)
        monkeypatch.setattr(heartbeat, "process", lambda _pid: (self.state, self.load * self.now))

    def looks(self, seconds, step=heartbeat.INTERVAL, beat=100.0):
        """The times at which it was said to hang."""
        found, until = [], self.now + seconds
        while self.now < until:
            self.now += step
            if self.beats.look(self.now, {1: beat}):
                found.append(self.now)
        return found


@pytest.mark.parametrize(
    ("state", "load", "first"), [("T", 0, 103), ("S", 0, 105), ("R", 1.0, 110), ("R", 0.1, 130), ("D", 0, 130)]
)
def test_who_is_silent_hangs_in_time(monkeypatch, state, load, first):
    assert Machine(monkeypatch, state, load).looks(40)[0] == first


def test_nobody_hangs_while_the_supervisor_is_late_itself(monkeypatch):
    """A machine that was suspended or has no CPU for anybody."""
    machine = Machine(monkeypatch, "T")
    assert machine.looks(60, step=2.5) == []
    assert machine.looks(10)[0] == machine.now - 7, "the control: from then on its time counts"


def test_who_writes_the_time_does_not_hang(monkeypatch):
    machine = Machine(monkeypatch, "T")
    assert machine.looks(2, beat=99.0) == []
    assert machine.looks(60, beat=1000.0) == []


def test_this_process():
    state, used = heartbeat.process(os.getpid())
    assert state == "R"
    assert used > 0
    assert heartbeat.process(2**22 + 1) == ("Z", 0.0)
