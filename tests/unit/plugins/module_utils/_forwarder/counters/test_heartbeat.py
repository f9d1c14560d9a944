# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hangs, and who is only slow: by its silence, by what it does, and by whether the supervisor was on time."""

from __future__ import annotations

import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import heartbeat


@pytest.mark.parametrize(("state", "busy", "seconds"), [
    ("T", False, heartbeat.STOPPED),
    ("t", False, heartbeat.STOPPED),
    ("S", False, heartbeat.BLOCKED),
    ("R", True, heartbeat.BUSY),
    ("R", False, heartbeat.STARVED),
    ("D", False, heartbeat.STARVED),
])  # fmt: skip
def test_the_limit_of_silence_depends_on_what_the_process_does(state, busy, seconds):
    assert heartbeat.verdict(seconds - 0.1, state, busy) is None
    assert heartbeat.verdict(seconds, state, busy).startswith(f"no heartbeat for {seconds:.0f} s: it ")


class Machine:
    """A clock, and process 1 with a given state and CPU load, whose last heartbeat was at 100."""

    def __init__(self, monkeypatch, state="S", load=0.0):
        self.now, self.state, self.load = 100.0, state, load
        self.monitor = heartbeat.Monitor(self.now)
        monkeypatch.setattr(heartbeat, "process", lambda _pid: (self.state, self.load * self.now))

    def check(self, seconds, step=heartbeat.INTERVAL, beat=100.0):
        """Check every ``step`` seconds; return the times at which the process hung."""
        hung, until = [], self.now + seconds
        while self.now < until:
            self.now += step
            if self.monitor.check(self.now, {1: beat}):
                hung.append(self.now)
        return hung


@pytest.mark.parametrize(
    ("state", "load", "first"), [("T", 0, 103), ("S", 0, 105), ("R", 1.0, 110), ("R", 0.1, 130), ("D", 0, 130)]
)
def test_a_silent_process_hangs_after_its_limit(monkeypatch, state, load, first):
    assert Machine(monkeypatch, state, load).check(40)[0] == first


def test_no_process_hangs_while_it_has_heartbeats_or_the_supervisor_itself_is_late(monkeypatch):
    """The supervisor is late on a machine that was suspended or is overloaded."""
    machine = Machine(monkeypatch, "T")
    assert machine.check(2, beat=99.0) == machine.check(60, beat=1000.0) == []
    machine = Machine(monkeypatch, "T")
    assert machine.check(60, step=2.5) == []
    assert machine.check(10)[0] == machine.now - 7, "the control: the limit starts anew"


def test_state_and_cpu_time_of_a_process():
    state, used = heartbeat.process(os.getpid())
    assert state == "R"
    assert used > 0
    assert heartbeat.process(2**22 + 1) == ("Z", 0.0)
