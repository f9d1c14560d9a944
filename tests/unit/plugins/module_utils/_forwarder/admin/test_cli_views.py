# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table, the metrics and the page that are made from a status document."""

from __future__ import annotations

import dataclasses
import os
import re
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import cli_views, http_views, metrics
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory

from ..snapshots import NOW, Forwarder

BACKENDS = (
    Backend("b", 80, ipv4="198.18.0.21", ipv6="2001:db8::21", weight=2),
    Backend('c"<x>', 80, ipv4="198.18.0.22", weight=2, backup=True),
    Backend("d", 80, ipv4="198.18.0.23", priority=7),
)
CONFIG = Config(proxy_id=1, services=(Service("web", (Listener("0.0.0.0", 80),), BACKENDS, balance="random"),))
B4, B6 = 0, 3  # targets: b over IPv4, b over IPv6


@pytest.fixture
def document():
    """A function that returns a status document, with these values in the place of its own."""
    forwarder = Forwarder(CONFIG)
    region = forwarder.regions[0]
    for field, number in {"sessions": 3, "connections": 9, "refused_denied": 2}.items():
        forwarder.count("service", field, number)
    traffic = {"connections": 1500, "bytes_to_backend": 2_500_000, "bytes_to_client": 999, "latency_0": 1}
    for field, number in traffic.items():
        forwarder.count("target", field, number)
    for target in (B4, B6):
        region.set_state("server", target, shared_memory.ANSWERED)
        region.set_state("health", target, shared_memory.BROKEN)
    region.set_state("path", B4, shared_memory.ANSWERED)
    region.set_state("path", B6, shared_memory.UNANSWERED)
    yield lambda **values: {**forwarder.status(), **values}
    forwarder.close()


@pytest.mark.parametrize(("added", "count"), [
    ([], 1),
    ([("starting", 3)], 1),  # of a generation that is not live yet
    ([("serving", 3), ("starting", 3)], 1),
    ([("draining", 2)], 2),  # the forwarder stops
    ([("hung", 1)], 2),
    ([("draining", 3)], 2),  # of a generation that failed
])  # fmt: skip
def test_draining_workers_do_not_include_starting_ones(document, added, count):
    found = document()
    found["workers"] += [{"slot": 5, "pid": 8, "state": state, "generation": number} for state, number in added]
    assert f"\nl4proxy_draining_workers {count}\n" in metrics.render(found)
    assert f", {count} draining" in cli_views.table(found).splitlines()[0]


def test_the_table_shows_forwarder_services_and_backends(document):
    lines = cli_views.table(document()).splitlines()
    assert lines[0] == f"l4proxy 0.1.0 (pid {os.getpid()}), generation 2 since noon, 1 of 2 workers, 1 draining"
    assert lines[1] == ("old generation 1 (0.1.0): 1 worker, 5 sessions, 20 MiB, replaced 2 h ago, no deadline")
    assert lines[3] == "web  0.0.0.0:80  tcp, random: 3 sessions, 9 accepted, 2 refused"
    assert lines[4].split() == " ".join(cli_views._TITLES).split()
    assert lines[5].startswith("  b ")
    assert " return path broken " in lines[5]
    assert "yes / no: ETIMEDOUT" in lines[5]
    assert lines[5].endswith("2.5M        999")
    assert "(backup)" in lines[6]
    assert "d (priority 7)" in lines[7]


@pytest.mark.parametrize(("values", "text"), [
    ({"version": None, "workers": 2, "sessions": 1}, "(unknown version): 2 workers, 1 session, 20 MiB, "),
    ({"age": 59.0, "seconds_left": 130.0}, "replaced 59 s ago, ends in 2 min"),
    ({"age": 200_000.0, "seconds_left": 0.0}, "replaced 2 d ago, ends in 0 s"),
])  # fmt: skip
def test_an_old_generation_is_a_line_of_the_table_and_of_the_page(document, values, text):
    found = document()
    found["old_generations"][0].update(values)
    assert text in cli_views.table(found)
    assert text in http_views.render(found)
    version = found["old_generations"][0]["version"] or "unknown"
    sessions = found["old_generations"][0]["sessions"]
    labels = f'generation="1",version="{version}"'
    assert f"\nl4proxy_old_generation_sessions{{{labels}}} {sessions}\n" in metrics.render(found)
    assert "\nl4proxy_drain_memory_ended_total 3\n" in metrics.render(found)


