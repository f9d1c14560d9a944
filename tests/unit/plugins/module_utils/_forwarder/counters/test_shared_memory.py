# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared memory: cells, totals over rows and generations, states, and overrides."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Limits, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import (
    agent_state,
    client_tables,
    shared_memory,
    totals,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides


def config(*names, port=80):
    backends = tuple(Backend(name, port, f"198.18.0.{ord(name)}", f"2001:db8::{ord(name)}") for name in names)
    return Config(proxy_id=1, services=(Service("web", (), backends), Service("mail", (), backends[:1])))


@pytest.fixture
def make():
    """A factory of regions, which are closed at the end."""
    regions = []

    def region(*names, slots=2, **options):
        regions.append(shared_memory.Region(shared_memory.describe(config(*names, **options), slots)))
        return regions[-1]

    yield region
    for each in regions:
        each.close()


def test_no_two_fields_share_a_cell(make):
    region = make("b", "c", slots=3)
    numbers = [region.cell(slot, kind, field, index) for slot in range(4) for kind, count in
               (("worker", 1), ("service", 2), ("target", 6)) for field in region.record["fields"][kind]
               for index in range(count)]  # fmt: skip
    numbers += [region.state_cell(field, target) for field in shared_memory.STATE_FIELDS for target in range(6)]
    assert len(numbers) == len(set(numbers))
    assert min(numbers) >= shared_memory.HEADER
    numbers += [region.beat_cell(slot) for slot in range(4)]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) == len(region.cells) - 1


def test_a_parent_reads_what_its_child_writes_and_another_program_reads_a_region_by_its_record(make):
    region = make("b")
    child = os.fork()
    if not child:
        region.cells[region.cell(1, "worker", "defects")] += 41
        os._exit(0)
    os.waitpid(child, 0)
    region.cells[region.cell(0, "worker", "defects")] += 1
    assert region.total("worker", "defects") == 42
    region = make("b", "c")
    region.cells[region.cell(1, "target", "connections", 3)] = 7
    reopened = shared_memory.Region(region.record, os.dup(region.fd))
    assert reopened.total("target", "connections", 3) == 7
    assert reopened.targets == region.targets
    assert not os.get_inheritable(reopened.fd)
    reopened.close()


def test_a_new_worker_resets_the_gauges_of_its_slot_and_keeps_the_counters(make):
    region = make("b")
    for field in ("active", "connections", "succeeded"):
        region.cells[region.cell(1, "target", field, 0)] = 5
    region.reset_gauges(1)
    assert [region.total("target", field, 0) for field in ("active", "connections")] == [0, 5]
    assert region.latest("succeeded", 0) == 5


def test_states_are_inherited_by_equal_targets_with_health_checks(make):
    old, new, moved = make("b", "c"), make("c", "d"), make("c", port=81)
    c = old.targets.index(("web", "c", "ipv4"))
    old.set_state("health", c, shared_memory.DOWN)
    unchecked = make("b", "c")
    web, mail = config("b").services
    new.inherit(old, (web, mail))
    moved.inherit(old, (web, mail))
    unchecked.inherit(old, (replace(web, health=HealthCheck(enabled=False)), mail))
    assert new.state("health", new.targets.index(("web", "c", "ipv4"))) == shared_memory.DOWN
    assert new.state("health", new.targets.index(("web", "d", "ipv4"))) == shared_memory.UNKNOWN
    assert unchecked.state("health", c) == shared_memory.UNKNOWN, "no check would correct it"
    assert moved.state("health", moved.targets.index(("web", "c", "ipv4"))) == shared_memory.UNKNOWN


@pytest.mark.parametrize("checked", [True, False])
def test_the_word_of_an_agent_is_inherited_while_the_service_has_an_agent(
    checked,
):
    plain = config("b")
    (web, mail), word = plain.services, agent_state.AgentWord("down", "maint", 7, "disk full")
    web, other = (replace(one, health=HealthCheck(checked, agent=HealthAgent(9))) for one in (web, mail))
    regions = [
        shared_memory.Region(shared_memory.describe(replace(plain, services=services), 2))
        for services in ((web, mail), (web, mail), (replace(web, health=HealthCheck()), other), (mail,))
    ]
    old, same, without, none = regions
    agent_state.write(old, 0, word)
    old.set_state("health", 0, shared_memory.DOWN)
    same.inherit(old, (web, mail))
    without.inherit(old, (replace(web, health=HealthCheck()), other))
    none.inherit(old, (mail,))
    assert (agent_state.read(same, 0), agent_state.read(without, 0)) == (word, agent_state.AgentWord())
    assert same.state("health", 0) == (shared_memory.DOWN if checked else shared_memory.UNKNOWN)
    assert [agent_state.in_region(region) for region in regions] == [True, True, True, False]
    for region in regions:
        region.close()


