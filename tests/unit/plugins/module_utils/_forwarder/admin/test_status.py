# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document: what it makes of a region, of overrides, and of children that are there or are not."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import status
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.balancer import Backends
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.totals import GenerationTotals
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process.children import CHECKER, WORKER

NOW = 1000.0
BACKENDS = (
    Backend("b", 80, ipv4="198.18.0.21", ipv6="2001:db8::21", weight=2),
    Backend("c", 80, ipv4="198.18.0.22", backup=True, max_connections=9),
)
CONFIG = Config(
    proxy_id=1, services=(Service("web", (Listener("0.0.0.0", 80), Listener("::", 80)), BACKENDS, balance="random"),)
)
# The order of targets: b over IPv4, c over IPv4, b over IPv6.
B4, C4, B6 = range(3)


class Supervisor:
    """What a status is made of; ``regions`` are those of the serving generation 2 and of 1, which drains."""

    def __init__(self, *children):
        self.regions = [shared_memory.Region(shared_memory.describe(CONFIG, 2)) for _generation in range(2)]
        self.serving = SimpleNamespace(
            config=CONFIG, region=self.regions[0], number=2, slots=2, description=lambda: {"generation": 2}
        )
        self.draining = {1: self.regions[1]}
        self.pool = SimpleNamespace(restarts=4, children={child.pid: child for child in children})
        self.pool.silent = lambda child: child.silent
        self.pool.of = lambda number: [child for child in children if child.generation == number]
        self.overrides = Overrides()
        self.last_reload, self.reloads = {"ok": True}, {"ok": 1, "failed": 0}
        self.log = SimpleNamespace(level="info")
        self.generation_totals = GenerationTotals()
        self.now = lambda: NOW

    def totals(self):
        return self.generation_totals.totals(self.regions)

    def count(self, kind, field, number, index=0, slot=0, generation=2):
        region = self.regions[2 - generation]
        region.cells[region.cell(slot, kind, field, index)] += number


def child(pid, slot, generation, role=WORKER, state="serving", silent=None):
    return SimpleNamespace(
        pid=pid, slot=slot, generation=generation, role=role, state=state, started=NOW - pid, covers=[], silent=silent
    )


@pytest.fixture
def supervisor():
    made = Supervisor(child(5, 1, 2), child(3, 0, 1, state="draining"), child(7, 0, 2, role=CHECKER))
    yield made
    for region in made.regions:
        region.close()


def backends(supervisor):
    return {one["name"]: one for one in status.status(supervisor)["services"][0]["backends"]}


def test_it_is_json_with_every_key_its_docstring_names(supervisor):
    document = json.loads(json.dumps(status.status(supervisor)))
    service = document["services"][0]
    backend = service["backends"][0]
    family = backend["families"]["ipv4"]
    described = status.__doc__
    for part in (document, service, backend, family):
        for key in part:
            assert f'"{key}"' in described or "field: int" in described
    for key in ("pid", "last_reload", "reloads", "restarts", "log_level", "alarms", "totals", "workers", "checker"):
        assert key in document
    assert (service["listen"], service["balance"]) == (["0.0.0.0:80", "[::]:80"], "random")
    assert (backend["weight"], backend["backup"], backend["max_connections"]) == (2, False, None)


def test_workers_of_every_generation_and_the_slots_that_have_none(supervisor):
    supervisor.count("service", "sessions", 8, slot=1)
    supervisor.count("service", "sessions", 3, slot=0, generation=1)
    found = status.status(supervisor)["workers"]
    assert [(one["generation"], one["slot"], one["pid"], one["state"], one["sessions"]) for one in found] == [
        (2, 0, None, "gone", 0),
        (2, 1, 5, "serving", 8),
        (1, 0, 3, "draining", 3),
    ]
    assert found[1]["age"] == 5.0
    assert status.status(supervisor)["checker"] == {"pid": 7, "hung": False}


def test_who_gives_no_sign_of_life_is_said_to_hang():
    made = Supervisor(child(5, 0, 2, silent=2.6), child(6, 1, 2, silent=2.4), child(7, 0, 2, role=CHECKER, silent=9.0))
    found = status.status(made)
    assert [one["state"] for one in found["workers"]] == ["hung", "serving"]
    assert found["checker"]["hung"]
    for region in made.regions:
        region.close()