TIER = {
    "healthy": False,
    "reason": "withdrawn",
    "sentence": "this proxy should not get clients: x",
    "withdrawn": {"since": "noon", "reason": "new disk"},
    "addresses": {"web": {"198.18.0.100": True, "2001:db8::100": False}},
}


def test_the_first_tier_is_shown(document):
    """The control is a document of version 0.1.0, and one of a healthy proxy."""
    for tier, shown in (({}, False), (dict(TIER, healthy=True, withdrawn=None, addresses={}), False), (TIER, True)):
        found = dict(document(), first_tier=tier)
        for view in (cli_views.table(found), http_views.render(found)):
            assert (TIER["sentence"] in view) == shown
            assert ("withdrawn since noon: new disk" in view) == shown
            assert ("virtual address web: 198.18.0.100 is here, 2001:db8::100 is not here" in view) == shown
        text = metrics.render(found)
        assert ("\nl4proxy_healthy 0\n" in text) == shown
        assert ('\nl4proxy_unhealthy_reason{reason="withdrawn"} 1\n' in text) == bool(tier)
        assert ('\nl4proxy_virtual_address_here{name="web",address="2001:db8::100"} 0\n' in text) == shown


@pytest.mark.parametrize(("health", "flap_pause", "state"), [
    (shared_memory.UP, 5.0, "paused"),
    (shared_memory.UP, None, "up"),
    (shared_memory.DOWN, 5.0, "down"),
    (shared_memory.BROKEN, 5.0, "return path broken"),
])  # fmt: skip
def test_a_paused_backend_is_shown_with_the_time_left(health, flap_pause, state):
    service = dataclasses.replace(CONFIG.services[0], health=HealthCheck(flap_pause=flap_pause))
    forwarder = Forwarder(dataclasses.replace(CONFIG, services=(service,)))
    for field, value in {"health": health, "flaps": 3, "back_at": int(1000 * NOW) + 2400}.items():
        forwarder.regions[0].set_state(field, B4, value)
    forwarder.regions[0].set_state("health", B6, shared_memory.UP)
    found = forwarder.status()
    (b, *_others), line = found["services"][0]["backends"], "b (ipv4) is paused for 2 s more: it has flapped 3 times"
    assert (b["state"], b["families"]["ipv4"]["state"], b["families"]["ipv6"]["state"]) == (state, state, "up")
    text = metrics.render(found)
    assert f'l4proxy_backend_state{{service="web",backend="b",state="{state}"}} 1' in text
    labels = 'service="web",backend="b",family="ipv4"'
    assert (f"l4proxy_health_flaps{{{labels}}} 3" in text) == (flap_pause is not None)
    assert (f"l4proxy_health_paused_seconds{{{labels}}} 2.4" in text) == (flap_pause is not None)
    for shown in (cli_views.table(found), http_views.render(found)):
        assert (line in shown) == (flap_pause is not None)
    forwarder.close()


def test_the_status_of_version_0_1_0_is_shown_too(document):
    found = document()
    del found["old_generations"]
    assert "old generation" not in cli_views.table(found)


def test_the_table_shows_alarms_a_failed_reload_and_a_missing_checker(document):
    failed = {"ok": False, "error": "no such file", "at": "noon"}
    text = cli_views.table(document(alarms=["ipv4: local delivery"], last_reload=failed, checker=None))
    for part in ("NO CHECKER", "ALARM ipv4: local delivery", "the last reload failed at noon: no such file"):
        assert part in text