def test_totals_include_ended_generations(make):
    old, new = make("b", "c"), make("c")
    for region, value in ((old, 10), (new, 5)):
        number = region.targets.index(("web", "c", "ipv6"))
        for field in ("connections", "active", "succeeded"):
            region.cells[region.cell(0, "target", field, number)] = value
    key = ("web", "c", "ipv6")
    ended = totals.GenerationTotals()
    before = ended.totals([old, new])
    assert [before.target(*key, field) for field in ("connections", "active", "succeeded")] == [15, 15, 10]
    ended.fold(old)
    after = totals.GenerationTotals(ended.records()).totals([new])
    assert [after.target(*key, field) for field in ("connections", "active", "succeeded")] == [15, 5, 5]
    assert after.target("web", "b", "ipv4", "connections") == 0


def test_open_connections_of_draining_generations_are_in_the_supervisors_row_until_they_end(make):
    old, new = make("b", "c"), make("c")
    old.cells[old.cell(1, "target", "active", old.targets.index(("web", "c", "ipv4")))] = 3
    place = new.targets.index(("web", "c", "ipv4"))
    totals.publish_elsewhere(new, [old])
    assert new.total("target", "active", place) == 3
    of_workers = totals.GenerationTotals().totals([new])
    assert of_workers.target("web", "c", "ipv4", "active") == 0, "the supervisor's row is not in the totals"
    totals.publish_elsewhere(new, [])
    assert new.total("target", "active", place) == 0


def test_overrides_are_published_adopted_and_removed_with_their_backend(make):
    region = make("b", "c")
    overrides = Overrides()
    assert overrides.set("web", "b", "state", "draining") is True
    assert overrides.set("web", "b", "state", "draining") is False
    assert overrides.set("web", "c", "weight", 5) is True
    epoch = region.cells[shared_memory.EPOCH_ADMIN]
    adopted = Overrides()
    adopted.adopt(overrides.records())
    adopted.publish(region)
    assert region.cells[shared_memory.EPOCH_ADMIN] > epoch
    expected = {("web", "b"): (shared_memory.DRAINING, 0), ("web", "c"): (shared_memory.READY, 5)}
    for number, target in enumerate(region.targets):
        states = region.state("admin", number), region.state("weight", number)
        assert states == expected.get(target[:2], (shared_memory.READY, 0)), target
    overrides.settle(config("c"))
    assert overrides.records() == [["web", "c", {"weight": 5}]]
    assert overrides.set("web", "c", "weight", None) is True
    assert overrides.records() == []


def test_heartbeats_are_read_and_missing_in_a_region_of_an_earlier_version(make):
    region = make("b", slots=2)
    assert [region.beat(slot) for slot in range(3)] == [None] * 3
    region.cells[region.beat_cell(2)] = 1500
    assert region.beat(2) == 1.5
    record = {key: value for key, value in region.record.items() if key != "beats"}
    earlier = shared_memory.Region(record, os.dup(region.fd))
    assert earlier.beat(2) is earlier.beat_cell(2) is None
    assert len(earlier.cells) == len(region.cells) - 3
    earlier.close()


def test_a_region_carries_gauges_and_numbers_per_client_of_what_both_have():
    """A page of a table that nobody has used stays without memory."""
    services = [[Service("web", (), config("b", "c").services[0].backends, limits=limits)] for limits in
                (Limits(connections_per_client=5), Limits(connections_per_client=9, rate_per_client=1))]  # fmt: skip
    services[1].insert(0, Service("new", (), config("b").services[0].backends, limits=Limits(connections_per_client=1)))
    records = [shared_memory.describe(Config(proxy_id=1, services=tuple(each)), 2) for each in services]
    old, new = map(shared_memory.Region, records)
    for slot, sessions in enumerate((3, 4)):
        old.cells[old.cell(slot, "service", "sessions")] = sessions
        old.cells[old.cell(slot, "service", "connections")] = 100
        old.cells[old.cell(slot, "target", "active", 1)] = sessions
        for client in (7, 4711):
            old.client_numbers(slot, "web", client_tables.HELD).put(client, client + slot)
    new.carry(old)
    for slot, sessions in enumerate((3, 4)):
        row = [new.cells[new.cell(slot, "service", field, 1)] for field in ("sessions", "connections")]
        assert row == [sessions, 0], "counters stay where they are"
        assert new.cells[new.cell(slot, "target", "active", new.targets.index(old.targets[1]))] == sessions
        held = new.client_numbers(slot, "web", client_tables.HELD)
        assert [held.get(client) for client in (7, 8, 4711)] == [7 + slot, 0, 4711 + slot]
    assert os.fstat(new.fd).st_blocks * 512 < 64 * 4096
    old.close()
    new.close()
