# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a backend that flaps is paused, when that is forgotten, and how many are kept out at once."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import balancer, flapping
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tables import rows

from .simulation import HEALTH, REFUSED, V6, B, C, service
from .some_backends import CLIENT, Some

PAUSE, LONGEST = 10.0, 60.0
DAMPED = dataclasses.replace(HEALTH, flap_pause=PAUSE, flap_pause_max=LONGEST)

# The outages: seconds that the target has been back before each (counted from the end of its pause; negative: during
# the pause), and the pauses after them.
TEST_PAUSES = [
    ("the first outage", [], [0]),
    ("twice as long each time, up to the longest", [1, 1, 1, 1, 1], [0, 10, 20, 40, 60, 60]),
    ("just soon enough", [59], [0, 10]),
    ("no longer soon", [60], [0, 0]),
    ("one is forgotten", [1, 1, 1, 60], [0, 10, 20, 40, 20]),
    ("one, and then another one", [1, 1, 1, 60, 1], [0, 10, 20, 40, 20, 40]),
    ("all are forgotten", [1, 1, 1, 180, 1], [0, 10, 20, 40, 0, 10]),
    ("many that reached the longest pause are forgotten as fast", [1] * 50 + [240], [0, 10, 20, 40] + [60] * 47 + [0]),
    ("during the pause", [1, -5, -5], [0, 10, 20, 40]),
    ("a long way down does not forget", [1, 1], [0, 10, 20]),
]


@pytest.mark.parametrize(("times", "pauses"), **rows(TEST_PAUSES))
def test_the_pause_after_each_outage(times, pauses):
    flaps, now, found = flapping.Flaps(PAUSE, LONGEST), 1000.0, []
    for seconds in [*times, None]:
        flaps.went_down(now)
        assert flaps.back_at == 0
        now += 5000.0  # down
        found.append(flaps.came_back(now))
        assert flaps.back_at == now + found[-1]
        if seconds is not None:
            now = flaps.back_at + seconds
    assert found == pauses


@given(st.lists(st.floats(0, 500), max_size=300), st.floats(0.1, 86400), st.floats(1, 86400))
def test_a_pause_is_never_longer_than_the_longest_and_is_forgotten_for_good(times, pause, longest):
    flaps, now = flapping.Flaps(pause, max(pause, longest)), 1000.0
    for seconds in times:
        flaps.went_down(now)
        assert 0 <= flaps.came_back(now) <= flaps.longest
        now = flaps.back_at + seconds
    assert flaps.remembered(now + 25 * flaps.longest) == 0


SUSPECT, PAUSED, WORSE = (True, 0), (False, 1), (False, 3)

# Those in doubt, max_out, how many backends there are and how many of them are unusable: which ones are kept out.
TEST_KEPT_OUT = [
    ("no cap", {0: SUSPECT, 1: PAUSED, 2: WORSE}, None, 3, 0, {0, 1, 2}),
    ("suspects first, then those that flap most", {0: PAUSED, 1: WORSE, 2: SUSPECT}, 50, 4, 0, {1, 2}),
    ("rounded down", {0: SUSPECT, 1: PAUSED}, 34, 3, 0, {0}),
    ("less than one", {0: SUSPECT, 1: PAUSED}, 33, 3, 0, set()),
    ("nothing", {0: SUSPECT, 1: PAUSED}, 0, 4, 0, set()),
    ("everything", {0: SUSPECT, 1: PAUSED}, 100, 2, 0, {0, 1}),
    ("what is down counts", {0: PAUSED, 1: WORSE}, 50, 6, 2, {1}),
    ("more is down than may be out", {0: SUSPECT, 1: PAUSED}, 50, 6, 4, set()),
]


@pytest.mark.parametrize(("doubts", "most", "ready", "unusable", "expected"), **rows(TEST_KEPT_OUT))
def test_caution_keeps_out_no_more_than_permitted(doubts, most, ready, unusable, expected):
    assert flapping.kept_out(doubts, most, ready, unusable) == expected


def test_a_paused_backend_is_used_only_while_no_other_is_and_then_before_a_suspect():
    some = Some(1, 1, 1, backups=[2], health=HealthCheck(flap_pause=5.0))
    assert some.shares(4, now=100.0) == {0: 2, 1: 2}
    some.set(0, back_at=110_000, flaps=1)
    assert some.shares(4, now=101.0) == {1: 4}
    some.set(1, suspect=1)
    assert some.shares(4, now=102.0) == {2: 4}, "the backup"
    some.set(2, health=shared_memory.DOWN)
    assert some.shares(4, now=103.0) == {0: 4}
    assert [some.next(CLIENT, tried, 103.0) for tried in ((), (0,), (0, 1))] == [0, 1, None]
    some.set(1, suspect=0)
    assert some.shares(4, now=109.9) == {1: 4}
    assert some.shares(4, now=110.0) == {0: 2, 1: 2}, "by the clock: the checker may hang"
    some.set(0, back_at=120_000)
    some.set(1, back_at=120_000)
    assert some.shares(4, now=111.0) == {0: 2, 1: 2}, "nobody is refused because of a pause"


def test_a_pause_has_no_effect_after_the_config_has_none():
    some = Some(1, 1)
    some.set(0, back_at=110_000, flaps=1)
    assert some.shares(4, now=101.0) == {0: 2, 1: 2}


@pytest.mark.parametrize(
    ("most", "serving"), [(None, {3}), (100, {3}), (50, {0, 3}), (25, {0, 1, 3}), (0, {0, 1, 2, 3})]
)
def test_max_out_lets_the_least_doubtful_backends_serve(most, serving):
    some = Some(1, 1, 1, 1, health=HealthCheck(flap_pause=5.0, max_out=most))
    some.set(0, back_at=110_000, flaps=1)
    some.set(1, back_at=110_000, flaps=2)
    some.set(2, suspect=1)
    assert set(some.shares(12, now=101.0)) == serving


