# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a runtime directory: one holder at a time, and only a living forwarder keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import lock

from tests.lab import netns

# Take the lock, and hold it, hand it over by exec or fork; print the pid, and wait for the end of the input.
PROGRAM = """
import os, sys, time
from l4proxy._forwarder.process import lock
directory, action, *fd = sys.argv[1:]
held = lock.Lock(directory, int(fd[0]) if fd else None)
held.take()
if action == "exec":
    os.set_inheritable(held.fd, True)
    program = open("/proc/self/cmdline").read().split(chr(0))[2]
    os.execv(sys.executable, [sys.executable, "-c", program, directory, "hold", str(held.fd)])
parent = os.getpid()
if action == "fork" and not os.fork():
    while os.getppid() == parent:
        time.sleep(0.01)
    print(parent, flush=True)
    sys.stdin.read()
    os._exit(0)
if action == "fork":
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that takes the lock, and its pid."""

    def __init__(self, directory, action):
        command, pipe = [sys.executable, "-c", PROGRAM, str(directory), action], subprocess.PIPE
        self.process = subprocess.Popen(command, env=netns.cli_environment(), stdin=pipe, stdout=pipe, text=True)
        self.pid = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def mine(tmp_path):
    mine = lock.Lock(str(tmp_path))
    yield mine
    mine.release()


@pytest.mark.parametrize("action", ["hold", "exec"])
def test_only_one_process_holds_the_lock_until_it_ends(tmp_path, mine, action):
    with Other(tmp_path, action) as other:
        assert lock.holder(str(tmp_path)) == other.pid
        with pytest.raises(lock.Held, match=rf"another forwarder \(pid {other.pid}\) runs with the runtime directory"):
            mine.take()
        other.process.send_signal(signal.SIGKILL)
        other.process.wait(20)
        mine.take()
    assert lock.holder(str(tmp_path)) is None, "no other process holds it"


def test_a_forked_child_does_not_keep_the_lock_and_each_directory_has_its_own(tmp_path, mine):
    with Other(tmp_path, "fork"), Other(tmp_path / "other", "hold"):
        mine.take()
    assert lock.holder(str(tmp_path / "nowhere")) is None


def test_a_removed_lock_file_is_created_and_locked_again(tmp_path, mine):
    mine.take()
    before = mine.fd
    mine.take()
    assert mine.fd == before
    os.unlink(tmp_path / lock.NAME)
    mine.take()
    assert os.path.samestat(os.fstat(mine.fd), os.stat(tmp_path / lock.NAME))
    assert mine.descriptors() == [mine.fd]
    mine.release()
    assert mine.descriptors() == []
