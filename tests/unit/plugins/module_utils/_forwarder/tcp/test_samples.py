# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which connections are sampled; tests/kernel/forwarder/test_metrics.py shows that the numbers are the path's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import samples
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import State

NOW = 1000.0


class Backends:
    """Collects what is counted."""

    def __init__(self):
        self.counted = []

    def add_samples(self, *numbers):
        self.counted.append(numbers)


def relay(backends, index=0, seen_at=NOW - 1, seen_state=State.OPEN, info=(100, 1)):
    upstream = SimpleNamespace(sock=info)
    found = {"backends": backends, "index": index, "seen_at": seen_at, "seen_state": seen_state, "upstream": upstream}
    return SimpleNamespace(state=State.OPEN, counted_retransmits=0, **found)


@pytest.fixture(autouse=True)
def _sockets(monkeypatch):
    monkeypatch.setattr(samples.sockets, "tcp_info", lambda info: info)


def test_connections_of_a_backend_are_averaged_and_what_was_sent_again_counts_once():
    backends = Backends()
    relays = [relay(backends), relay(backends, info=(300, 2)), relay(backends, 1, info=(50, 0))]
    samples.take(relays, NOW)
    assert backends.counted == [(0, 2, 200, 3, NOW), (1, 1, 50, 0, NOW)]
    backends.counted.clear()
    relays[0].upstream.sock = (100, 5)
    samples.take(relays, NOW)
    assert backends.counted[0][3] == 4


@pytest.mark.parametrize("values", [
    {"seen_state": None},  # there was no check since it began
    {"seen_at": NOW - samples.RECENT - 1},  # nothing moves
    {"info": None},  # an old kernel
])  # fmt: skip
def test_not_sampled(values):
    backends = Backends()
    samples.take([relay(backends, **values)], NOW)
    assert backends.counted == []


def test_a_busy_worker_samples_some_connections():
    backends = Backends()
    samples.take([relay(backends) for _connection in range(3 * samples.MOST)], NOW)
    assert [numbers[1] for numbers in backends.counted] == [samples.MOST]
