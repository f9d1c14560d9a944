# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checker tells the keeper of the backends of kernel services, and when it writes the file."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import published_states
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_round import TICK
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.published_states import PublishedStates
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory

from tests.unit.tables import rows

from .simulation import HEALTH, REFUSED, B, C, Log, Run, service

UNKNOWN, UP, BROKEN, DOWN = range(4)
DAMPED = dataclasses.replace(HEALTH, flap_pause=10.0)
NOW = 1000.0


class Published:
    """The states of services "web", with backends b0, b1 ..., and the file with them."""

    def __init__(self, path, *services):
        self.path, self.log = str(path), Log()
        self.config = Config(proxy_id=1, services=services)
        self.region = shared_memory.Region(shared_memory.describe(self.config, 1))
        self.states = self.successor()

    def successor(self):
        return PublishedStates(self.config, self.region, self.path, self.log)

    def set(self, target, now=NOW, **states):
        for field, value in states.items():
            self.region.set_state(field, target, value)
        self.region.advance(shared_memory.EPOCH_HEALTH)
        self.states.publish(now)

    def file(self):
        with open(self.path, encoding="utf-8") as stream:
            return json.load(stream)["services"]


@pytest.fixture
def publish(tmp_path):
    made = []

    def publish(*services):
        made.append(Published(tmp_path / "backends.json", *services))
        return made[-1]

    yield publish
    for one in made:
        one.region.close()


def kernel(*addresses, **options):
    return service(*addresses, datapath="kernel", **options)


PAUSED = {"health": UP, "back_at": int((NOW + 5) * 1000), "flaps": 1}
MAINTENANCE = {"health": UP, "admin": shared_memory.MAINTENANCE}
# The options of the service, the states of its backends, and what is published.
TEST_STATES = [
    ("up", {}, [{"health": UP}, {"health": DOWN}], ["up", "down"]),
    ("not known yet", {}, [{}, {"health": UP}], [None, "up"]),
    ("never checked", {"health": dataclasses.replace(HEALTH, enabled=False)}, [{}, {}], ["up", "up"]),
    ("an operator", {}, [{"health": UP, "admin": shared_memory.DRAINING}, MAINTENANCE], ["out", "out"]),
    ("a broken return path", {}, [{"health": BROKEN}, {"health": UP}], ["out", "up"]),
    ("nothing but broken return paths", {}, [{"health": BROKEN}, {"health": DOWN}], ["up", "down"]),
    ("the rest is out", {}, [{"health": BROKEN}, MAINTENANCE], ["up", "out"]),
    ("paused", {"health": DAMPED}, [PAUSED, {"health": UP}], ["out", "up"]),
    ("all paused", {"health": DAMPED}, [PAUSED, {"health": DOWN}], ["up", "down"]),
    ("max_out", {"health": dataclasses.replace(DAMPED, max_out=49)}, [PAUSED, {"health": UP}], ["up", "up"]),
    ("out and down", {}, [{**MAINTENANCE, "health": DOWN}, {"health": UP}], ["out", "up"]),
    ("out and down, on_down", {"on_down": "reset"}, [{**MAINTENANCE, "health": DOWN}, {"health": UP}], ["down", "up"]),
]


@pytest.mark.parametrize(("options", "states", "expected"), **rows(TEST_STATES))
def test_the_published_states(publish, options, states, expected):
    published = publish(kernel(B, C, **options))
    for target, said in enumerate(states):
        published.set(target, **said)
    assert published.file() == {"web": {f"b{n}": word for n, word in enumerate(expected) if word}}


def test_a_disabled_backend_is_out_and_families_may_differ(publish):
    both = Backend("b", 80, B, "2001:db8::21")
    web = dataclasses.replace(kernel(), backends=(both, Backend("c", 80, C, enabled=False)))
    published = publish(web)
    for target, health in enumerate([UP, UP, DOWN]):  # b and c over IPv4, b over IPv6
        published.set(target, health=health)
    assert published.file() == {"web": {"b": {"ipv4": "up", "ipv6": "down"}, "c": "out"}}
    published.set(2, health=UP)
    assert published.file() == {"web": {"b": "up", "c": "out"}}


