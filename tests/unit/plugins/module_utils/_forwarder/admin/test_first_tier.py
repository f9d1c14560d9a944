# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this proxy should get clients."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils import _healthy
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import commands, first_tier
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths, promise

from ..snapshots import worker

BACKENDS = (Backend("b", 80, ipv4="198.18.0.21", ipv6="2001:db8::21"), Backend("c", 80, ipv4="198.18.0.22"))
WEB, MAIL = (Service(name, (Listener("0.0.0.0", port),), BACKENDS) for name, port in (("web", 80), ("mail", 25)))
CONFIG = Config(proxy_id=1, services=(WEB, MAIL))
FACTS = first_tier.Facts(
    generation=2,
    live_for=60.0,
    config=CONFIG,
    workers=(worker(5, 0, 2, silent=0.5), worker(6, 1, 2, silent=0.5)),
    slots=2,
    checker=worker(7, 0, 2, silent=0.1),
    beats=(0.5, 0.5, 0.1),
)
HUNG = (worker(5, 0, 2, silent=0.5), worker(6, 1, 2, silent=2.0))
COVERED = (replace(worker(5, 0, 2, silent=0.5), covers=[1]),)
REASON = {"since": "noon", "reason": "new disk"}

TEST_VERDICTS = [
    ({}, {}, None, ""),
    ({"generation": None}, {}, "not_serving", "it serves no config yet"),
    ({"stopping": True}, {}, "stopping", "the forwarder stops"),
    ({"workers": HUNG, "asleep": frozenset([6])}, {}, "worker", "worker 1 does not beat since 2.0 s"),
    ({"workers": HUNG}, {}, None, ""),  # it waits for the CPU
    ({"workers": (HUNG[0], worker(6, 1, 2, silent=2.6))}, {}, "worker", "worker 1 does not beat since 2.6 s"),
    ({"workers": HUNG[:1]}, {}, None, ""),  # it will be replaced
    ({"workers": HUNG[:1], "beats": (0.5, 1.4, 0.1)}, {}, "worker", "worker 1 is missing since 1.4 s"),
    ({"workers": HUNG[:1], "beats": (0.5, None, 0.1)}, {}, "worker", "worker 1 is missing since 60.0 s"),
    ({"workers": HUNG[:1], "beats": (0.5, 9.0, 0.1), "live_for": 0.1}, {}, None, ""),
    ({"workers": COVERED, "beats": (0.5, 9.0, 0.1)}, {}, None, ""),
    (
        {"workers": (worker(5, 0, 2, "draining"),), "beats": (9.0, 0.0, 0.1)},
        {},
        "worker",
        "worker 0 is missing",
    ),
    ({"checker": None, "beats": (0.5, 0.5, 3.0)}, {}, "checker", "the health checker is missing since 3.0 s"),
    ({"checker": worker(7, 0, 2, silent=3.0)}, {}, "checker", "the health checker does not beat since 3.0 s"),
    ({"broken_delivery": ("x is broken", "y")}, {}, "local_delivery", "x is broken"),
    ({"failed": {"web": {"0.0.0.0:80": "taken"}}}, {}, None, ""),
    ({"failed": {"web": {"0.0.0.0:80": "taken"}}}, {"service": "mail"}, None, ""),
    ({"failed": {"web": {"0.0.0.0:80": "taken"}}}, {"service": "web"}, "listeners", "service web cannot listen on any"),
    ({"without_backend": frozenset(["web"])}, {}, None, ""),
    ({"without_backend": frozenset(["web"])}, {"need": "any"}, None, ""),
    ({"without_backend": frozenset(["web"])}, {"need": "each"}, "backends", "service web has no backend that is up"),
    ({"without_backend": frozenset(["web"])}, {"need": "each", "service": "mail"}, None, ""),
    ({"without_backend": frozenset(["web"])}, {"need": "any", "service": "web"}, "backends", "service web has no"),
    ({"without_backend": frozenset(["web", "mail"])}, {"need": "any"}, "backends", "no service has a backend that is"),
    ({"withdrawn": REASON}, {}, "withdrawn", "an operator has withdrawn it (new disk)"),
    ({"withdrawn": {"since": "noon", "reason": ""}}, {}, "withdrawn", "an operator has withdrawn it"),
    ({"withdrawn": REASON, "stopping": True}, {}, "stopping", "the forwarder stops"),
    ({"config": None}, {"need": "each"}, None, ""),  # another version's config, which its workers serve
]


@pytest.mark.parametrize(("changes", "options", "reason", "sentence"), TEST_VERDICTS)
def test_the_first_reason_is_named(changes, options, reason, sentence):
    verdict = first_tier.evaluate(replace(FACTS, **changes), **options)
    assert (verdict.healthy, verdict.reason) == (reason is None, reason)
    beginning = f"{first_tier.UNHEALTHY}: {sentence}" if reason else first_tier.HEALTHY
    assert verdict.sentence.startswith(beginning)
    assert reason in (None, *first_tier.REASONS)


