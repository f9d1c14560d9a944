# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting processes: what a failure leaves behind."""

from __future__ import annotations

import errno
import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import children
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import Config


def start_worker():
    children.start_worker(Config(proxy_id=1, services=()), {}, 1, 0.0, [])


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
    ("start", "fails", "call"), [(start_worker, "fork", 1), (start_worker, "pipe2", 2), (start_check, "fork", 1)]
)
def test_what_cannot_be_started_leaves_no_pipe_open(monkeypatch, start, fails, call):
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(children.os, fails, fail_from(call, getattr(os, fails)))
    with pytest.raises(OSError, match="none left"):
        start()
    assert sorted(os.listdir("/proc/self/fd")) == before
