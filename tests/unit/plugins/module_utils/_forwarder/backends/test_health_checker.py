# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker with a clock and answers of its own: who is asked when, and what is published of it."""

from __future__ import annotations

import copy
import errno
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker, health_round
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_state import RoundResult
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory

SOURCES = ("198.51.100.1", "2001:db8:ffff::1")
HEALTH = HealthCheck(interval=2.0, timeout=1.0, rise=2, fall=3, source=SOURCES)
SILENCE = errno.ETIMEDOUT
REFUSED, RESET, UNREACHABLE = errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH


class Network:
    """Answers questions: ``says`` is {(address, whether it is spoofed): errno, 0, or SILENCE}; what is missing is 0."""

    def __init__(self):
        self.says = {}
        self.asked = []  # (address, source) of every question, in order
        self.open = 0
        self.cannot = {}  # source -> the error its question fails with

    def probe(self, address, _port, source, *exchange):
        if source in self.cannot:
            raise OSError(self.cannot[source], "cannot")
        self.asked.append((address, source, *exchange))
        self.open += 1
        return Probe(self, self.says.get((address, source is not None), 0))


class Probe:
    def __init__(self, network, number):
        self._network = network
        self._number = number

    def poll(self):
        return None if self._number == SILENCE else self._number

    def close(self):
        self._network.open -= 1


class Log:
    waiting = False

    def __init__(self):
        self.events = []

    def event(self, name, **fields):
        self.events.append({"event": name, **fields})

    def named(self, name):
        return [one for one in self.events if one["event"] == name]


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(health_round, "TcpProbe", network.probe)
    monkeypatch.setattr(health_round, "UdpProbe", network.probe)
    monkeypatch.setattr(health_checker.random, "uniform", lambda first, last: (first + last) / 2)
    yield network
    assert network.open == 0, "a question was left open"


def service(*addresses, protocol="tcp", health=HEALTH, name="web"):
    backends = tuple(
        Backend(name=f"b{number}", port=80, **{"ipv6" if ":" in address else "ipv4": address})
        for number, address in enumerate(addresses)
    )
    return Service(name, (), backends, protocol=protocol, health=health)


class Run:
    """A checker, turned by hand: turn() goes on by a time, a TICK at once."""

    def __init__(self, *services, region=None):
        config = Config(proxy_id=1, services=services)
        self.region = region or shared_memory.Region(shared_memory.describe(config, 1))
        self.log = Log()
        self.checker = health_checker.HealthChecker(config, self.log, None, self.region)
        self.time = 1000.0
        self.checker.now = lambda: self.time
        self.checker._resume()

    def turn(self, seconds):
        until = self.time + seconds
        while self.time < until:
            self.checker._turn()
            self.time += health_checker.TICK

    def states(self):
        return [shared_memory.STATES[self.region.state("health", number)] for number in range(len(self.region.targets))]

    def end(self):
        for one in self.checker._running:
            one.round.close()
        self.region.close()


