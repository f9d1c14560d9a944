# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document of a snapshot: workers, counters, health and overrides."""

from __future__ import annotations

import errno
import html
import json
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import (
    cli_views,
    http_views,
    metrics,
    status,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.balancer import Backends
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import agent_state, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.agent_state import AgentWord

from ..snapshots import NOW, Forwarder, worker

BACKENDS = (
    Backend("b", 80, ipv4="198.18.0.21", ipv6="2001:db8::21", weight=2),
    Backend("c", 80, ipv4="198.18.0.22", backup=True, max_connections=9),
)
CONFIG = Config(
    proxy_id=1, services=(Service("web", (Listener("0.0.0.0", 80), Listener("::", 80)), BACKENDS, balance="random"),)
)
# The order of targets: b over IPv4, c over IPv4, b over IPv6.
B4, C4, B6 = range(3)


@pytest.fixture
def forwarder():
    forwarder = Forwarder(CONFIG)
    yield forwarder
    forwarder.close()


def backends(forwarder):
    return {backend["name"]: backend for backend in forwarder.status()["services"][0]["backends"]}


def test_the_status_is_json_and_its_docstring_names_every_key(forwarder):
    document = json.loads(json.dumps(forwarder.status()))
    service = document["services"][0]
    backend = service["backends"][0]
    family = backend["families"]["ipv4"]
    described = status.__doc__
    for key in (*document, *service, *backend, *family):
        assert f'"{key}"' in described or "field: int" in described
    for key in ("pid", "last_reload", "reloads", "restarts", "log_level", "alarms", "totals", "workers", "checker"):
        assert key in document
    assert (service["listen"], service["balance"]) == (["0.0.0.0:80", "[::]:80"], "random")
    assert (backend["weight"], backend["backup"], backend["max_connections"]) == (2, False, None)
    assert [backend["priority"] for backend in service["backends"]] == [0, None]


def test_workers_of_all_generations_and_free_slots_are_listed(forwarder):
    workers = [worker(5, 1, 2, sessions=8), worker(3, 0, 1, "draining", sessions=3)]
    listed = forwarder.status(workers=workers)["workers"]
    expected = [(2, 0, None, "gone", 0), (2, 1, 5, "serving", 8), (1, 0, 3, "draining", 3)]
    assert [(one["generation"], one["slot"], one["pid"], one["state"], one["sessions"]) for one in listed] == expected
    assert listed[1]["age"] == 5.0
    assert forwarder.status()["checker"] == {"pid": 7, "hung": False}


def test_a_process_without_heartbeats_is_hung_and_without_a_checker_or_a_config_their_entries_are_empty(forwarder):
    workers = [worker(5, 0, 2, silent=2.6), worker(6, 1, 2, silent=2.4)]
    document = forwarder.status(workers=workers, checker=worker(7, 0, 2, silent=9.0))
    assert [one["state"] for one in document["workers"]] == ["hung", "serving"]
    assert document["checker"]["hung"]
    document = forwarder.status(checker=None, config=None)
    assert (document["checker"], document["services"]) == (None, [])


def test_counters_are_summed_over_workers_generations_and_families(forwarder):
    for generation, slot, target, number in ((2, 0, B4, 1), (2, 1, B4, 10), (1, 0, B6, 100), (2, 1, C4, 1000)):
        forwarder.count("target", "connections", number, target, slot, generation)
    forwarder.count("service", "refused_denied", 7)
    forwarder.count("worker", "defects", 2, slot=1)
    found = backends(forwarder)
    assert (found["b"]["connections"], found["c"]["connections"]) == (111, 1000)
    assert [one["connections"] for one in found["b"]["families"].values()] == [11, 100]
    document = forwarder.status()
    assert document["services"][0]["refused_denied"] == 7
    assert document["totals"]["defects"] == 2


@pytest.mark.parametrize(("ipv4", "ipv6", "state"), [
    (shared_memory.UP, shared_memory.UP, "up"),
    (shared_memory.UNKNOWN, shared_memory.UP, "up"),
    (shared_memory.UP, shared_memory.BROKEN, "return path broken"),
    (shared_memory.DOWN, shared_memory.BROKEN, "down"),
    (shared_memory.UNKNOWN, shared_memory.UNKNOWN, "unknown"),
])  # fmt: skip
def test_the_state_of_a_backend_is_the_worst_of_its_families(forwarder, ipv4, ipv6, state):
    region = forwarder.regions[0]
    region.set_state("health", B4, ipv4)
    region.set_state("health", B6, ipv6)
    found = backends(forwarder)["b"]
    families = [one["state"] for one in found["families"].values()]
    assert (found["state"], families) == (state, [shared_memory.STATES[ipv4], shared_memory.STATES[ipv6]])


def test_an_override_takes_precedence_over_health_and_config(forwarder):
    forwarder.regions[0].set_state("health", B4, shared_memory.DOWN)
    forwarder.overrides.set("web", "b", "state", "draining")
    forwarder.overrides.set("web", "b", "weight", 5)
    found = backends(forwarder)
    assert (found["b"]["state"], found["b"]["admin"], found["b"]["weight"]) == ("draining", "draining", 5)
    assert found["b"]["families"]["ipv4"]["state"] == "down", "the health of the family is still shown"
    assert (found["c"]["state"], found["c"]["admin"], found["c"]["weight"]) == ("unknown", "ready", 1)


def test_a_disabled_backend_is_shown_as_such_unless_an_operator_has_said_more(forwarder):
    service = CONFIG.services[0]
    disabled = replace(service, backends=(replace(BACKENDS[0], enabled=False), BACKENDS[1]))
    document = {"config": replace(CONFIG, services=(disabled,))}
    for override, shown in ((None, "disabled"), ("maintenance", "maintenance")):
        forwarder.overrides.set("web", "b", "state", override)
        found = forwarder.status(**document)
        b, c = found["services"][0]["backends"]
        assert [(one["enabled"], one["admin"], one["state"]) for one in (b, c)] == [
            (False, shown, shown),
            (True, "ready", "unknown"),
        ]
        state = f'l4proxy_backend_state{{service="web",backend="b",state="{shown}"}} 1'
        assert state in metrics.render(found)
        assert shown in cli_views.table(found)
        assert shown in http_views.render(found)


# What an agent has said, 12 s ago or never, and the errno since; an override; what is shown; the metrics.
TEST_AGENTS = [
    (AgentWord(), False, 0, {}, "up", "not asked", (-1, None)),
    (AgentWord(), False, errno.ECONNREFUSED, {}, "up", "no answer: ECONNREFUSED", (0, None)),
    (AgentWord("up", "ready", 50), True, 0, {}, "up", "ready up, 50%", (1, 50)),
    (AgentWord("down", reason="a<b"), True, 0, {}, "down", "down (a<b)", (1, None)),
    (AgentWord("stopped"), True, errno.ETIMEDOUT, {}, "down", "stopped, no answer for 12 s: ETIMEDOUT", (0, None)),
    (AgentWord("", "drain"), True, 0, {}, "draining", "drain", (1, None)),
    (AgentWord("", "maint", 0), True, 0, {}, "maintenance", "maint, 0%", (1, 0)),
    (AgentWord("", "", 0), True, 0, {}, "draining", "0%", (1, 0)),
    (AgentWord("", "", 0), True, 0, {"weight": 3}, "up", "0%", (1, 0)),
    (AgentWord("down", "drain"), True, 0, {"state": "maintenance"}, "maintenance", "drain down", (1, None)),
]


@pytest.mark.parametrize(("word", "answered", "number", "override", "state", "text", "values"), TEST_AGENTS)
def test_the_word_of_an_agent_is_shown_and_is_the_state_unless_an_operator_says_otherwise(
    word, answered, number, override, state, text, values
):
    health = HealthCheck(agent=HealthAgent(9707))
    forwarder = Forwarder(replace(CONFIG, services=(replace(CONFIG.services[0], health=health),)))
    region = forwarder.regions[0]
    for target in (B4, B6):
        agent_state.write(region, target, word)
        region.set_state("health", target, shared_memory.UP)
        region.set_state("agent_answered", target, int((NOW - 12) * 1000) if answered else 0)
        region.set_state("agent_errno", target, number)
    for key, value in override.items():
        forwarder.overrides.set("web", "b", key, value)
    document = json.loads(json.dumps(forwarder.status()))
    backend = document["services"][0]["backends"][0]
    assert (backend["state"], backend["families"]["ipv6"]["state"]) == (state, "up")
    assert (backend["agent"]["weight"], backend["agent"]["age"]) == (word.percent, 12.0 if answered else None)
    header, row = cli_views.table(document).splitlines()[-3:-1]
    assert header.endswith("  AGENT")
    assert row.endswith(f"  {text}")
    assert f"{state} (agent: {html.escape(text)})" in http_views.render(document)
    lines = metrics.render(document).splitlines()
    labels = '{service="web",backend="b"}'
    assert f"l4proxy_health_agent{labels} {values[0]}" in lines
    assert (f"l4proxy_health_agent_weight_percent{labels} {values[1]}" in lines) == (values[1] is not None)
    forwarder.close()


def test_without_agents_nothing_is_shown_of_them(forwarder):
    document = forwarder.status()
    assert [backend["agent"] for backend in document["services"][0]["backends"]] == [None, None]
    assert "AGENT" not in cli_views.table(document)
    assert "agent" not in http_views.render(document)
    assert "l4proxy_health_agent{" not in metrics.render(document)


def test_the_results_of_the_health_probes_are_shown_by_family(forwarder):
    region = forwarder.regions[0]
    region.set_state("server", B6, shared_memory.ANSWERED)
    region.set_state("path", B6, shared_memory.UNANSWERED)
    region.set_state("path_errno", B6, errno.EHOSTUNREACH)
    region.set_state("since", B6, int((NOW - 12.34) * 1000))
    region.set_state("path_failures", B6, 3)
    found = backends(forwarder)["b"]["families"]
    assert (found["ipv6"]["server"], found["ipv6"]["return_path"]) == ("yes", "no: EHOSTUNREACH")
    assert (found["ipv6"]["since"], found["ipv6"]["path_failures"]) == (12.3, 3)
    assert (found["ipv4"]["server"], found["ipv4"]["since"]) == ("not asked", None)


def test_latencies_are_summed_over_workers(forwarder):
    for seconds, slot in ((0.0001, 0), (0.0003, 1), (9.0, 1)):
        Backends(CONFIG.services[0], "ipv4", forwarder.regions[0], slot).connected("203.0.113.7", C4, seconds, NOW)
    latency = backends(forwarder)["c"]["families"]["ipv4"]["latency"]
    assert (latency["count"], latency["sum"]) == (3, 9_000_400)
    filled = [number for number, count in enumerate(latency["buckets"]) if count]
    assert filled == [0, 1, len(shared_memory.LATENCY_BOUNDS)]


def test_a_common_cause_of_broken_return_paths_is_an_alarm(forwarder):
    assert forwarder.status()["alarms"] == []
    forwarder.regions[0].set_common_cause("ipv6", True)
    (alarm,) = forwarder.status()["alarms"]
    assert alarm.startswith("ipv6: the return paths of all backends are broken at once")
