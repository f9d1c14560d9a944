# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import selectors
import signal
import subprocess

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import orphans

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
    """A supervisor, this process, beside another one with the same command line, as in a second namespace."""
    process(tmp_path, os.getpid(), "l4-supervisor", 1)
    process(tmp_path, 5, "l4-supervisor", 1)
    return tmp_path


TEST_WHO = [
    ("a worker that init has adopted", ("l4-worker0", 1), [100]),
    ("one whose parent we may not see", ("l4-worker12", 99), [100]),
    ("one of this supervisor", ("l4-worker0", os.getpid()), []),
    ("one of another supervisor", ("l4-worker0", 5), []),
    ("one of another config", ("l4-worker0", 1, OTHER), []),
    ("no worker", ("l4-checker", 1), []),
    ("a name that looks like a process's end", ("l4-worker) S 5 (", 1), [100]),
]


@pytest.mark.parametrize(("who", "found"), [row[1:] for row in TEST_WHO], ids=[row[0] for row in TEST_WHO])
def test_who_is_an_orphan(proc, who, found):
    process(proc, 100, *who)
    (proc / "sys").mkdir()
    (proc / "101").mkdir()  # it ended while we looked
    assert orphans.find(str(proc)) == found


def test_they_are_signalled_and_forgotten_when_they_have_ended():
    with selectors.DefaultSelector() as selector, subprocess.Popen(["sleep", "60"]) as process:
        waiting = orphans.Orphans(selector, [process.pid, 2**22 - 1])
        assert len(waiting) == len(waiting.descriptors()) == 1, "a pid that is nobody's is not waited for"
        assert selector.select(0) == []
        waiting.signal(signal.SIGKILL)
        for key, _mask in selector.select(10):
            key.data()
        assert len(waiting) == 0
        waiting.signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
