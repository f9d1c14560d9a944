# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import open_log

SUMMARY = {"client": "203.0.113.7", "bytes_to_client": 5, "duration": 1.0, "ended": None}


class Loop:
    def __init__(self):
        self.log, self.later = Log(), []
        self.timers = SimpleNamespace(add=lambda when, callback: self.later.append(callback))

    def now(self):
        return 200.0


class Log:
    def __init__(self):
        self.lines = []

    def event(self, event, **fields):
        self.lines.append((event, fields))


def session(started, **keys):
    service = SimpleNamespace(**{"log_start": None, "log_every": None, **keys})
    return SimpleNamespace(service=service, started=started, alive=True, summary=lambda now: dict(SUMMARY))


@pytest.mark.parametrize(("started", "every", "before", "now", "due"), [
    (100.0, None, 100.0, 200.0, False),
    (100.0, 10, 90.0, 101.0, False),  # the first check that sees it
    (100.0, 10, 105.0, 109.9, False),
    (100.0, 10, 109.9, 110.1, True),
    (100.0, 10, 110.1, 119.9, False),
    (100.0, 10, 119.9, 151.0, True),  # a busy worker: one line for all
    (100.0, 10, 90.0, 111.0, True),
])  # fmt: skip
def test_a_session_is_logged_once_for_each_interval_since_its_start(started, every, before, now, due):
    loop = Loop()
    open_log.log_open(loop, "connection", [session(started, log_every=every)], before, now)
    fields = {"client": "203.0.113.7", "bytes_to_client": 5, "duration": 1.0}
    assert loop.log.lines == ([("connection open", fields)] if due else [])


def test_many_sessions_are_logged_in_portions_and_those_that_have_ended_since_are_not():
    loop, sessions = Loop(), [session(0.0, log_every=10) for _number in range(open_log.PORTION + 3)]
    open_log.log_open(loop, "session", sessions, 5.0, 11.0)
    assert (len(loop.log.lines), len(loop.later)) == (open_log.PORTION, 1)
    sessions[-1].alive = False
    loop.later.pop()()
    assert (len(loop.log.lines), loop.later) == (open_log.PORTION + 2, [])


def test_the_start_is_logged_without_what_is_not_known_yet():
    log = Log()
    for wanted in (None, True):
        open_log.log_start(log, "session", session(100.0, log_start=wanted), 100.0)
    assert log.lines == [("session start", {"client": "203.0.113.7", "duration": 1.0})]