@pytest.mark.parametrize(("error", "gauge"), [(None, 1), ("state.json: <full>", 0)])
def test_a_state_that_is_not_saved_is_shown(document, error, gauge):
    found = document(state_file={"path": "state.json", "saved_at": None, "error": error})
    sentence = "drain states, weights and counters are not saved, and lost at a stop or reboot: state.json: "
    assert (f"\n{sentence}<full>\n" in cli_views.table(found)) == bool(error)
    assert (f"{sentence}&lt;full&gt;</p>" in http_views.render(found)) == bool(error)
    assert f"\nl4proxy_state_saved {gauge}\n" in metrics.render(found)


def test_rates_are_new_connections_per_second(document):
    before, after = document(), document()
    after["services"][0]["backends"][0]["connections"] += 30
    assert cli_views._rates(before, after, 2.0)["web", "b"] == 15.0
    assert "1530 (+15/s)" in cli_views.table(after, cli_views._rates(before, after, 2.0))


@pytest.mark.parametrize(("age", "shown", "metric"), [(5, "0.4 ms / -", "0.0004"), (100, "-", None)])
def test_a_round_trip_time_is_recent_and_of_all_workers_by_their_connections(age, shown, metric):
    forwarder = Forwarder(CONFIG)
    sampled = int((time.monotonic() - age) * 1000)
    for slot, generation, microseconds, active in ((0, 2, 200, 2), (1, 2, 300, 2), (0, 1, 1000, 1), (1, 1, 0, 7)):
        for field, number in (("rtt_microseconds", microseconds), ("active", active), ("sampled", sampled)):
            forwarder.count("target", field, number, B4, slot, generation)
    forwarder.count("target", "retransmits", 17)
    document = forwarder.status()
    row = cli_views.table(document).splitlines()[5]
    assert re.split("  +", row.strip())[8:10] == [shown, "17"]
    assert f'<td class="n">{shown}</td><td class="n">17</td>' in http_views.render(document)
    samples = [line for line in metrics.render(document).splitlines() if line.startswith("l4proxy_rtt_seconds{")]
    assert samples == ([f'l4proxy_rtt_seconds{{service="web",backend="b",family="ipv4"}} {metric}'] if metric else [])
    forwarder.close()


AMOUNTS = {0: "0", 999: "999", 1500: "1.5k", 999_600: "1M", 20_000_000: "20M", 10**18: "1e+03P"}


def test_amounts_have_a_unit():
    assert {number: cli_views.amount(number) for number in AMOUNTS} == AMOUNTS


def test_metrics_and_the_page_are_escaped_and_buckets_cumulative(document):
    text, page = metrics.render(document()), http_views.render(document())
    assert 'l4proxy_worker_up{slot="0"} 0' in text
    assert 'l4proxy_backend_state{service="web",backend="b",state="return path broken"} 1' in text
    assert 'l4proxy_backend_weight{service="web",backend="c\\"<x>"} 2' in text
    assert 'l4proxy_connect_seconds_bucket{service="web",backend="b",family="ipv4",le="0.00025"} 1' in text
    assert 'l4proxy_connect_seconds_bucket{service="web",backend="b",family="ipv4",le="+Inf"} 1' in text
    assert 'l4proxy_health_return_path{service="web",backend="b",family="ipv6"} 0' in text
    assert '\nl4proxy_backend_priority{service="web",backend="d"} 7\n' in text
    assert text.count("\nl4proxy_backend_priority{") == 1
    assert "\nl4proxy_backend_passed_over_total{" not in text, "no service has a bound"
    (service,) = document()["services"]
    bounded = metrics.render(document(services=[{**service, "hash_balance_factor": 150}]))
    assert '\nl4proxy_backend_passed_over_total{service="web",backend="d"} 0\n' in bounded
    assert "<td>d (priority 7)</td>" in page
    assert "c&quot;&lt;x&gt; (backup)" in page
    assert "<x>" not in page
