# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker with a clock and answers of its own: who is asked when, and what is published of it."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import checker, shared
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import Backend, Config, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.health import Answer
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.settings import Health

SOURCES = ("198.51.100.1", "2001:db8:ffff::1")
HEALTH = Health(interval=2.0, timeout=1.0, rise=2, fall=3, source=SOURCES)
SILENCE = errno.ETIMEDOUT
REFUSED, RESET, UNREACHABLE = errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH


class Network:
    """Answers questions: ``says`` is {(address, whether it is spoofed): errno, 0, or SILENCE}; what is missing is 0."""

    def __init__(self):
        self.says = {}
        self.asked = []  # (address, source) of every question, in order
        self.open = 0
        self.cannot = {}  # source -> the error its question fails with

    def question(self, address, _port, source, *exchange):
        if source in self.cannot:
            raise OSError(self.cannot[source], "cannot")
        self.asked.append((address, source, *exchange))
        self.open += 1
        return Question(self, self.says.get((address, source is not None), 0))


class Question:
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
    monkeypatch.setattr(checker, "TcpQuestion", network.question)
    monkeypatch.setattr(checker, "UdpQuestion", network.question)
    monkeypatch.setattr(checker.random, "uniform", lambda first, last: (first + last) / 2)
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
        self.region = region or shared.Region(shared.describe(config, 1))
        self.log = Log()
        self.checker = checker.Checker(config, self.log, None, self.region)
        self.time = 1000.0
        self.checker.now = lambda: self.time
        self.checker._resume()

    def turn(self, seconds):
        until = self.time + seconds
        while self.time < until:
            self.checker._turn()
            self.time += checker.TICK

    def states(self):
        return [shared.STATES[self.region.state("health", number)] for number in range(len(self.region.targets))]

    def end(self):
        for watch in self.checker._under_way:
            watch.round.close()
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
    ("well", 0, 0, Answer(True, True, 0, 0), False),
    ("refused, all the way back", REFUSED, 0, Answer(False, True, REFUSED, 0), False),
    ("reset", RESET, 0, Answer(False, True, RESET, 0), False),
    ("the wrong answer", errno.EBADMSG, 0, Answer(False, True, errno.EBADMSG, 0), False),
    ("the way back is broken", SILENCE, 0, Answer(True, False, 0, SILENCE), True),
    ("unreachable for clients", UNREACHABLE, 0, Answer(True, False, 0, UNREACHABLE), True),
    ("nobody is there", SILENCE, SILENCE, Answer(False, False, SILENCE, SILENCE), True),
    ("refused to us, silent to clients", SILENCE, REFUSED, Answer(False, False, REFUSED, SILENCE), True),
]


@pytest.mark.parametrize(
    ("spoofed", "own", "answer", "second"), [row[1:] for row in TEST_ROUNDS], ids=[row[0] for row in TEST_ROUNDS]
)
def test_a_round(network, start, spoofed, own, answer, second):
    network.says = {(B, True): spoofed, (B, False): own}
    (watch,) = start(service(B)).checker._watches
    watch.begin(0.0)
    found, now = None, 0.0
    while found is None:
        assert now <= HEALTH.timeout + checker.TICK, "a round ends at its timeout"
        found = watch.look(now)
        now += checker.TICK
    assert found == answer
    assert network.asked == [(B, SOURCES[0])] + [(B, None)] * second


def test_what_this_host_cannot_ask_is_no_backends_fault(network, start):
    """Without CAP_NET_RAW the own address asks alone, and nothing is said of return paths."""
    network.cannot = {SOURCES[0]: errno.EPERM}
    (watch,) = start(service(B)).checker._watches
    watch.begin(0.0)
    assert watch.look(0.0) == Answer(True, None, 0, errno.EPERM)


def test_without_a_way_there_at_all_the_server_is_not_up(network, start):
    network.cannot = {SOURCES[0]: errno.ENETUNREACH, None: errno.ENETUNREACH}
    (watch,) = start(service(B)).checker._watches
    watch.begin(0.0)
    assert watch.look(0.0) == Answer(False, None, errno.ENETUNREACH, errno.ENETUNREACH)


def test_an_exchange_is_sent_as_it_is_written(network, start):
    """Characters are bytes: what a config can write is what goes out."""
    health = Health(interval=2.0, timeout=1.0, source=SOURCES, request="\x00ä", expect="ÿ")
    start(service(B, protocol="udp", health=health)).turn(2.0)
    assert network.asked[0] == (B, SOURCES[0], b"\x00\xe4", b"\xff")


