# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spawning child processes, and their handover to the next program."""

from __future__ import annotations

import errno
import gc
import os
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, children

GENERATION = SimpleNamespace(number=1, config=Config(proxy_id=1, services=()), slots=1, region=None)


@pytest.mark.parametrize("spawn", [
    lambda: children.spawn_worker(GENERATION, 0, {}, {}, 0.0, [], []),
    lambda: children.spawn_checker(GENERATION, {}, {}, 0.0, [], [], ()),
    lambda: children.spawn_check(["true"], {}, []),
    lambda: children.spawn_writer([], bytes),
], ids=["worker", "checker", "check", "writer"])  # fmt: skip
def test_a_failed_fork_leaves_no_descriptor_open(monkeypatch, spawn):
    def fork():
        raise OSError(errno.EAGAIN, "no more processes")

    gc.collect()  # otherwise descriptors of earlier tests may be closed during this one
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(children.os, "fork", fork)
    with pytest.raises(OSError, match="no more processes"):
        spawn()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_child_keeps_its_channel_over_the_exec_of_its_parent():
    ours, theirs = channel.pair()
    child = children.Child(7, children.WORKER, 3, 2, children.SERVING, ours, started=5.0, covers=[1])
    record = {**child.record(), "channel": os.dup(ours.fileno())}
    os.set_inheritable(record["channel"], True)
    ours.close()
    adopted = children.Child.adopt(record)
    assert (adopted.pid, adopted.role, adopted.slot, adopted.generation, adopted.covers) == (7, "worker", 3, 2, [1])
    assert not os.get_inheritable(adopted.channel.fileno())
    assert theirs.send({"ready": True})
    assert adopted.channel.receive() == ([{"ready": True}], False)
    adopted.channel.close()
    assert theirs.receive() == ([], True)
    theirs.close()
