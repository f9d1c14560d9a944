# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a runtime directory: whose it is, and that nothing but a living forwarder keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import lock

from tests.lab import netns

# Takes the lock, does what it is told, says its pid, and waits for the end of its input.
PROGRAM = """
import os, sys, time
from l4proxy._forwarder.process import lock
directory, what, *fd = sys.argv[1:]
held = lock.Lock(directory, int(fd[0]) if fd else None)
held.take()
if what == "exec":
    os.set_inheritable(held.fd, True)
    program = open("/proc/self/cmdline").read().split(chr(0))[2]
    os.execv(sys.executable, [sys.executable, "-c", program, directory, "hold", str(held.fd)])
parent = os.getpid()
if what == "fork" and not os.fork():
    while os.getppid() == parent:
        time.sleep(0.01)
    print(parent, flush=True)
    sys.stdin.read()
    os._exit(0)
if what == "fork":
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


class Other:
    """Another process, and its pid as it says it."""

    def __init__(self, directory, what):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory), what],
            env=netns.cli_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def mine(tmp_path):
    one = lock.Lock(str(tmp_path))
    yield one
    one.release()


@pytest.mark.parametrize("what", ["hold", "exec"])
def test_one_at_a_time(tmp_path, mine, what):
    with Other(tmp_path, what) as other:
        assert lock.holder(str(tmp_path)) == other.pid
        with pytest.raises(lock.Held, match=rf"another forwarder \(pid {other.pid}\) runs with the runtime directory"):
            mine.take()
        other.process.send_signal(signal.SIGKILL)
        other.process.wait(20)
        mine.take()
    assert lock.holder(str(tmp_path)) is None, "nobody else has it"


def test_a_child_that_outlives_it_does_not_keep_it(tmp_path, mine):
    with Other(tmp_path, "fork"):
        mine.take()


def test_a_file_that_was_removed_is_made_and_locked_again(tmp_path, mine):
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


def test_another_directory_is_another_lock(tmp_path, mine):
    with Other(tmp_path / "other", "hold"):
        mine.take()
    assert lock.holder(str(tmp_path / "nowhere")) is None
