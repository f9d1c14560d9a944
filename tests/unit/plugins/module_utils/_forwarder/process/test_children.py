# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting processes: what a failure leaves behind."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel, children

GENERATION = SimpleNamespace(number=1, config=Config(proxy_id=1, services=()), slots=1, region=None)


def start_worker():
    children.start_worker(GENERATION, 0, {}, {}, 0.0, [])


def start_checker():
    children.start_checker(GENERATION, {}, {}, 0.0, [])


def start_check():
    children.start_check(["true"], {}, [])


def fail_from(call, function):
    """Return ``function``, which raises EMFILE from its ``call``-th call on."""
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) >= call:
            raise OSError(errno.EMFILE, "none left")
        return function(*arguments)

    return failing


@pytest.mark.parametrize(
    ("start", "fails", "call"), [(start_worker, "fork", 1), (start_checker, "fork", 1), (start_check, "fork", 1)]
)
def test_what_cannot_be_started_leaves_no_descriptor_open(monkeypatch, start, fails, call):
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(children.os, fails, fail_from(call, getattr(os, fails)))
    with pytest.raises(OSError, match="none left"):
        start()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_child_outlives_the_exec_of_its_parent_with_its_channel():
    ours, theirs = channel.pair()
    child = children.Child(7, children.WORKER, 3, 2, children.SERVING, ours, started=5.0, covers=[1])
    record = {**child.record(), "channel": os.dup(ours.fileno())}
    os.set_inheritable(record["channel"], True)
    ours.close()
    again = children.Child.recorded(record)
    assert (again.pid, again.role, again.slot, again.generation, again.covers) == (7, "worker", 3, 2, [1])
    assert not os.get_inheritable(again.channel.fileno())
    assert theirs.send({"ready": True})
    assert again.channel.receive() == ([{"ready": True}], False)
    again.channel.close()
    assert theirs.receive() == ([], True)
    theirs.close()
