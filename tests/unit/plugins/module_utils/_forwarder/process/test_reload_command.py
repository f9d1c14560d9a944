# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy reload``: the sentence and the exit code for each outcome, with a stand-in for the forwarder."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import runtime_file
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reload_command


@pytest.fixture
def forwarder(tmp_path):
    """A runtime file that names this very process, and what it does on SIGHUP."""
    name = str(tmp_path / "forwarder.json")
    document = {
        "schema": 1,
        "pid": os.getpid(),
        "started": runtime_file.start_time(os.getpid()),
        "generation": 3,
        "version": "1.2.3",
        "last_reload": {"attempt": 2, "ok": False, "error": "an old failure", "at": "x"},
    }
    runtime_file.write(document, name)
    outcome = {}
    heard = []

    def on_hangup(_number, _frame):
        heard.append(1)
        if outcome:
            changed = {**document, **outcome}
            threading.Timer(0.1, runtime_file.write, (changed, name)).start()

    previous = signal.signal(signal.SIGHUP, on_hangup)
    yield tmp_path, outcome, heard
    signal.signal(signal.SIGHUP, previous)


def test_success(forwarder, capsys):
    directory, outcome, _heard = forwarder
    outcome.update(generation=4, last_reload={"attempt": 3, "ok": True, "error": None, "at": "y"})
    assert reload_command.run(wait=True, runtime_dir=str(directory), patience=10) == 0
    assert capsys.readouterr().out == "reloaded: generation 4 serves (version 1.2.3)\n"


def test_failure(forwarder, capsys):
    directory, outcome, _heard = forwarder
    outcome.update(last_reload={"attempt": 3, "ok": False, "error": "services: is required", "at": "y"})
    assert reload_command.run(wait=True, runtime_dir=str(directory), patience=10) == 1
    said = capsys.readouterr().err
    assert said == "reload failed, generation 3 goes on serving: services: is required\n"


def test_no_answer(forwarder, capsys):
    directory, _outcome, _heard = forwarder
    assert reload_command.run(wait=True, runtime_dir=str(directory), patience=0.3) == 1
    assert "did not finish the reload within 0.3 s" in capsys.readouterr().err


def test_without_waiting(forwarder, capsys):
    directory, _outcome, heard = forwarder
    assert reload_command.run(wait=False, runtime_dir=str(directory)) == 0
    assert heard == [1]
    assert capsys.readouterr().out.startswith(f"asked the forwarder (pid {os.getpid()}) to reload")


def test_a_forwarder_that_does_not_run_is_not_signalled(forwarder, capsys):
    directory, _outcome, heard = forwarder
    name = runtime_file.path(str(directory))
    document = runtime_file.read(name)
    runtime_file.write({**document, "started": document["started"] - 1}, name)
    assert reload_command.run(runtime_dir=str(directory)) == 1
    assert "no forwarder runs" in capsys.readouterr().err
    runtime_file.remove(name)
    assert reload_command.run(runtime_dir=str(directory)) == 1
    assert heard == []