@pytest.mark.parametrize("state", [shared_memory.DOWN, shared_memory.BROKEN])
def test_max_out_counts_what_health_checks_keep_out_and_lets_none_of_it_in(state):
    some = Some(1, 1, 1, 1, health=HealthCheck(max_out=50))
    some.set(0, suspect=1)
    assert set(some.shares(12)) == {1, 2, 3}
    for index in (1, 2):
        some.set(index, health=state)
    assert set(some.shares(12)) == {0, 3}
    some.set(3, health=state)
    assert set(some.shares(12)) == {0}


def test_a_slow_start_begins_when_the_pause_ends():
    some = Some(100, 100, slow_start=10.0, health=HealthCheck(flap_pause=5.0))
    some.set(0, health=shared_memory.UP, recovered=1_000_000, back_at=1_005_000, flaps=1)
    assert some.shares(100, now=1004.9) == {1: 100}
    parts = [some.shares(1000, now=1005.0 + age).get(0, 0) for age in (0.0, 5.0, 10.0)]
    assert parts == pytest.approx([1000 * part / (1 + part) for part in (balancer.RAMP_FLOOR, 0.5, 1.0)], abs=3)


def flap(run, network, *addresses):
    """Let targets go down and their checks succeed again."""
    network.says = {(address, True): REFUSED for address in addresses}
    run.turn(HEALTH.fall * HEALTH.interval)
    network.says = {}
    run.turn(HEALTH.rise * HEALTH.interval)


def published(run, number=0):
    """(flaps, seconds until it is back) of a target."""
    return run.region.state("flaps", number), max(0.0, run.region.state("back_at", number) / 1000 - run.time)


def test_the_checker_publishes_the_pauses_of_a_backend_that_flaps_and_logs_them(network, start):
    run = start(service(B, C, V6, health=DAMPED), service(B, name="undamped"), turn=6.0)
    flap(run, network, B)
    assert published(run) == (0, 0)
    flap(run, network, B, V6)
    count, seconds = published(run)
    assert count == 1
    assert PAUSE - 3 < seconds < PAUSE
    assert run.states() == ["up"] * 4, "what the checks say is not changed"
    assert [published(run, number) for number in (1, 2, 3)] == [(0, 0)] * 3
    (line,) = run.log.named("backend paused")
    assert (line["backend"], line["family"], line["seconds"], line["flaps"]) == ("b0", "ipv4", PAUSE, 1)
    assert (line["level"], line["reason"]) == ("warning", "it went down once shortly after it had come back")
    assert run.log.named("backend pause ended") == []
    run.turn(PAUSE)
    assert [line["backend"] for line in run.log.named("backend pause ended")] == ["b0"]
    flap(run, network, B)
    assert published(run)[0] == 2


@pytest.mark.parametrize(("options", "longest"), [({}, PAUSE), ({"flap_pause": 2.0, "flap_pause_max": 3.0}, 3.0)])
def test_the_next_checker_goes_on_with_a_pause_which_is_no_longer_than_its_config_allows(
    network, start, options, longest
):
    run = start(service(B, C, health=DAMPED), turn=6.0)
    flap(run, network, B)
    flap(run, network, B)
    before = published(run)
    health = dataclasses.replace(DAMPED, **options)
    successor = start(service(B, C, health=health), region=shared_memory.Region(run.region.record))
    successor.region.inherit(run.region, (service(B, C),))
    successor.time = run.time
    successor.checker._queue.clear()
    successor.checker._resume()
    assert published(successor) == (1, pytest.approx(min(before[1], longest), abs=0.01))
    successor.turn(longest + 1)
    assert len(successor.log.named("backend pause ended")) == 1


def operate(run, state):
    run.region.set_state("admin", 0, state)
    run.region.advance(shared_memory.EPOCH_ADMIN)


def test_an_operator_who_takes_a_backend_out_ends_its_pause_and_forgets_its_flaps(network, start):
    run = start(service(B, C, health=DAMPED), turn=6.0)
    flap(run, network, B)
    flap(run, network, B)
    epoch = run.region.cells[shared_memory.EPOCH_HEALTH]
    operate(run, shared_memory.MAINTENANCE)
    run.turn(1.0)
    assert published(run) == (0, 0)
    assert run.region.cells[shared_memory.EPOCH_HEALTH] == epoch + 1, "workers have to read it"
    flap(run, network, B)
    flap(run, network, B)
    operate(run, shared_memory.READY)
    assert published(run) == (0, 0), "an outage in maintenance is no flap"
    flap(run, network, B)
    assert published(run)[0] == 1


def test_shared_memory_of_an_earlier_version_has_no_pauses(network, start):
    record = start(service(B)).region.record
    record = {**record, "fields": {**record["fields"], "state": [*record["fields"]["state"]]}}
    record["fields"]["state"].remove("back_at")
    run = start(service(B, health=DAMPED), region=shared_memory.Region(record), turn=6.0)
    flap(run, network, B)
    flap(run, network, B)
    assert run.log.named("backend paused") == []


def test_a_backend_that_the_config_disables_does_not_flap(network, start):
    web = service(B, C, health=DAMPED)
    disabled = dataclasses.replace(web.backends[0], enabled=False)
    run = start(dataclasses.replace(web, backends=(disabled, *web.backends[1:])), turn=6.0)
    flap(run, network, B)
    flap(run, network, B)
    assert published(run) == (0, 0)
