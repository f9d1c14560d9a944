# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend is next: failures, states, overrides, limits, backups, slow starts; never the same one twice."""

from __future__ import annotations

import copy
import errno
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import (
    algorithms,
    balancer,
    passive_health,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import agent_state, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.agent_state import AgentWord
from hypothesis import given
from hypothesis import strategies as st

from .some_backends import CLIENT, OTHER, Some

UNCHECKED = {"health": HealthCheck(enabled=False)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(sorted(algorithms.ALGORITHMS)), st.data())
def test_one_connection_never_gets_the_same_backend_twice_and_gets_all(weights, balance, data):
    some = Some(*weights, balance=balance)
    now, tried = 0.0, ()
    while True:
        index = some.next(CLIENT, tried, now)
        if index is None:
            break
        assert index not in tried
        tried += (index,)
        if data.draw(st.booleans()):
            some.fail(index, now)
        now += data.draw(st.floats(0, 10))
    assert sorted(tried) == list(range(len(weights)))


def test_without_a_checker_a_failed_backend_is_skipped_by_all_and_then_tried_by_one():
    some = Some(1, 1, **UNCHECKED)
    assert some.fail(0, 100.0) == balancer.SKIPPED
    due = 100.0
    for length in (passive_health.FIRST_SKIP, passive_health.SKIP, passive_health.SKIP):
        assert {some.next(OTHER, (), due + part * length) for part in (0, 0.5, 0.99)} == {1}
        due += length
        turns = [some.next(f"203.0.113.{turn}", (), due) for turn in range(100, 110)]
        assert turns.count(0) == 1, "one new attempt; the others go on skipping"
        due += 1
        assert some.fail(0, due, "203.0.113.9") is None, "only the first failure is logged"
    assert some.connected(OTHER, 0, 0.001, due + 4) is True
    assert not some.health.any_skipped
    assert some.shares(10, due + 5, OTHER) == {0: 5, 1: 5}


@pytest.mark.parametrize("worker", ["own", "sibling"])
def test_without_a_checker_a_backend_that_serves_another_client_is_skipped_for_one_client_only(worker):
    some = Some(1, 1, **UNCHECKED)
    (some if worker == "own" else some.sibling).connected(OTHER, 0, 0.001, 100.0)
    assert some.fail(0, 100.0 + passive_health.SUCCESS_PROOF) == balancer.SKIPPED_ALONE
    assert some.shares(4, 101.0, OTHER) == {0: 2, 1: 2}
    assert some.shares(4, 101.0) == {1: 4}
    event = some.fail(0, 102.0 + passive_health.SUCCESS_PROOF, "203.0.113.9")
    assert event == balancer.SKIPPED, "for so long nobody was served"
    assert some.shares(4, 103.1, OTHER) == {1: 4}


def test_a_udp_session_without_errors_counts_as_a_success():
    some = Some(1, 1, **UNCHECKED)
    assert some.fail(0, 100.0, is_served=lambda: True) == balancer.SKIPPED_ALONE
    assert some.fail(0, 100.5, OTHER) == balancer.SKIPPED_ALONE, "a success a moment ago is not looked for again"
    assert some.fail(0, 102.0, OTHER, is_served=lambda: False) == balancer.SKIPPED
    assert some.fail(0, 102.1, OTHER, is_served=lambda: 1 / 0) is None, "not looked for while it is skipped"


def test_a_client_whose_connect_failed_gets_another_backend_and_other_clients_do_not():
    """It tries the backend again after 5 s, then after 10, and so on, up to a minute."""
    some, now = Some(1, 1), 100.0
    assert some.fail(0, now) == balancer.SKIPPED_ALONE
    for length in (5, 10, 20, 40, 60, 60):
        assert some.shares(10, now + 1) == {1: 10}
        assert some.shares(10, now + 1, OTHER) == {0: 5, 1: 5}
        assert some.shares(10, now + length - 0.01) == {1: 10}
        now += length
        turns = [some.next(CLIENT, (), now) for _turn in range(10)]
        assert turns.count(0) == 1, "one new attempt; its other connections go on skipping"
        assert some.fail(0, now) is None, "only the first failure is logged"
    assert some.connected(CLIENT, 0, 0.001, now + 60) is False, "no other client skipped it"
    assert some.shares(10, now + 60) == {0: 5, 1: 5}
    assert some.health.failed_for == {}


def test_a_client_that_failed_everywhere_still_gets_a_backend():
    some = Some(1, 1, 1, backups=[2])
    for index in range(3):
        some.fail(index, 1.0)
    assert some.shares(3, now=1.5) == {0: 1, 1: 1, 2: 1}
    assert some.shares(2, now=1.5, client=OTHER) == {0: 1, 1: 1}


def test_the_oldest_client_that_failed_is_forgotten_beyond_the_limit():
    some = Some(1, 1)
    for number in range(passive_health.MAX_CLIENTS + 1):
        some.fail(0, 1.0, f"2001:db8::{number:x}")
    assert (len(some.health.failed_for), "2001:db8::0" in some.health.failed_for) == (passive_health.MAX_CLIENTS, False)


def test_a_suspect_is_skipped_by_all_while_another_is_left_and_its_clients_are_forgotten():
    some = Some(1, 1, 1, backups=[2])
    some.fail(0, 1.0)
    some.set(0, suspect=1)
    assert some.shares(2) == some.shares(2, client=OTHER) == {1: 2}
    assert some.health.failed_for == {}, "the backend was at fault"
    some.set(1, suspect=1)
    assert some.shares(2) == {2: 2}, "a good backup comes before suspects"
    some.set(2, suspect=1)
    assert some.shares(3) == {0: 1, 1: 1, 2: 1}
    some.set(0, suspect=0)
    assert some.shares(2) == {0: 2}


@pytest.mark.parametrize(("silent", "event"), [(2.4, balancer.SKIPPED_ALONE), (2.6, balancer.SKIPPED)])
def test_a_checker_without_a_heartbeat_counts_as_none(silent, event):
    some = Some(1, 1)
    some.region.cells[some.region.beat_cell(some.region.slots)] = 100_000
    assert some.fail(0, 100.0 + silent) == event


def test_fields_that_shared_memory_of_an_earlier_version_lacks_are_not_used():
    """A worker that is replaced after a failed reload has the shared memory of the program before."""
    some = Some(1, 1)
    record = copy.deepcopy(some.region.record)
    record["fields"]["state"].remove("suspect")
    record["fields"]["target"].remove("slow")
    region = shared_memory.Region(record)
    old = balancer.Backends(some.service, "ipv4", region, 0)
    old.report_slow(0, 1.0)
    assert old.failed(CLIENT, 0, errno.ETIMEDOUT, 1.0, True) == balancer.SKIPPED
    assert old.next(OTHER, (), 1.0) == 1
    assert region.latest_of_all("slow") == [0, 0]
    region.close()


@pytest.mark.parametrize("on_all_down", ["refuse", "try_all"])
def test_a_backend_that_the_config_disables_is_never_tried(on_all_down):
    some = Some(1, 1, 1, disabled=[0], backups=[1], on_all_down=on_all_down)
    assert some.shares(2) == {2: 2}
    some.set(2, health=shared_memory.DOWN)
    assert some.shares(2) == {1: 2}
    for index in range(3):
        some.set(index, health=shared_memory.BROKEN)
    assert some.next(CLIENT, (1, 2), 1.0) is None
    alone = Some(1, disabled=[0], on_all_down=on_all_down)
    assert alone.next(CLIENT, (), 1.0) is None
    assert alone.refusal() == balancer.NONE_UP


def test_when_all_backends_fail_all_are_tried():
    some = Some(1, 1, 1, **UNCHECKED)
    for index in range(3):
        some.fail(index, 0.0)
    assert {some.next(CLIENT, (), 1.0) for _turn in range(3)} == {0, 1, 2}


def test_an_error_of_this_host_does_not_count_against_a_backend_and_one_that_returns_gets_no_burst():
    some = Some(1, 1)
    assert some.failed(CLIENT, 0, errno.EMFILE, 1.0, False) is None
    assert some.health.failed_for == {}
    assert some.region.total("target", "failed_local", 0) == 1
    for _turn in range(50):
        assert some.next(CLIENT, (0,), 0.0) == 1
    assert some.shares(4) == {0: 2, 1: 2}


@pytest.mark.parametrize("state", [shared_memory.BROKEN, shared_memory.DOWN])
def test_a_backend_that_is_down_or_broken_gets_nothing_until_it_is_up(state):
    some = Some(1, 1, 1)
    assert some.shares(6) == {0: 2, 1: 2, 2: 2}
    some.set(1, health=state)
    assert some.shares(6) == {0: 3, 2: 3}
    some.set(1, health=shared_memory.UP)
    assert some.shares(6) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(("on_all_down", "taken"), [("refuse", {None: 4}), ("try_all", {0: 2, 1: 2})])
def test_on_all_down_decides_when_all_backends_are_down(on_all_down, taken):
    some = Some(1, 1, on_all_down=on_all_down)
    for index in (0, 1):
        some.set(index, health=shared_memory.DOWN)
    assert some.shares(4) == taken
    assert on_all_down != "refuse" or some.refusal() == balancer.NONE_UP


def test_the_weight_of_an_operator_replaces_the_configs():
    some = Some(1, 1)
    for weight, taken in ((3, {0: 3, 1: 1}), (0, {0: 2, 1: 2})):
        some.set(0, weight=weight)
        assert some.shares(4) == taken


@pytest.mark.parametrize("balance", sorted(algorithms.ALGORITHMS))
def test_the_word_of_an_agent_counts_and_a_weight_of_0_is_no_division(balance):
    some = Some(2, 2, balance=balance, health=HealthCheck(enabled=False, agent=HealthAgent(9707)))

    def served(word):
        agent_state.write(some.region, 0, word)
        some.region.advance(shared_memory.EPOCH_HEALTH)
        found = Counter()
        for number in range(1, 201):
            found += some.shares(client=f"203.0.113.{number}")
        return found

    for word in ("down", "stopped", "fail"):
        assert served(AgentWord(word)) == {1: 200}
    for word in (AgentWord("", "drain"), AgentWord("", "maint"), AgentWord(percent=0)):
        assert served(word) == {1: 200}
    even, less = served(AgentWord("up")), served(AgentWord("up", "ready", 25))
    assert even[0] == pytest.approx(100, abs=30)
    assert balance == "least_connections" or less[0] == pytest.approx(40, abs=25)
    some.set(1, admin=shared_memory.MAINTENANCE)
    assert served(AgentWord("down")) == {None: 200}
    assert served(AgentWord("", "", 1)) == {0: 200}


@pytest.mark.parametrize("options", [{}, UNCHECKED], ids=["checked", "unchecked"])
def test_when_all_return_paths_are_broken_each_client_still_tries(options):
    """A bogon filter drops the probes but not the clients' packets; a broken path drops both."""
    some = Some(1, 1, **options)
    for index in (0, 1):
        some.set(index, health=shared_memory.BROKEN)
    assert some.shares(4) == {0: 2, 1: 2}
    for index in (0, 1):
        some.fail(index, 10.0)
    assert some.shares(4, now=11.0, client=OTHER) == {0: 2, 1: 2}, "a failure of another client says nothing"
    assert some.shares(4, now=11.0) == {0: 2, 1: 2}, "no other backend is left"


@pytest.mark.parametrize("state", [shared_memory.DRAINING, shared_memory.MAINTENANCE])
@pytest.mark.parametrize("on_all_down", ["refuse", "try_all"])
def test_a_drained_backend_gets_nothing_whatever_on_all_down_says(state, on_all_down):
    some = Some(1, 1, on_all_down=on_all_down)
    some.set(0, admin=state)
    assert some.shares(4) == {1: 4}
    some.set(1, admin=state)
    assert some.shares(4) == {None: 4}
    some.set(0, admin=shared_memory.READY)
    assert some.shares(4) == {0: 4}


def test_a_backup_is_used_only_while_no_other_backend_is():
    some = Some(1, 1, 1, backups=[2], **UNCHECKED)
    assert some.shares(4) == {0: 2, 1: 2}
    some.set(0, health=shared_memory.DOWN)
    assert some.shares(2) == {1: 2}
    some.fail(1, 1.0)
    assert some.shares(2, now=1.5) == {2: 2}, "the checker has not yet seen the last one fail"
    some.set(1, health=shared_memory.DOWN)
    assert some.shares(2) == {2: 2}
    some.set(0, health=shared_memory.UP)
    assert some.shares(2) == {0: 2}


@pytest.mark.parametrize("balance", sorted(algorithms.ALGORITHMS))
def test_a_tier_serves_only_while_no_backend_of_a_lower_priority_does(balance):
    some = Some(1, 1, 1, 1, 1, priorities=(9, 0, 3, 0, None), balance=balance, **UNCHECKED)
    served = (({1, 3, 4}, ()), ({2}, (1, 3, 4)), ({0}, (2,)))
    down = []
    for expected, fallen in served:
        for index in fallen:
            some.set(index, health=shared_memory.DOWN)
            down.append(index)
        assert {index for n in range(64) for index in some.shares(client=f"203.0.113.{n}")} == expected
    some.set(2, health=shared_memory.UP)
    some.fail(2, 1.0)
    assert some.shares(2, now=1.5) == {0: 2}, "the next tier, while the checker has not yet seen it fail"
    some.set(4, health=shared_memory.UP)
    assert some.shares(2, now=1.5) == {4: 2}


def test_a_full_tier_overflows_into_the_next_and_a_backup_is_after_all_priorities():
    some = Some(1, 1, 1, 1, priorities=(None, 255, None, 1), backups=[2], limits={0: 1, 1: 1, 2: 1, 3: 1})
    assert [some.next(CLIENT, (), 1.0) for _connection in range(5)] == [0, 3, 1, 2, None]
    assert some.refusal() == balancer.ALL_FULL


def test_a_full_backend_is_skipped_and_when_all_are_full_the_client_is_refused():
    some = Some(1, 1, limits={0: 1, 1: 2})
    held = [some.next(CLIENT, (), 1.0) for _connection in range(3)]
    assert sorted(held) == [0, 1, 1]
    assert some.next(CLIENT, (), 1.0) is None
    assert some.refusal() == balancer.ALL_FULL
    some.release(0)
    assert some.next(CLIENT, (), 1.0) == 0
    for index in (0, 1):
        some.set(index, suspect=1)
    assert (some.next(CLIENT, (), 1.0), some.refusal()) == (None, balancer.ALL_FULL), "suspects may be full, too"


def test_max_connections_and_least_connections_count_all_workers():
    some = Some(1, limits={0: 2})
    assert (some.sibling.next(CLIENT, (), 1.0), some.next(CLIENT, (), 1.0)) == (0, 0)
    assert some.next(CLIENT, (), 1.0) is some.sibling.next(CLIENT, (), 1.0) is None
    some.sibling.release(0)
    assert some.next(CLIENT, (), 1.0) == 0
    some = Some(1, 1, balance="least_connections")
    assert [some.sibling.next(CLIENT, (), 1.0) for _connection in range(2)] == [0, 1]
    some.sibling.release(1)
    assert some.next(CLIENT, (), 1.0) == 1


def test_only_a_recovered_backend_ramps_up_to_its_weight():
    some = Some(100, 100, slow_start=10.0)
    assert some.shares(100, now=1.0) == {0: 50, 1: 50}, "the clock counts from boot, which may be a second ago"
    some.set(0, health=shared_memory.UP, recovered=1_000_000)
    parts = [some.shares(1000, now=1000.0 + age).get(0, 0) for age in (0.0, 2.5, 5.0, 10.0)]
    expected = [1000 * part / (1 + part) for part in (balancer.RAMP_FLOOR, 0.25, 0.5, 1.0)]
    assert parts == pytest.approx(expected, abs=3)


def test_connections_bytes_and_latencies_are_counted():
    some = Some(1, 1)
    index = some.next(CLIENT, (), 1.0)
    total = some.region.total
    assert total("target", "active", index) == 1
    some.connected(CLIENT, index, 0.0007, 1.5)
    some.add_bytes(index, 10, 20)
    some.release(index)
    values = [total("target", name, index) for name in ("active", "connections", "bytes_to_backend", "bytes_to_client")]
    assert values == [0, 1, 10, 20]
    assert some.region.latest("succeeded", index) == 1500
    assert total("target", "latency_2", index) == 1, "0.5 to 1 ms"
    assert total("target", "connect_microseconds", index) == 700