def test_the_file_is_replaced_only_for_a_change_and_everybody_may_read_it(publish):
    published = publish(kernel(B, C))
    published.set(0, health=UP)
    before = os.stat(published.path)
    assert before.st_mode & 0o777 == 0o644
    published.set(0, health=UP, since=5)
    assert os.stat(published.path).st_ino == before.st_ino
    published.set(0, health=DOWN)
    assert os.stat(published.path).st_ino != before.st_ino
    assert os.listdir(os.path.dirname(published.path)) == ["backends.json"]


def test_a_pause_ends_by_the_clock(publish):
    published = publish(kernel(B, C, health=DAMPED))
    published.set(0, **PAUSED)
    published.set(1, health=UP)
    published.states.publish(NOW + 4.9)
    assert published.file()["web"]["b0"] == "out"
    published.states.publish(NOW + 5)
    assert published.file()["web"]["b0"] == "up"


def test_a_successor_goes_on_with_what_is_published_until_its_checks_have_a_result(publish):
    before = publish(kernel(B, C), service(B, name="other"))
    before.set(0, health=DOWN)
    before.set(1, health=UP)
    after = publish(kernel(B, C), kernel(B, name="new"))
    after.states.publish(NOW)
    assert after.file() == {"web": {"b0": "down", "b1": "up"}, "new": {}}
    after.set(0, health=UP)
    assert after.file() == {"web": {"b0": "up", "b1": "up"}, "new": {}}


def test_without_kernel_services_a_file_is_emptied_and_none_is_made(publish):
    without = publish(service(B))
    without.set(0, health=UP)
    assert not os.path.exists(without.path)
    publish(kernel(B)).set(0, health=UP)
    without = publish(service(B))
    without.states.publish(NOW)
    assert without.file() == {}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"services": []}', '{"services": {"web": 7}}', '{"services": {"web": {"b0": []}}}']
)
def test_a_broken_file_is_replaced(publish, tmp_path, text):
    (tmp_path / "backends.json").write_text(text, encoding="utf-8")
    published = publish(kernel(B))
    published.states.publish(NOW)
    assert published.file() == {"web": {}}


def test_a_file_that_is_gone_or_replaced_is_written_again(publish):
    published = publish(kernel(B))
    published.set(0, health=UP)
    for spoil in (os.unlink, lambda path: published_states.write(path, {"services": {"web": {"b0": "down"}}})):
        spoil(published.path)
        published.states.publish(NOW + published_states.LOOK / 2)
        published.states.publish(NOW + published_states.LOOK)
        assert published.file() == {"web": {"b0": "up"}}
        published.states._next_look = 0.0


def test_what_cannot_be_written_is_logged_once_and_tried_again(publish, tmp_path):
    published = publish(kernel(B))
    published.path = published.states._path = str(tmp_path / "missing" / "backends.json")
    for second in range(3):
        published.states.publish(NOW + 2 * second)
    assert len(published.log.named("states not published")) == 1
    (tmp_path / "missing").mkdir()
    published.states.publish(NOW + 2 * published_states.RETRY + 5)
    assert published.file() == {"web": {}}


def test_the_checker_publishes_in_the_turn_in_which_it_knows(network, tmp_path):
    path = str(tmp_path / "backends.json")
    run = Run(kernel(B, C))
    run.checker._states = states = PublishedStates(Config(1, (kernel(B, C),)), run.region, path, run.log)
    run.turn(4.0)
    assert states._published == {"web": {"b0": "up", "b1": "up"}}
    network.says = {(B, True): REFUSED, (B, False): REFUSED}
    while run.states()[0] == "up":
        run.turn(TICK)
    assert states._published == {"web": {"b0": "down", "b1": "up"}}
    run.end()
