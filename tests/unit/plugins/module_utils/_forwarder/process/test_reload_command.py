# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy reload``: its sentence and exit status for each result. This process plays the forwarder."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import runtime_file
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reload_command


@pytest.fixture
def forwarder(tmp_path):
    """(directory of a runtime file that names this process, what the file says after SIGHUP, SIGHUPs received)."""
    name = str(tmp_path / "forwarder.json")
    document = {"schema": 1, "pid": os.getpid(), "started": runtime_file.start_time(os.getpid())}
    document |= {"generation": 3, "version": "1.2.3"}
    document["last_reload"] = {"attempt": 2, "ok": False, "error": "an old failure", "at": "x"}
    runtime_file.write(document, name)
    result, received = {}, []

    def on_hangup(number, _frame):
        received.append(number)
        if result:
            threading.Timer(0.1, runtime_file.write, ({**document, **result}, name)).start()

    previous = signal.signal(signal.SIGHUP, on_hangup)
    yield str(tmp_path), result, received
    signal.signal(signal.SIGHUP, previous)


def last_reload(error=None, **more):
    return {"attempt": 3, "ok": error is None, "error": error, "at": "y", **more}


@pytest.mark.parametrize(("result", "timeout", "code", "sentence"), [
    ({"generation": 4, "last_reload": last_reload()}, 10, 0, "reloaded: generation 4 serves (version 1.2.3)\n"),
    ({"generation": 4, "last_reload": last_reload(in_place=True, new_processes_because=None)}, 10, 0,
     "reloaded: generation 4 serves (version 1.2.3), in place\n"),
    ({"generation": 4, "last_reload": last_reload(in_place=False, new_processes_because="a worker ended")}, 10, 0,
     "reloaded: generation 4 serves (version 1.2.3), by new processes: a worker ended\n"),
    ({"last_reload": last_reload("services: is required")}, 10, 1,
     "reload failed, generation 3 still serves: services: is required\n"),
    ({}, 0.3, 1, "the forwarder did not finish the reload within 0.3 s; see its log\n"),
])  # fmt: skip
def test_the_result_of_a_reload_is_one_sentence_and_the_exit_status(forwarder, capsys, result, timeout, code, sentence):
    directory, shown, _received = forwarder
    shown.update(result)
    assert reload_command.run(wait=True, runtime_dir=directory, timeout=timeout) == code
    printed = capsys.readouterr()
    assert (printed.err if code else printed.out) == sentence


def test_without_wait_the_command_only_sends_the_signal(forwarder, capsys):
    directory, _result, received = forwarder
    assert reload_command.run(wait=False, runtime_dir=directory) == 0
    assert received == [signal.SIGHUP]
    assert capsys.readouterr().out.startswith(f"the forwarder (pid {os.getpid()}) was asked to reload")


def test_a_process_that_is_not_the_forwarder_gets_no_signal(forwarder, capsys):
    directory, _result, received = forwarder
    name = runtime_file.path(directory)
    document = runtime_file.read(name)
    runtime_file.write({**document, "started": document["started"] - 1}, name)
    assert reload_command.run(runtime_dir=directory) == 1
    assert "no forwarder is running" in capsys.readouterr().err
    runtime_file.remove(name)
    assert reload_command.run(runtime_dir=directory) == 1
    assert received == []
