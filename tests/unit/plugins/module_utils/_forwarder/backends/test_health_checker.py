# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the health checker probes when, and what it publishes."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker, health_round
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_round import TICK
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_exchange import HealthTls
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory

from tests.unit.tables import rows

from .simulation import HEALTH, REFUSED, SILENCE, SOURCES, UNREACHABLE, V6, B, C, Probe, service


def test_a_healthy_fleet_costs_one_spoofed_probe_per_interval(network, start):
    run = start(service(B, C, V6), turn=20.0)
    assert run.states() == ["up"] * 3
    for address, source in ((B, SOURCES[0]), (C, SOURCES[0]), (V6, SOURCES[1])):
        asked = [one for one in network.asked if one[0] == address]
        assert set(asked) == {(address, source)}
        assert len(asked) == pytest.approx(20 / HEALTH.interval, abs=1)


def test_a_broken_return_path_is_published_within_fall_intervals_and_its_repair_within_rise(network, start):
    run = start(service(B, C), turn=4.0)
    asked = len(network.asked)
    while len(network.asked) == asked:
        run.turn(TICK)
    run.turn(2 * TICK)  # the worst moment: just after a result
    epoch = run.region.cells[shared_memory.EPOCH_HEALTH]
    network.says = {(B, True): SILENCE}
    begun = run.time
    while run.states()[0] == "up":
        run.turn(TICK)
    assert run.time - begun <= HEALTH.fall * HEALTH.interval
    assert run.states() == ["return path broken", "up"]
    assert (run.region.probe_result("server", 0), run.region.probe_result("path", 0)) == ("yes", "no: ETIMEDOUT")
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch + 1, "the workers read the states once"
    assert run.region.state("since", 0) / 1000 == pytest.approx(run.time, abs=2 * TICK)
    assert run.region.state("recovered", 0) == 0
    network.says = {}
    begun = run.time
    while run.states()[0] != "up":
        run.turn(TICK)
    assert run.time - begun <= HEALTH.rise * HEALTH.interval
    assert run.region.state("recovered", 0) == run.region.state("since", 0), "the slow start begins here"
    expected = [("b0", "return path broken", "warning"), ("b0", "up", "info")]
    assert [(one["backend"], one["state"], one["level"]) for one in run.log.named("backend state")][-2:] == expected


def test_a_backend_that_is_down_keeps_its_verdict_on_the_return_path(network, start):
    run = start(service(B, C), turn=4.0)
    network.says = {(B, True): SILENCE, (B, False): SILENCE}
    run.turn(HEALTH.fall * HEALTH.interval)
    assert run.states() == ["down", "up"]
    assert (run.region.probe_result("server", 0), run.region.probe_result("path", 0)) == ("no: ETIMEDOUT", "yes")


def succeed(run, number, field="succeeded"):
    """A client's connect to a target succeeds now, or fails, or takes long."""
    run.region.cells[run.region.cell(0, "target", field, number)] = int(run.time * 1000)
    if field != "succeeded":
        run.region.cells[run.region.cell(0, "worker", "failures")] += 1


def suspects(run):
    return [run.region.state("suspect", number) for number in range(len(run.region.targets))]


def test_a_filter_on_the_probes_takes_no_backend_out_while_clients_succeed(network, start):
    run = start(service(B, C), turn=4.0)
    network.says = {(B, True): SILENCE, (C, True): SILENCE}
    for _second in range(30):
        succeed(run, 0)
        run.turn(1.0)
    assert run.states() == ["up", "return path broken"], "c has no clients"
    assert run.log.named("local delivery") == []


RARE = HealthCheck(interval=100.0, timeout=1.0, source=SOURCES)


@pytest.mark.parametrize("field", ["failed", "slow"])
def test_a_failed_or_slow_connect_of_a_client_causes_one_round_at_once(network, start, field):
    run = start(service(B, C, health=RARE), turn=12.0)
    assert len(network.asked) == 2
    succeed(run, 0, field)
    run.turn(TICK)
    assert [one[0] for one in network.asked[2:]] == [B]
    run.turn(10.0)
    assert len(network.asked) == 3, "one failure, one round"
    assert suspects(run) == [0, 0]


def test_failures_of_clients_cause_at_most_five_rounds_per_second(network, start):
    run = start(service(B, health=RARE), turn=12.0)
    asked = len(network.asked)
    for _turn in range(int(2 / TICK)):
        succeed(run, 0, "failed")
        run.turn(TICK)
    assert len(network.asked) - asked == pytest.approx(2 / health_checker.CLIENT_ROUND_SPACING, abs=2)
    assert run.log.named("backend skipped") == []


