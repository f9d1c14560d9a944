# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done for each service or backend costs as many steps for the last one as for the first.

Steps are instructions of Python, which are counted: a clock would say what else the machine does.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import http_views, metrics, status
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory, totals
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import Log
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import (
    channel,
    config_change,
    listeners,
    worker,
)

from .config.config_data import minimal
from .snapshots import Forwarder

FEW, TIMES = 10, 4
#: A function that costs the square of what there is takes 16 times as many steps for this many times as much.
MOST = 1.25 * TIMES
SLACK = 500  # steps of a function that are taken once, or now and then


def steps(work):
    """Return how many instructions of Python ``work()`` takes, by function."""
    count = Counter()

    def trace(frame, event, _argument):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            code = frame.f_code
            count[code.co_filename, code.co_name, code.co_firstlineno] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def wide(count):
    """Many services, three backends each in both families; each protocol on one port of different addresses."""
    common = {"balance": "source_hash", "limits": {"connections_per_client": 10}}
    services = [
        {
            "name": f"s{number}",
            "protocol": ("tcp", "udp")[number % 2],
            "listen": [{"address": f"127.9.{number // 250}.{number % 250 + 1}", "port": 20080}],
            "backends": [backend(f"b{one}", number, one) for one in range(3)],
            **common,
        }
        for number in range(count)
    ]
    return {**minimal(), "workers": 2, "services": services}


def deep(count):
    """One service with many backends, and as many listeners."""
    listen = [{"address": "127.9.0.1", "port": 20000 + number} for number in range(count * 3)]
    backends = [backend(f"b{number}", number, 0) for number in range(count * 3)]
    return {**minimal(), "workers": 2, "services": [{"name": "web", "listen": listen, "backends": backends}]}


def backend(name, number, one):
    return {"name": name, "ipv4": f"198.18.{one}.{number + 1}", "ipv6": f"2001:db8::{one}:{number + 1}", "port": 80}


class Host(Forwarder):
    """A forwarder with the config of a document."""

    def __init__(self, document):
        super().__init__(config.load(document))
        self.document, (self.region, self.other) = document, self.regions

    def start_a_worker(self, change=False):
        listening = listeners.bind_missing(self.config, 2, ())
        ours, theirs = channel.pair()
        first, second = (shared_memory.Region(self.region.record) for _generation in range(2))
        try:
            made = worker.Worker(self.config, listening, Log(), theirs, first, 0)
            if change:  # it closes the first region
                config_change.prepare(made, 2, self.config, second, {}).use()
            made.loop.poller.close()
        finally:
            listeners.close_all(listening)
            for one in (ours, theirs, second, *(() if change else (first,))):
                one.close()


WORKS = {
    "check": lambda host: config.load(host.document),
    "dump": lambda host: config.dump(host.config),
    "region": lambda host: shared_memory.Region(shared_memory.describe(host.config, 2)).inherit(
        host.region, host.config.services
    ),
    "worker": Host.start_a_worker,
    "change": lambda host: host.start_a_worker(change=True),
    "checker": lambda host: list(health_checker.all_targets(host.config, host.region)),
    "overrides": lambda host: (host.overrides.publish(host.region), host.overrides.settle(host.config)),
    "account": lambda host: (
        totals.publish_elsewhere(host.region, [host.other]),
        totals.GenerationTotals().fold(host.other),
    ),
    "status": lambda host: "".join(status.pieces(host.status())),
    "metrics": lambda host: metrics.render(host.status()),
    "page": lambda host: http_views.render(host.status()),
}


@pytest.mark.parametrize("shape", [wide, deep])
@pytest.mark.parametrize("name", WORKS)
def test_steps_grow_in_proportion(name, shape):
    taken = []
    for count in (FEW, FEW * TIMES):
        host = Host(shape(count))
        WORKS[name](host)  # what is remembered is made here
        taken.append(steps(lambda host=host: WORKS[name](host)))
        host.close()
    few, many = taken
    grown = {place: (few[place], number) for place, number in many.items() if number > MOST * few[place] + SLACK}
    assert not grown, f"steps, and steps for {TIMES} times as much, by function"
