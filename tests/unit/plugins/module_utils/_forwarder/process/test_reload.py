# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of a reload: whom a signal may reach."""

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
    """An Upgrade whose check has begun; its output stays open."""
    output = (tmp_path / "output").open("w+b")
    monkeypatch.setattr(reload.children, "start_check", lambda *_arguments: (PID, output.fileno()))
    supervisor = SimpleNamespace(serving=True, candidate=None, path="forwarder.json", now=lambda: 0.0, inherited=list)
    supervisor.pool = SimpleNamespace(starting=lambda: False)
    supervisor.notifier = SimpleNamespace(reloading=lambda: None)
    supervisor.log = SimpleNamespace(event=lambda *_names, **_fields: None)
    supervisor.selector = SimpleNamespace(register=lambda *_arguments: None)
    supervisor.timers = SimpleNamespace(add=lambda *_arguments: None)
    checking = reload.Upgrade(supervisor, ["python3", "l4proxy.pyz"])
    checking.wanted = True
    with output:
        checking.step()
        yield checking


@pytest.mark.parametrize("end", ["cancel", "_too_slow"])
def test_a_check_that_runs_is_killed(checking, signals, end):
    getattr(checking, end)()
    assert signals == [(PID, signal.SIGKILL)]


@pytest.mark.parametrize("end", ["cancel", "_too_slow"])
def test_a_check_that_was_reaped_is_not_for_its_number_may_be_anothers(checking, signals, end):
    checking.child_ended(PID, 0)
    getattr(checking, end)()
    assert signals == []
