# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import orphans

from tests.unit.tables import rows

OWN = "python3\0/usr/local/bin/l4proxy\0forward\0--config\0/etc/l4proxy/forwarder.json\0"
OTHER = OWN.replace("forwarder.json", "other.json")


def process(proc, pid, name, parent, command=OWN):
    entry = proc / str(pid)
    entry.mkdir()
    (entry / "comm").write_text(f"{name}\n", encoding="utf-8")
    (entry / "cmdline").write_text(command, encoding="utf-8")
    (entry / "stat").write_text(f"{pid} ({name}) S {parent} 1 1", encoding="utf-8")


@pytest.fixture
def proc(tmp_path):
    """This process as a supervisor, and another one with the same command line, as in a second namespace."""
    process(tmp_path, os.getpid(), "l4-supervisor", 1)
    process(tmp_path, 5, "l4-supervisor", 1)
    return tmp_path


TEST_ORPHANS = [
    ("a worker that init has adopted", ("l4-worker0", 1), [100]),
    ("a worker whose parent is hidden", ("l4-worker12", 99), [100]),
    ("a worker of this supervisor", ("l4-worker0", os.getpid()), []),
    ("a worker of another supervisor", ("l4-worker0", 5), []),
    ("a worker of another config", ("l4-worker0", 1, OTHER), []),
    ("a checker", ("l4-checker", 1), []),
    ("a name that looks like fields of stat", ("l4-worker) S 5 (", 1), [100]),
]


@pytest.mark.parametrize(("fields", "pids"), **rows(TEST_ORPHANS))
def test_workers_without_a_supervisor_of_this_command_line_are_orphans(proc, fields, pids):
    process(proc, 100, *fields)
    (proc / "sys").mkdir()
    (proc / "101").mkdir()  # it has ended during the search
    assert orphans.find(str(proc)) == pids


def test_orphans_are_signalled_until_they_have_ended():
    with selectors.DefaultSelector() as selector, subprocess.Popen(["sleep", "60"]) as process:
        watched = orphans.Orphans(SimpleNamespace(selector=selector))
        watched.watch([process.pid, 2**22 - 1])
        assert len(watched) == len(watched.descriptors()) == 1, "a pid without a process is not watched"
        assert selector.select(0) == []
        watched.signal(signal.SIGKILL)
        for key, _mask in selector.select(10):
            key.data()
        assert len(watched) == 0
        watched.signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