# The errno of the spoofed and of the own probe after a client's connect has failed; the seconds after which the backend
# is a suspect at the latest, and the reason in the log (None: it is no suspect).
TEST_SUSPICIONS = [
    ("both work", 0, 0, None, None),
    ("refused", REFUSED, 0, 2 * TICK, "ECONNREFUSED: Connection refused"),
    ("silent", SILENCE, SILENCE, health_round.SILENCE + 3 * TICK, "no answer"),
    ("the return path is broken", SILENCE, 0, HEALTH.timeout + 2 * TICK, "ETIMEDOUT: Connection timed out"),
    ("unreachable", UNREACHABLE, UNREACHABLE, 3 * TICK, "EHOSTUNREACH: No route to host"),
]


@pytest.mark.parametrize(("spoofed", "own", "within", "reason"), **rows(TEST_SUSPICIONS))
def test_a_backend_that_fails_for_a_client_and_for_the_checker_is_a_suspect(
    network, start, spoofed, own, within, reason
):
    run = start(service(B, C, health=RARE), turn=12.0)
    network.says = {(B, True): spoofed, (B, False): own}
    epoch, failed = run.region.cells[shared_memory.EPOCH_HEALTH], run.time
    succeed(run, 0, "failed")
    run.turn(within or 3.0)
    assert suspects(run) == [int(reason is not None), 0]
    assert run.states() == ["up", "up"], "the state changes after fall bad rounds, as always"
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch + (reason is not None)
    if reason is None:
        return
    (line,) = run.log.named("backend skipped")
    assert (line["backend"], line["level"]) == ("b0", "warning")
    assert line["reason"] == f"a client's connect failed; {reason}"
    succeed(run, 0, "failed")
    run.turn(2.0)
    asked = len(network.asked)
    succeed(run, 0, "failed")
    run.turn(1.0)
    assert len(network.asked) == asked, "a suspect is not probed at once again"
    network.says = {}
    run.turn(60.0)
    assert suspects(run) == [0, 0]
    assert [line["backend"] for line in run.log.named("backend answers again")] == ["b0"]
    assert run.time - failed < 80.0


def test_shared_memory_of_an_earlier_version_has_no_suspects(network, start):
    """A checker that is replaced after a failed reload has the shared memory of the program before."""
    record = copy.deepcopy(start(service(B)).region.record)
    record["fields"]["state"].remove("suspect")
    record["fields"]["target"].remove("slow")
    run = start(service(B), region=shared_memory.Region(record), turn=4.0)
    network.says = {(B, True): REFUSED}
    succeed(run, 0, "failed")
    run.turn(10.0)
    assert run.states() == ["down"]
    assert run.log.named("backend skipped") == []


def test_silence_makes_no_suspect_while_clients_are_served(network, start):
    """As with a filter on the probes and on the proxy itself, and one banned client: the backend serves the others."""
    run = start(service(B), turn=12.0)
    network.says = {(B, True): SILENCE, (B, False): SILENCE}
    for _turn in range(100):
        succeed(run, 0, "failed")
        run.turn(TICK)
        succeed(run, 0)
    assert (suspects(run), run.states()) == ([0], ["up"])


def test_a_backend_that_always_answers_slowly_is_no_suspect(network, start, monkeypatch):
    """It has twice its usual time; here a probe is answered after 0.3 s."""
    run = start(service(B, health=RARE))
    pending = {}

    def poll(probe):
        started = pending.setdefault(probe, run.time)
        return None if run.time - started < 0.3 else 0

    monkeypatch.setattr(Probe, "poll", poll)
    run.turn(12.0)
    succeed(run, 0, "failed")
    for _turn in range(40):
        run.turn(TICK)
        assert suspects(run) == [0]
    assert len(network.asked) > 1


def test_local_delivery_is_reported_when_all_return_paths_of_a_family_and_not_of_one_backend_are_broken(network, start):
    other = "2001:db8::22"
    services = service(B, C), service(V6, other, name="six")
    run = start(*services, turn=4.0)
    network.says = {(B, True): SILENCE, (C, True): SILENCE, (V6, True): SILENCE}
    run.turn(10.0)
    assert run.region.common_causes() == ["ipv4"]
    (line,) = run.log.named("local delivery")
    assert (line["family"], line["backends"], line["level"]) == ("ipv4", 2, "error")
    assert "local delivery" in line["reason"]
    next_region = shared_memory.Region(run.region.record)
    next_region.inherit(run.region, services)
    assert start(*services, region=next_region).region.common_causes() == ["ipv4"], "after a reload"
    same = shared_memory.Region(run.region.record, os.dup(run.region.fd))
    run = start(*services, region=same)  # a checker that replaces one that has died
    network.says = {}
    run.turn(10.0)
    assert run.region.common_causes() == []
    run = start(service(B), service(B, name="other"))  # one broken backend, although it is one of two services
    run.turn(4.0)
    network.says = {(B, True): SILENCE}
    run.turn(10.0)
    assert run.states() == ["return path broken"] * 2
    assert run.region.common_causes() == []


