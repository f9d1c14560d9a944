# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of a reload is killed when it must end, but never after it was reaped."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reload

PID = 4_194_305  # above the kernel's PID_MAX_LIMIT, 2^22: of no process


@pytest.fixture
def signals(monkeypatch):
    sent = []
    monkeypatch.setattr(reload.os, "kill", lambda *signal_to: sent.append(signal_to))
    return sent


@pytest.fixture
def checking(monkeypatch, tmp_path):
    """A Reload whose check has begun; its output stays open."""
    output = (tmp_path / "output").open("w+b")
    monkeypatch.setattr(reload.children, "spawn_check", lambda *_arguments: (PID, output.fileno()))
    log = SimpleNamespace(event=lambda *_names, **_fields: None)
    selector = SimpleNamespace(register=lambda *_arguments: None)
    loop = SimpleNamespace(log=log, selector=selector, call_later=lambda *_arguments: None)
    host = SimpleNamespace(may_reload=lambda: True, inherited_descriptors=list)
    reexec = SimpleNamespace(begin=lambda: None)
    checking = reload.Reload(loop, host, reexec, "forwarder.json", ["python3", "l4proxy.pyz"])
    checking.requested = True
    with output:
        checking.step()
        yield checking


@pytest.mark.parametrize("end", ["cancel", "_check_overdue"])
@pytest.mark.parametrize("reaped", [False, True])
def test_a_check_is_killed_unless_it_was_reaped_and_its_pid_may_be_reused(checking, signals, end, reaped):
    if reaped:
        checking.child_ended(PID, 0)
    getattr(checking, end)()
    assert signals == ([] if reaped else [(PID, signal.SIGKILL)])


def test_new_processes_are_made_once_no_worker_starts_and_before_the_next_reload(checking, monkeypatch):
    """A request meanwhile is answered by them, too: they load the config later."""
    made, results = [], SimpleNamespace(new_processes_because=None)
    checking._results = results
    checking._host.change_in_place = lambda: checking.new_processes("a worker ended")
    monkeypatch.setattr(checking, "_exec", lambda: made.append(results.new_processes_because))
    checking.child_ended(PID, 0)
    checking._pipe, checking._timer = None, 0
    checking._loop.timers = SimpleNamespace(discard=lambda *_arguments: None)
    checking.step()
    checking._host.may_reload = lambda: False
    checking.requested = True
    checking.step()
    assert made == []
    checking._host.may_reload = lambda: True
    checking.step()
    assert made == ["a worker ended"]