@pytest.mark.parametrize(
    "health", [Health(enabled=False, source=SOURCES), Health(source=SOURCES)], ids=["switched off", "no request"]
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
        run.turn(checker.TICK)
    run.turn(2 * checker.TICK)  # the worst moment: just after an answer
    epoch = run.region.cells[shared.EPOCH_HEALTH]
    network.says = {(B, True): SILENCE}
    begun = run.time
    while run.states()[0] == "up":
        run.turn(checker.TICK)
    assert run.time - begun <= HEALTH.fall * HEALTH.interval
    assert run.states() == ["return path broken", "up"]
    assert (run.region.told("server", 0), run.region.told("path", 0)) == ("yes", "no: ETIMEDOUT")
    assert run.region.cells[shared.EPOCH_HEALTH] == epoch + 1, "the workers look once"
    assert run.region.state("since", 0) / 1000 == pytest.approx(run.time, abs=2 * checker.TICK)
    assert run.region.state("recovered", 0) == 0
    network.says = {}
    begun = run.time
    while run.states()[0] != "up":
        run.turn(checker.TICK)
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
    assert (run.region.told("server", 0), run.region.told("path", 0)) == ("no: ETIMEDOUT", "yes")


def succeed(run, number):
    """A worker's connection to a target succeeds now."""
    run.region.cells[run.region.cell(0, "target", "succeeded", number)] = int(run.time * 1000)


def test_while_clients_succeed_a_filter_on_the_probes_takes_nobody_out(network, start):
    run = start(service(B, C))
    run.turn(4.0)
    network.says = {(B, True): SILENCE, (C, True): SILENCE}
    for _second in range(30):
        succeed(run, 0)
        run.turn(1.0)
    assert run.states() == ["up", "return path broken"], "only c, which has no clients"
    assert run.log.named("local delivery") == []


def test_a_failure_of_a_client_brings_the_next_round_forward(network, start):
    run = start(service(B, health=Health(interval=100.0, timeout=1.0, source=SOURCES)))
    run.turn(2.0)
    assert len(network.asked) == 1
    run.turn(10.0)
    assert len(network.asked) == 1
    run.region.cells[run.region.cell(0, "target", "failed", 0)] = int(run.time * 1000)
    run.region.cells[run.region.cell(0, "worker", "failures")] += 1
    run.turn(1.0)
    assert len(network.asked) == 2
    run.turn(10.0)
    assert len(network.asked) == 2, "one failure, one round"


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
    successor = start(service(B, C), region=shared.Region(run.region.record))
    successor.region.inherit(run.region, {"web"})
    successor.checker._queue.clear()
    successor.checker._resume()
    successor.turn(checker.TICK)
    assert successor.states() == ["down", "up"], "before anybody was asked"
    network.says = {}
    successor.turn(10.0)
    assert successor.states() == ["up", "up"]


def test_a_return_path_that_nobody_asks_about_any_more_is_not_broken_for_ever(network, start):
    run = start(service(B, C))
    network.says = {(B, True): SILENCE}
    run.turn(10.0)
    assert run.states() == ["return path broken", "up"]
    successor = start(service(B, C, health=replace(HEALTH, source=())), region=shared.Region(run.region.record))
    successor.region.inherit(run.region, {"web"})
    successor.checker._queue.clear()
    successor.checker._resume()
    successor.turn(10.0)
    assert successor.states() == ["up", "up"]


@pytest.mark.parametrize("where", ["begin", "look"])
def test_a_defect_in_one_target_is_logged_and_the_others_are_asked_on(network, start, monkeypatch, where):
    run = start(service(B, C))
    run.turn(6)
    assert run.states() == ["up", "up"]
    spoilt = run.checker._watches[0]

    def step(now):
        raise UnicodeEncodeError("latin-1", "€", 0, 1, "no byte")

    monkeypatch.setattr(spoilt, where, step)
    network.says.update({(C, True): SILENCE, (C, False): SILENCE})
    run.turn(20)
    assert run.states() == ["unknown", "down"]
    assert {one["backend"] for one in run.log.named("defect")} == {"b0"}
    assert 5 <= len(run.log.named("defect")) <= 11, "once an interval"