def test_without_a_checker_or_a_config(supervisor):
    del supervisor.pool.children[7]
    supervisor.pool.of = lambda _number: []
    supervisor.serving.config = None
    document = status.status(supervisor)
    assert (document["checker"], document["services"]) == (None, [])


def test_numbers_are_those_of_all_workers_generations_and_families(supervisor):
    for generation, slot, target, number in ((2, 0, B4, 1), (2, 1, B4, 10), (1, 0, B6, 100), (2, 1, C4, 1000)):
        supervisor.count("target", "connections", number, target, slot, generation)
    supervisor.count("service", "refused_denied", 7)
    supervisor.count("worker", "defects", 2, slot=1)
    found = backends(supervisor)
    assert (found["b"]["connections"], found["c"]["connections"]) == (111, 1000)
    assert [one["connections"] for one in found["b"]["families"].values()] == [11, 100]
    document = status.status(supervisor)
    assert document["services"][0]["refused_denied"] == 7
    assert document["totals"]["defects"] == 2


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "state"),
    [
        (shared_memory.UP, shared_memory.UP, "up"),
        (shared_memory.UNKNOWN, shared_memory.UP, "up"),
        (shared_memory.UP, shared_memory.BROKEN, "return path broken"),
        (shared_memory.DOWN, shared_memory.BROKEN, "down"),
        (shared_memory.UNKNOWN, shared_memory.UNKNOWN, "unknown"),
    ],
)
def test_a_backend_is_as_well_as_the_worst_of_its_families(supervisor, ipv4, ipv6, state):
    region = supervisor.serving.region
    region.set_state("health", B4, ipv4)
    region.set_state("health", B6, ipv6)
    found = backends(supervisor)["b"]
    assert found["state"] == state
    assert [one["state"] for one in found["families"].values()] == [
        shared_memory.STATES[ipv4],
        shared_memory.STATES[ipv6],
    ]


def test_an_operators_word_goes_before_what_was_found_and_configured(supervisor):
    supervisor.serving.region.set_state("health", B4, shared_memory.DOWN)
    supervisor.overrides.give("web", "b", "state", "draining")
    supervisor.overrides.give("web", "b", "weight", 5)
    found = backends(supervisor)
    assert (found["b"]["state"], found["b"]["admin"], found["b"]["weight"]) == ("draining", "draining", 5)
    assert found["b"]["families"]["ipv4"]["state"] == "down", "what was found is still there to read"
    assert (found["c"]["state"], found["c"]["admin"], found["c"]["weight"]) == ("unknown", "ready", 1)


def test_what_the_questions_brought(supervisor):
    region = supervisor.serving.region
    region.set_state("server", B6, shared_memory.ANSWERED)
    region.set_state("path", B6, shared_memory.UNANSWERED)
    region.set_state("path_errno", B6, errno.EHOSTUNREACH)
    region.set_state("since", B6, int((NOW - 12.34) * 1000))
    region.set_state("path_failures", B6, 3)
    found = backends(supervisor)["b"]["families"]
    assert (found["ipv6"]["server"], found["ipv6"]["return_path"]) == ("yes", "no: EHOSTUNREACH")
    assert (found["ipv6"]["since"], found["ipv6"]["path_failures"]) == (12.3, 3)
    assert (found["ipv4"]["server"], found["ipv4"]["since"]) == ("not asked", None)


def test_latencies_add_up(supervisor):
    for seconds, slot in ((0.0001, 0), (0.0003, 1), (9.0, 1)):
        Backends(CONFIG.services[0], "ipv4", supervisor.regions[0], slot).connected("203.0.113.7", C4, seconds, NOW)
    latency = backends(supervisor)["c"]["families"]["ipv4"]["latency"]
    assert (latency["count"], latency["sum"]) == (3, 9_000_400)
    assert [number for number, count in enumerate(latency["buckets"]) if count] == [
        0,
        1,
        len(shared_memory.LATENCY_BOUNDS),
    ]


def test_a_common_cause_is_an_alarm(supervisor):
    assert status.status(supervisor)["alarms"] == []
    supervisor.serving.region.set_common_cause("ipv6", True)
    (alarm,) = status.status(supervisor)["alarms"]
    assert alarm.startswith("ipv6: the return path of every backend fails at once")