@pytest.fixture
def start():
    runs = []

    def start(*services, **options):
        runs.append(Run(*services, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


B, C, V6 = "198.18.0.21", "198.18.0.22", "2001:db8::21"

# -- one round -------------------------------------------------------------------------------------------------------

# What the spoofed question and the one from our own address are told: what a round makes of it, and whether the second
# was asked at all.
TEST_ROUNDS = [
    ("well", 0, 0, RoundResult(True, True, 0, 0), False),
    ("refused, all the way back", REFUSED, 0, RoundResult(False, True, REFUSED, 0), False),
    ("reset", RESET, 0, RoundResult(False, True, RESET, 0), False),
    ("the wrong answer", errno.EBADMSG, 0, RoundResult(False, True, errno.EBADMSG, 0), False),
    ("the way back is broken", SILENCE, 0, RoundResult(True, False, 0, SILENCE), True),
    ("unreachable for clients", UNREACHABLE, 0, RoundResult(True, False, 0, UNREACHABLE), True),
    ("nobody is there", SILENCE, SILENCE, RoundResult(False, False, SILENCE, SILENCE), True),
    ("refused to us, silent to clients", SILENCE, REFUSED, RoundResult(False, False, REFUSED, SILENCE), True),
]


@pytest.mark.parametrize(
    ("spoofed", "own", "answer", "second"), [row[1:] for row in TEST_ROUNDS], ids=[row[0] for row in TEST_ROUNDS]
)
def test_a_round(network, start, spoofed, own, answer, second):
    network.says = {(B, True): spoofed, (B, False): own}
    (target,) = start(service(B)).checker._targets
    target.begin(0.0)
    found, now = None, 0.0
    while found is None:
        assert now <= HEALTH.timeout + health_checker.TICK, "a round ends at its timeout"
        found = target.poll(now)
        now += health_checker.TICK
    assert found == answer
    assert network.asked == [(B, SOURCES[0])] + [(B, None)] * second


def test_what_this_host_cannot_ask_is_no_backends_fault(network, start):
    """Without CAP_NET_RAW the own address asks alone, and nothing is said of return paths."""
    network.cannot = {SOURCES[0]: errno.EPERM}
    (target,) = start(service(B)).checker._targets
    target.begin(0.0)
    assert target.poll(0.0) == RoundResult(True, None, 0, errno.EPERM)


def test_without_a_way_there_at_all_the_server_is_not_up(network, start):
    network.cannot = {SOURCES[0]: errno.ENETUNREACH, None: errno.ENETUNREACH}
    (target,) = start(service(B)).checker._targets
    target.begin(0.0)
    assert target.poll(0.0) == RoundResult(False, None, errno.ENETUNREACH, errno.ENETUNREACH)


def test_an_exchange_is_sent_as_it_is_written(network, start):
    """Characters are bytes: what a config can write is what goes out."""
    health = HealthCheck(interval=2.0, timeout=1.0, source=SOURCES, request="\x00ä", expect="ÿ")
    start(service(B, protocol="udp", health=health)).turn(2.0)
    assert network.asked[0] == (B, SOURCES[0], b"\x00\xe4", b"\xff")


@pytest.mark.parametrize(
    "health",
    [HealthCheck(enabled=False, source=SOURCES), HealthCheck(source=SOURCES)],
    ids=["switched off", "no request"],
)
def test_where_there_is_no_question_nobody_is_asked(network, start, health):
    run = start(service(B, protocol="udp", health=health))
    run.turn(10.0)
    assert network.asked == []
    assert run.states() == ["unknown"]


# -- the rounds of all -----------------------------------------------------------------------------------------------


def test_a_fleet_that_is_well_costs_one_question_an_interval(network, start):
    run = start(service(B, C, V6))
    run.turn(20.0)
    assert run.states() == ["up"] * 3
    for address, source in ((B, SOURCES[0]), (C, SOURCES[0]), (V6, SOURCES[1])):
        asked = [one for one in network.asked if one[0] == address]
        assert set(asked) == {(address, source)}
        assert len(asked) == pytest.approx(20 / HEALTH.interval, abs=1)


def test_a_broken_return_path_is_told_within_fall_x_interval_and_is_whole_again(network, start):
    run = start(service(B, C))
    run.turn(4.0)
    asked = len(network.asked)
    while len(network.asked) == asked:
        run.turn(health_checker.TICK)
    run.turn(2 * health_checker.TICK)  # the worst moment: just after an answer
    epoch = run.region.cells[shared_memory.EPOCH_HEALTH]
    network.says = {(B, True): SILENCE}
    begun = run.time
    while run.states()[0] == "up":
        run.turn(health_checker.TICK)
    assert run.time - begun <= HEALTH.fall * HEALTH.interval
    assert run.states() == ["return path broken", "up"]
    assert (run.region.probe_result("server", 0), run.region.probe_result("path", 0)) == ("yes", "no: ETIMEDOUT")
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch + 1, "the workers look once"
    assert run.region.state("since", 0) / 1000 == pytest.approx(run.time, abs=2 * health_checker.TICK)
    assert run.region.state("recovered", 0) == 0
    network.says = {}
    begun = run.time
    while run.states()[0] != "up":
        run.turn(health_checker.TICK)
    assert run.time - begun <= HEALTH.rise * HEALTH.interval
    assert run.region.state("recovered", 0) == run.region.state("since", 0), "it starts slowly from here"
    assert [(one["backend"], one["state"], one["level"]) for one in run.log.named("backend state")][-2:] == [
        ("b0", "return path broken", "warning"),
        ("b0", "up", "info"),
    ]


def test_one_that_is_down_is_no_broken_path(network, start):
    run = start(service(B, C))
    run.turn(4.0)
    network.says = {(B, True): SILENCE, (B, False): SILENCE}
    run.turn(HEALTH.fall * HEALTH.interval)
    assert run.states() == ["down", "up"]
    assert (run.region.probe_result("server", 0), run.region.probe_result("path", 0)) == ("no: ETIMEDOUT", "yes")


def succeed(run, number, field="succeeded"):
    """A worker's connection to a target succeeds now, or fails, or lasts long."""
    run.region.cells[run.region.cell(0, "target", field, number)] = int(run.time * 1000)
    if field != "succeeded":
        run.region.cells[run.region.cell(0, "worker", "failures")] += 1


def suspects(run):
    return [run.region.state("suspect", number) for number in range(len(run.region.targets))]


def test_while_clients_succeed_a_filter_on_the_probes_takes_nobody_out(network, start):
    run = start(service(B, C))
    run.turn(4.0)
    network.says = {(B, True): SILENCE, (C, True): SILENCE}
    for _second in range(30):
        succeed(run, 0)
        run.turn(1.0)
    assert run.states() == ["up", "return path broken"], "only c, which has no clients"
    assert run.log.named("local delivery") == []


RARE = HealthCheck(interval=100.0, timeout=1.0, source=SOURCES)


@pytest.mark.parametrize("field", ["failed", "slow"])
def test_where_a_client_fails_or_waits_long_the_backend_is_asked_at_once(network, start, field):
    run = start(service(B, C, health=RARE))
    run.turn(12.0)
    assert len(network.asked) == 2
    succeed(run, 0, field)
    run.turn(health_checker.TICK)
    assert [one[0] for one in network.asked[2:]] == [B]
    run.turn(10.0)
    assert len(network.asked) == 3, "one failure, one round"
    assert suspects(run) == [0, 0]


def test_however_many_clients_fail_a_backend_is_asked_five_times_a_second(network, start):
    run = start(service(B, health=RARE))
    run.turn(12.0)
    asked = len(network.asked)
    for _turn in range(int(2 / health_checker.TICK)):
        succeed(run, 0, "failed")
        run.turn(health_checker.TICK)
    assert len(network.asked) - asked == pytest.approx(2 / health_checker.CLIENT_ROUND_SPACING, abs=2)
    assert run.log.named("backend skipped") == []


# What the spoofed question and the one from our own address are told once a client has failed; whether the backend is a
# suspect then, after how many seconds at most, and the reason in the log.
TEST_SUSPICIONS = [
    ("well", 0, 0, None, None),
    ("refused", REFUSED, 0, 2 * health_checker.TICK, "ECONNREFUSED: Connection refused"),
    ("silent", SILENCE, SILENCE, health_round.SILENCE + 3 * health_checker.TICK, "no answer"),
    ("the way back is broken", SILENCE, 0, HEALTH.timeout + 2 * health_checker.TICK, "ETIMEDOUT: Connection timed out"),
    ("unreachable", UNREACHABLE, UNREACHABLE, 3 * health_checker.TICK, "EHOSTUNREACH: No route to host"),
]


@pytest.mark.parametrize(
    ("spoofed", "own", "within", "reason"), [row[1:] for row in TEST_SUSPICIONS], ids=[r[0] for r in TEST_SUSPICIONS]
)
def test_who_fails_for_a_client_and_for_the_checker_is_a_suspect(network, start, spoofed, own, within, reason):
    run = start(service(B, C, health=RARE))
    run.turn(12.0)
    network.says = {(B, True): spoofed, (B, False): own}
    epoch, failed = run.region.cells[shared_memory.EPOCH_HEALTH], run.time
    succeed(run, 0, "failed")
    run.turn(within or 3.0)
    assert suspects(run) == [int(reason is not None), 0]
    assert run.states() == ["up", "up"], "that takes as many bad answers as ever"
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
    assert len(network.asked) == asked, "of a suspect it is known already"
    network.says = {}
    run.turn(60.0)
    assert suspects(run) == [0, 0]
    assert [line["backend"] for line in run.log.named("backend answers again")] == ["b0"]
    assert run.time - failed < 80.0


def test_in_the_memory_of_an_earlier_version_nobody_is_a_suspect(network, start):
    """The checker is replaced after a reload that failed: it has what the program before this one made."""
    record = copy.deepcopy(start(service(B)).region.record)
    record["fields"]["state"].remove("suspect")
    record["fields"]["target"].remove("slow")
    run = start(service(B), region=shared_memory.Region(record))
    run.turn(4.0)
    network.says = {(B, True): REFUSED}
    succeed(run, 0, "failed")
    run.turn(10.0)
    assert run.states() == ["down"]
    assert run.log.named("backend skipped") == []


def test_silence_makes_nobody_a_suspect_while_clients_are_served(network, start):
    """A filter on the probes and on the proxy itself, and one client that is banned: the backend serves the others."""
    run = start(service(B))
    run.turn(12.0)
    network.says = {(B, True): SILENCE, (B, False): SILENCE}
    for _turn in range(100):
        succeed(run, 0, "failed")
        run.turn(health_checker.TICK)
        succeed(run, 0)
    assert (suspects(run), run.states()) == ([0], ["up"])


def test_a_backend_that_is_slow_to_answer_is_no_suspect_for_that(network, start, monkeypatch):
    """Twice what is usual of it: here a question is answered after 0.3 s."""
    run = start(service(B, health=RARE))
    pending = {}

    def poll(question):
        begun = pending.setdefault(question, run.time)
        return None if run.time - begun < 0.3 else 0

    monkeypatch.setattr(Probe, "poll", poll)
    run.turn(12.0)
    succeed(run, 0, "failed")
    for _turn in range(40):
        run.turn(health_checker.TICK)
        assert suspects(run) == [0]
    assert len(network.asked) > 1


def test_when_every_path_of_a_family_is_broken_it_is_this_host(network, start):
    other = "2001:db8::22"
    run = start(service(B, C), service(V6, other, name="six"))
    run.turn(4.0)
    network.says = {(B, True): SILENCE, (C, True): SILENCE, (V6, True): SILENCE}
    run.turn(10.0)
    assert run.region.common_causes() == ["ipv4"]
    (line,) = run.log.named("local delivery")
    assert (line["family"], line["backends"], line["level"]) == ("ipv4", 2, "error")
    assert "local delivery" in line["reason"]
    network.says = {}
    run.turn(10.0)
    assert run.region.common_causes() == []


def test_one_backend_alone_is_no_common_cause(network, start):
    """Also when it is a target of two services."""
    run = start(service(B), service(B, name="other"))
    run.turn(4.0)
    network.says = {(B, True): SILENCE}
    run.turn(10.0)
    assert run.states() == ["return path broken"] * 2
    assert run.region.common_causes() == []


def test_the_next_generation_goes_on_where_this_one_was(network, start):
    run = start(service(B, C))
    network.says = {(B, True): REFUSED}
    run.turn(10.0)
    assert run.states() == ["down", "up"]
    successor = start(service(B, C), region=shared_memory.Region(run.region.record))
    successor.region.inherit(run.region, {"web"})
    successor.checker._queue.clear()
    successor.checker._resume()
    successor.turn(health_checker.TICK)
    assert successor.states() == ["down", "up"], "before anybody was asked"
    network.says = {}
    successor.turn(10.0)
    assert successor.states() == ["up", "up"]


def test_a_return_path_that_nobody_asks_about_any_more_is_not_broken_for_ever(network, start):
    run = start(service(B, C))
    network.says = {(B, True): SILENCE}
    run.turn(10.0)
    assert run.states() == ["return path broken", "up"]
    successor = start(service(B, C, health=replace(HEALTH, source=())), region=shared_memory.Region(run.region.record))
    successor.region.inherit(run.region, {"web"})
    successor.checker._queue.clear()
    successor.checker._resume()
    successor.turn(10.0)
    assert successor.states() == ["up", "up"]


@pytest.mark.parametrize("where", ["begin", "poll"])
def test_a_defect_in_one_target_is_logged_and_the_others_are_asked_on(network, start, monkeypatch, where):
    run = start(service(B, C))
    run.turn(6)
    assert run.states() == ["up", "up"]
    spoilt = run.checker._targets[0]

    def step(now):
        raise UnicodeEncodeError("latin-1", "€", 0, 1, "no byte")

    monkeypatch.setattr(spoilt, where, step)
    network.says.update({(C, True): SILENCE, (C, False): SILENCE})
    run.turn(20)
    assert run.states() == ["unknown", "down"]
    assert {one["backend"] for one in run.log.named("defect")} == {"b0"}
    assert 5 <= len(run.log.named("defect")) <= 11, "once an interval"
