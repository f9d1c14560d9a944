# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A keeper on a fake host, with a clock and notifications of the test's own."""

from __future__ import annotations

import json
import signal

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import loop
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import Notification
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.reconcile_pass import Documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.state_file import StateFile

from ..fakes import RETURN_PATH, FakeHost

# 2026-11-24T12:00:00Z
NOON = 1795521600.0


class World:
    """A host, its time, and events: ``at(3.0, action, notifications)``. ``keep(until)`` runs the keeper.

    It is also the keeper's monitor. ``passes`` and ``comparisons`` are the times of both; each costs ``cost`` CPU.
    """

    sees_processes = False
    legacy_fingerprint = ()
    ready: frozenset[int] = frozenset()

    def __init__(self, tmp_path):
        self.host, self.directory = FakeHost(tmp_path), tmp_path / "routing.d"
        self.directory.mkdir()
        self.store(RETURN_PATH)
        self.now, self.events, self.received = 0.0, [], []
        self.cost, self.used = 0.0, 0.0
        self.sent, self.interests, self.passes, self.comparisons, self.observed = [], [], [], [], []
        self.state_file = StateFile(str(tmp_path / "run" / "state.json"), lambda: NOON + self.now)

    def store(self, data):
        (self.directory / "return_path.json").write_text(json.dumps(data))

    def at(self, second, action=lambda: None, kinds=("rule",)):
        self.events.append((second, action, [Notification(kind) for kind in kinds]))

    def repeat(self, times, first, every, action=lambda: None, kinds=("rule",)):
        for number in range(times):
            self.at(first + number * every, action, kinds)

    def observe(self, second, value):
        """Append what ``value`` returns at that time to ``observed``."""
        self.at(second, lambda: self.observed.append(value()), [])

    def cpu(self):
        self.used += self.cost
        return self.used

    def watch(self, interest):
        self.interests.append(interest)
        self.passes.append(round(self.now, 3))

    def fingerprint(self, _result, _host):
        self.comparisons.append(round(self.now, 3))
        return repr(self.host.snapshot()).encode()

    def wait(self, seconds):
        assert len(self.passes) < 500, "the keeper runs passes without end"
        upcoming = [event for event in self.events if event[0] <= self.now + seconds]
        if not upcoming:
            self.now += seconds
            return []
        event = min(upcoming, key=lambda upcoming: upcoming[0])
        self.events.remove(event)
        self.now = max(self.now, event[0])
        event[1]()
        return event[2]

    def keep(self, until):
        self.at(until, lambda: self.received.append(signal.SIGTERM), [])
        access = (lambda: self.now, self.cpu, self.fingerprint)
        documents = Documents(str(self.directory))
        loop.Keeper(documents, self.host.engine, self, self.state_file, self.sent.append, *access).run(self.received)

    @property
    def statuses(self):
        return [text[7:] for text in self.sent if text.startswith("STATUS=")]

    @property
    def state(self):
        return json.loads((self.directory.parent / "run" / "state.json").read_text())

    @property
    def repairs(self):
        return self.state["repairs"]["total"]

    def lose_rules(self):
        self.host.kernel.held_rules.clear()

    def lose_links(self):
        """Return an action that brings them back."""
        near, self.host.kernel.near = self.host.kernel.near, {}
        return lambda: setattr(self.host.kernel, "near", near)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def host(world):
    return world.host