@pytest.mark.parametrize(("spoofed", "before", "health", "after"), [
    (REFUSED, "down", HEALTH, "down"),
    # The return path is no longer probed, so it must not stay broken for ever.
    (SILENCE, "return path broken", replace(HEALTH, source=()), "up"),
])  # fmt: skip
def test_the_next_generation_continues_from_the_published_state(network, start, spoofed, before, health, after):
    run = start(service(B, C))
    network.says = {(B, True): spoofed}
    run.turn(10.0)
    assert run.states() == [before, "up"]
    successor = start(service(B, C, health=health), region=shared_memory.Region(run.region.record))
    successor.region.inherit(run.region, (service(B, C),))
    successor.checker._queue.clear()
    successor.checker._resume()
    successor.turn(TICK)
    assert successor.states() == [before, "up"], "before any probe"
    successor.turn(10.0)
    assert successor.states() == [after, "up"]
    network.says = {}
    successor.turn(10.0)
    assert successor.states() == ["up", "up"]


def test_the_supervisor_learns_which_backends_with_on_down_reset_go_down_and_of_nothing_else(network, start):
    services = service(B, C, V6, on_down="reset"), service(B, name="kept")
    run = start(*services, turn=6.0)
    network.says = {(V6, True): SILENCE}
    run.turn(10.0)
    assert run.states() == ["up", "up", "return path broken", "up"]
    assert run.line.sent == []
    network.says = {(B, True): REFUSED, (V6, True): SILENCE, (V6, False): SILENCE}
    run.line.full = True
    run.turn(10.0)
    assert run.states() == ["down", "up", "down", "down"]
    run.line.full = False
    run.turn(10.0)
    assert len(run.line.sent) == 1, "once, and later than usual"
    assert sorted(run.line.sent[0]["down"]) == [["web", "b0", "ipv4", B], ["web", "b2", "ipv6", V6]]
    successor = start(*services, region=shared_memory.Region(run.region.record))
    successor.region.inherit(run.region, services)
    successor.checker._resume()
    successor.turn(10.0)
    assert successor.states() == ["down", "up", "down", "down"]
    assert successor.line.sent == [], "they were down before"


def test_a_backend_of_which_nothing_was_known_is_not_reported(network, start):
    """It may be a new address of a backend, whose sessions go on at the old one."""
    network.says = {(B, True): REFUSED}
    run = start(service(B, on_down="reset"), turn=10.0)
    assert (run.states(), run.line.sent) == (["down"], [])


def test_without_certificate_authorities_a_backend_is_not_checked_and_serves(network, start):
    """A fault of the proxy must not take all backends out. The control: the same check without verification."""
    tls = HealthTls("b.example", verify=True, ca_file="/none")
    region = shared_memory.Region(copy.deepcopy(start(service(B)).region.record))
    region.set_state("health", 0, shared_memory.DOWN)
    run = start(service(B, health=replace(HEALTH, tls=tls)), region=region)
    run.turn(10.0)
    assert (network.asked, run.states()) == ([], ["unknown"])
    (line,) = run.log.named("backend not checked")
    assert line["reason"] == "health.tls (/none) cannot be used: No such file or directory"
    assert start(service(B, health=replace(HEALTH, tls=HealthTls())), turn=4.0).states() == ["up"]


@pytest.mark.parametrize("where", ["begin", "poll"])
def test_a_defect_in_one_target_is_logged_and_the_others_are_still_checked(network, start, monkeypatch, where):
    run = start(service(B, C), turn=6)
    assert run.states() == ["up", "up"]
    broken = run.checker._targets[0]

    def step(now):
        raise UnicodeEncodeError("latin-1", "€", 0, 1, "no byte")

    monkeypatch.setattr(broken, where, step)
    network.says.update({(C, True): SILENCE, (C, False): SILENCE})
    run.turn(20)
    assert run.states() == ["unknown", "down"]
    assert {one["backend"] for one in run.log.named("defect")} == {"b0"}
    assert 5 <= len(run.log.named("defect")) <= 11, "once per interval"
