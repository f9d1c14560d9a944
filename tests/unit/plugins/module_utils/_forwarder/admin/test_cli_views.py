# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table, the metrics and the page that are made from a status document."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import cli_views, http_views, metrics

FAMILY = {
    "address": "198.18.0.21",
    "state": "up",
    "since": 3.0,
    "server": "yes",
    "return_path": "yes",
    "checks": 4,
    "server_failures": 0,
    "path_failures": 1,
    "latency": {"buckets": [1] + [0] * 12, "count": 1, "sum": 200},
}


def backend(name, state, **options):
    counted = dict.fromkeys([f"failed_{cause}" for cause in metrics.FAILURES], 0)
    families = {"ipv4": FAMILY, "ipv6": {**FAMILY, "return_path": "no: ETIMEDOUT"}}
    numbers = {"weight": 2, "active": 1, "connections": 1500, "bytes_to_backend": 2_500_000, "bytes_to_client": 999}
    return {"name": name, "state": state, "backup": False, "families": families, **counted, **numbers, **options}


def document(**options):
    refused = dict.fromkeys([f"refused_{cause}" for cause in metrics.REFUSED], 0)
    steps = dict.fromkeys([f"source_{step}" for step in metrics.LADDER], 0)
    web = {
        "name": "web",
        "listen": ["0.0.0.0:80"],
        "protocol": "tcp",
        "balance": "random",
        "sessions": 3,
        "connections": 9,
        **refused,
        **steps,
        "refused_denied": 2,
        "made_room": 0,
        "backends": [backend("b", "return path broken"), backend('c"<x>', "up", backup=True)],
    }
    workers = [
        {"slot": 0, "pid": 5, "state": "serving", "generation": 2},
        {"slot": 1, "pid": None, "state": "gone", "generation": 2},
        {"slot": 0, "pid": 3, "state": "draining", "generation": 1},
    ]
    return {
        "version": "0.1.0",
        "pid": 1,
        "generation": 2,
        "loaded_at": "2026-01-31T12:00:00Z",
        "alarms": [],
        "last_reload": {"ok": True, "error": None, "at": "x"},
        "reloads": {"ok": 1, "failed": 0},
        "restarts": 0,
        "totals": {"accept_paused": 0, "defects": 0, "log_dropped": 0, "datagrams_dropped": 0, "datagrams_stray": 0},
        "workers": workers,
        "checker": {"pid": 9},
        "services": [web],
        **options,
    }


@pytest.mark.parametrize(
    ("added", "count"),
    [
        ([], 1),
        ([("starting", 3)], 1),  # of a generation that is not live yet
        ([("serving", 3), ("starting", 3)], 1),
        ([("draining", 2)], 2),  # the forwarder stops
        ([("hung", 1)], 2),
        ([("draining", 3)], 2),  # of a generation that failed
    ],
)
def test_draining_workers_do_not_include_starting_ones(added, count):
    found = document()
    found["workers"] += [{"slot": 5, "pid": 8, "state": state, "generation": number} for state, number in added]
    assert f"\nl4proxy_draining_workers {count}\n" in metrics.render(found)
    assert f", {count} draining" in cli_views.table(found).splitlines()[0]


def test_the_table_shows_forwarder_services_and_backends():
    lines = cli_views.table(document()).splitlines()
    assert lines[0] == "l4proxy 0.1.0 (pid 1), generation 2 since 2026-01-31T12:00:00Z, 1 of 2 workers, 1 draining"
    assert lines[2] == "web  0.0.0.0:80  tcp, random: 3 sessions, 9 accepted, 2 refused"
    assert lines[3].split() == " ".join(cli_views._TITLES).split()
    assert lines[4].startswith("  b ")
    assert " return path broken " in lines[4]
    assert "yes / no: ETIMEDOUT" in lines[4]
    assert lines[4].endswith("2.5M        999")
    assert "(backup)" in lines[5]


def test_the_table_shows_alarms_a_failed_reload_and_a_missing_checker():
    failed = {"ok": False, "error": "no such file", "at": "noon"}
    text = cli_views.table(document(alarms=["ipv4: local delivery"], last_reload=failed, checker=None))
    assert "NO CHECKER" in text
    assert "ALARM ipv4: local delivery" in text
    assert "the last reload failed at noon: no such file" in text


def test_rates_are_new_connections_per_second():
    before, after = document(), document()
    after["services"][0]["backends"][0]["connections"] += 30
    assert cli_views._rates(before, after, 2.0)["web", "b"] == 15.0
    assert "1530 (+15/s)" in cli_views.table(after, cli_views._rates(before, after, 2.0))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1500, "1.5k"), (999_600, "1M"), (20_000_000, "20M"), (10**18, "1e+03P")],
)
def test_amounts_have_a_unit(number, text):
    assert cli_views.amount(number) == text


def test_metrics_are_escaped_and_buckets_cumulative():
    text = metrics.render(document())
    assert 'l4proxy_worker_up{slot="1"} 0' in text
    assert 'l4proxy_backend_state{service="web",backend="b",state="return path broken"} 1' in text
    assert 'l4proxy_backend_weight{service="web",backend="c\\"<x>"} 2' in text
    assert 'l4proxy_connect_seconds_bucket{service="web",backend="b",family="ipv4",le="0.00025"} 1' in text
    assert 'l4proxy_connect_seconds_bucket{service="web",backend="b",family="ipv4",le="+Inf"} 1' in text
    assert 'l4proxy_health_return_path{service="web",backend="b",family="ipv6"} 0' in text


def test_the_page_is_escaped():
    text = http_views.render(document())
    assert "c&quot;&lt;x&gt;" in text
    assert "<x>" not in text
