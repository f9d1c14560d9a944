# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When agents are asked, what is published, and that none of them can hurt the checker."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import agent_check
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import agent_state, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.agent_state import AgentWord

from .simulation import HEALTH, V6, B, C, service

HEALTH = replace(HEALTH, agent=HealthAgent(9707, 5.0))
UNCHECKED = replace(HEALTH, enabled=False)


class Agents:
    """Answers probes of agents: ``says`` is {address: line or errno}; others are silent."""

    def __init__(self):
        self.says = {}
        self.asked = []
        self.open = 0

    def probe(self, address, port):
        self.asked.append((address, port))
        if self.says.get(address) == errno.ENETUNREACH:
            raise OSError(errno.ENETUNREACH, "connect")
        self.open += 1
        return Probe(self, address)


class Probe:
    def __init__(self, agents, address):
        self._agents, self._address = agents, address

    def poll(self):
        return self._agents.says.get(self._address)

    def close(self):
        self._agents.open -= 1


@pytest.fixture
def agents(monkeypatch, network):
    agents = Agents()
    monkeypatch.setattr(agent_check, "AgentProbe", agents.probe)
    return agents


def word(run, number=0):
    return agent_state.read(run.region, number)


def test_an_agent_is_asked_at_its_own_interval_once_for_all_services_and_families(agents, start):
    web = service(B, C, health=HEALTH)
    both = replace(web.backends[0], ipv6=V6)
    mail = replace(
        web, name="mail", backends=(both, web.backends[1]), health=replace(UNCHECKED, agent=HealthAgent(9707))
    )
    agents.says = {B: b"drain", C: b"up"}
    run = start(web, mail, turn=20.0)
    assert set(agents.asked) == {(B, 9707), (C, 9707)}, "the IPv4 address of a backend that has both"
    assert len(agents.asked) == pytest.approx(2 * 20 / HEALTH.interval, abs=2), "the shorter interval of the two"
    assert [str(word(run, number)) for number in range(5)] == ["drain", "up", "drain", "up", "drain"]
    assert run.states() == ["up", "up", "unknown", "unknown", "unknown"]


def test_a_new_word_is_published_and_logged_once_and_silence_changes_nothing(agents, start):
    agents.says = {B: b"down # disk full"}
    run = start(service(B, health=HEALTH), turn=6.0)
    epoch = run.region.cells[shared_memory.EPOCH_HEALTH]
    (line,) = run.log.named("agent")
    assert (line["backend"], line["word"], line["reason"], line["level"]) == ("b0", "down", "disk full", "warning")
    run.turn(20.0)
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch, "nothing new"
    for answer, said in (
        (None, "ETIMEDOUT"), (errno.ECONNREFUSED, "ECONNREFUSED"), (errno.ENETUNREACH, "ENETUNREACH"),
        (b"\xff\x00", "EBADMSG"), (errno.EMSGSIZE, "EMSGSIZE"),
    ):  # fmt: skip
        agents.says = {B: answer}
        run.turn(8.0)
        assert agent_state.answer(run.region, 0) == f"no: {said}"
        assert word(run) == AgentWord("down", reason="disk full")
    assert len(run.log.named("agent does not answer")) == 1
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch
    agents.says = {B: b"up 50%"}
    run.turn(6.0)
    assert (word(run), agent_state.answer(run.region, 0)) == (AgentWord("up", percent=50), "yes")
    assert len(run.log.named("agent")) == 2
    assert run.region.state("recovered", 0) / 1000 > 1000, "a slow start begins"
    run.turn(3.0)
    assert agents.open == 0


