# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker, health_round

from .simulation import Network, Run


@pytest.fixture
def network(monkeypatch):
    network = Network()
    for name in ("TcpProbe", "ExchangeProbe", "UdpProbe"):
        monkeypatch.setattr(health_round, name, network.probe)
    monkeypatch.setattr(health_checker.random, "uniform", lambda first, last: (first + last) / 2)
    yield network
    assert network.open == 0, "a probe was left open"


@pytest.fixture
def start():
    runs = []

    def start(*services, turn=0.0, **options):
        runs.append(Run(*services, **options))
        runs[-1].turn(turn)
        return runs[-1]

    yield start
    for run in runs:
        run.end()