def test_a_backend_counts_if_it_would_get_a_client():
    checked = [replace(WEB, name=name) for name in ("up", "one family", "down", "unknown", "drained", "disabled")]
    unchecked = replace(WEB, name="unchecked", health=HealthCheck(enabled=False))
    disabled = replace(checked[-1], backends=tuple(replace(one, enabled=False) for one in BACKENDS))
    config = Config(proxy_id=1, services=(*checked[:-1], disabled, unchecked))
    region, overrides = shared_memory.Region(shared_memory.describe(config, 1)), Overrides()
    for number, (service, backend, family) in enumerate(region.targets):
        up = service in ("up", "drained", "disabled") or (service, backend, family) == ("one family", "b", "ipv6")
        unknown = service in ("unknown", "unchecked")
        health = shared_memory.UP if up else shared_memory.UNKNOWN if unknown else shared_memory.DOWN
        region.set_state("health", number, health)
    for name in ("b", "c"):
        overrides.set("drained", name, "state", "draining")
    found = first_tier.without_backend(config, region, overrides, 1.0)
    region.close()
    assert found == {"down", "unknown", "drained", "disabled"}


def test_only_silent_processes_that_sleep_are_asleep():
    stopped = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
    try:
        os.kill(stopped, signal.SIGSTOP)
        os.waitpid(stopped, os.WUNTRACED)
        silent = [worker(os.getpid(), 0, 2, silent=9.0), worker(stopped, 1, 2, silent=9.0), worker(1, 2, 2, silent=0.7)]
        assert first_tier.asleep(silent) == {stopped}
    finally:
        os.kill(stopped, signal.SIGKILL)
        os.waitpid(stopped, 0)


@pytest.mark.parametrize(
    ("seconds", "healthy"), [(5.0, True), (-1.0, False), (60.0, False), ("x", False), (None, False)]
)
def test_a_forwarder_that_does_not_answer_is_healthy_only_while_its_predecessor_has_promised_it(
    tmp_path, seconds, healthy
):
    path = str(tmp_path / "admin.sock")
    assert (_healthy.PROMISE, _healthy.LONGEST_PROMISE) == (promise.SUFFIX, promise.LONGEST)
    if seconds is not None:
        text = str(time.monotonic() + seconds) if seconds != "x" else seconds
        (tmp_path / f"admin.sock{_healthy.PROMISE}").write_text(text, encoding="ascii")
    absent = (False, f"{_healthy.UNHEALTHY}no forwarder listens on {path}")
    assert promise.holds(path) == healthy
    assert _healthy.ask(path, {}) == ((True, _healthy.REPLACED) if healthy else absent)


TEST_ARGUMENTS = [
    ([], {}),
    (["--service", "web", "--need-backend=each"], {"service": "web", "need_backend": "each"}),
    (["--service"], None),
    (["--service", 'a"b'], None),
    (["--need-backend", "all"], None),
    (["--help"], None),
    (["web"], None),
]


@pytest.mark.parametrize(("arguments", "request_"), TEST_ARGUMENTS)
def test_the_fast_command_leaves_other_arguments_to_the_slow_one(arguments, request_, monkeypatch):
    monkeypatch.setattr(_healthy, "environ", {})
    expected = None if request_ is None else (request_, f"{paths.RUNTIME_DIRECTORY}/admin.sock")
    assert _healthy.parse(arguments) == expected


@pytest.mark.parametrize("reason", ["", 'say "no"', "straße 🙂"])
def test_the_fast_command_reads_what_the_forwarder_answers(reason):
    client = SimpleNamespace(write=lambda data: answers.append(_healthy.read(data.decode())))
    answers: list = []
    overrides = Overrides()
    forwarder = SimpleNamespace(config=CONFIG, overrides=overrides)
    forwarder.first_tier = lambda backends: replace(FACTS, withdrawn=overrides.withdrawn)
    forwarder.withdraw = lambda text: setattr(overrides, "withdrawn", {"since": "noon", "reason": text})
    forwarder.rejoin = lambda: setattr(overrides, "withdrawn", None)
    forwarder.save = lambda then: then(None)
    admin = commands.Admin(forwarder)
    withdraw = {"op": "withdraw", "reason": reason}
    for request in (
        {"op": "healthy"},
        withdraw,
        {"op": "healthy"},
        {"op": "healthy", "service": "x"},
        {"op": "rejoin"},
    ):
        admin.answer(client, json.dumps(request).encode())
    because = f" ({reason})" if reason else ""
    withdrawn = f"{first_tier.UNHEALTHY}: an operator has withdrawn it{because}"
    assert answers[0] == (True, first_tier.HEALTHY)
    assert answers[2:4] == [(False, withdrawn), (False, f"{_healthy.UNHEALTHY}there is no service 'x'")]
    assert overrides.withdrawn is None