def test_workers_weigh_their_backends_at_most_once_a_second_and_learn_at_once_of_all_other_words(agents, start):
    addresses = [f"198.18.1.{number}" for number in range(1, 41)]
    health = replace(HEALTH, agent=HealthAgent(9707, 0.5), source=())
    run = start(service(*addresses, health=health))
    for step in range(100):
        agents.says = dict.fromkeys(addresses, b"%d%%" % (1 + step))
        run.turn(0.1)
    assert 9 <= run.region.cells[shared_memory.EPOCH_HEALTH] <= 16
    assert {word(run, number).percent for number in range(40)} <= set(range(90, 101))
    for line in (b"0%", b"5%", b"down", b"up", b"drain", b"ready"):
        agents.says = {addresses[0]: line}
        epoch = run.region.cells[shared_memory.EPOCH_HEALTH]
        run.turn(0.7)
        assert run.region.cells[shared_memory.EPOCH_HEALTH] > epoch


def test_a_new_checker_continues_with_the_last_word(agents, start):
    agents.says = {B: b"maint"}
    run = start(service(B, health=HEALTH), turn=6.0)
    region = shared_memory.Region(run.region.record)
    region.inherit(run.region, (service(B, health=HEALTH),))
    agents.says = {B: b"40%"}
    successor = start(service(B, health=HEALTH), region=region)
    assert str(word(successor)) == "maint"
    successor.turn(6.0)
    assert word(successor) == AgentWord("", "maint", 40)


def test_what_an_agent_has_said_counts_at_once_in_a_service_that_is_new_to_it(agents, start):
    """The agent may not answer for a long time."""
    web, mail = service(B, health=HEALTH), service(B, health=HEALTH, name="mail")
    agents.says = {B: b"drain 40% down # disk full"}
    run = start(web, turn=6.0)
    both = start(web, mail)
    both.region.inherit(run.region, (web, mail))
    agents.says = {}
    both.checker._resume()
    both.turn(20.0)
    assert word(both, 1) == word(both, 0) == AgentWord("down", "drain", 40, "disk full")
    assert agent_state.answer(both.region, 1) == "no: ETIMEDOUT"


def test_a_defect_ends_neither_the_checker_nor_another_agent(agents, start, monkeypatch):
    monkeypatch.setattr(agent_check, "parse", lambda line: 1 / 0 if line == b"bad" else AgentWord("up"))
    agents.says = {B: b"bad", C: b"good"}
    run = start(service(B, C, health=HEALTH), turn=12.0)
    assert [str(word(run, number)) for number in (0, 1)] == ["", "up"]
    assert run.log.named("defect")
    assert run.states() == ["up", "up"]
    assert agents.open == 0


def test_a_region_without_the_states_of_agents_is_left_alone(agents, start):
    """A checker that is replaced after a failed reload has the shared memory of the program before."""
    old = start(service(B)).region
    run = start(service(B, health=HEALTH), region=shared_memory.Region(old.record), turn=12.0)
    assert (agents.asked, run.states()) == ([], ["up"])


@pytest.mark.parametrize(("sent", "ends", "answer"), [
    (b"up\n", False, b"up"),
    (b"drain 5%\r\nup\n", False, b"drain 5%"),
    (b"\n", False, b""),
    (b"up", True, errno.EBADMSG),  # as HAProxy: who knows what was to follow
    (b"", True, errno.EBADMSG),
    (b"x" * 1023 + b"\n", False, b"x" * 1023),
    (b"x" * 1024, False, errno.EMSGSIZE),
    (b"x" * 1_000_000, False, errno.EMSGSIZE),
    (b"", False, None),
    (b"\0" * 500, False, None),
])  # fmt: skip
def test_a_probe_reads_one_line_within_bounds(sent, ends, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = agent_check.AgentProbe(*server.getsockname())
        peer = server.accept()[0]
        peer.settimeout(0.2)
        assert probe.poll() is None
        try:
            peer.sendall(sent)
        except socket.timeout:
            pass
        if ends:
            peer.close()
        deadline, found = time.monotonic() + (5 if answer is not None else 0.1), None
        while found is None and time.monotonic() < deadline:
            found = probe.poll()
        assert found == answer
        assert len(probe._data) <= 2 * agent_check.LONGEST_LINE
        probe.close()
        peer.close()
