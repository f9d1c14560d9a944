# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of a service and of its clients, and that their memory is bounded."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission.limits import (
    PER_CLIENT,
    RATE,
    Limiter,
    Rate,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Limits, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import (
    client_tables,
    shared_memory,
    totals,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.service_counters import ServiceCounters
from hypothesis import given
from hypothesis import strategies as st


def make_limiter(total=0, **limits):
    """The limiter of a single worker."""
    return Limiter(Limits(**limits), lambda: total, lambda _kind: client_tables.unshared())


def test_a_client_at_its_limit_gets_another_connection_when_one_ends():
    limiter = make_limiter(connections_per_client=2)
    assert [limiter.admit("203.0.113.7", 0) for _connection in range(3)] == [None, None, PER_CLIENT]
    assert limiter.admit("203.0.113.8", 0) is None
    limiter.release("203.0.113.7")
    assert [limiter.admit("203.0.113.7", 0) for _connection in range(2)] == [None, PER_CLIENT]


def test_ipv6_addresses_of_one_64_are_one_client_and_clients_without_connections_are_forgotten():
    limiter = make_limiter(connections_per_client=1)
    assert limiter.admit("2001:db8:1:2::1", 0) is None
    assert limiter.admit("2001:db8:1:2:ffff::1", 0) == PER_CLIENT
    assert limiter.admit("2001:db8:1:3::1", 0) is None
    for address in ("2001:db8:1:2::1", "2001:db8:1:3::1"):
        limiter.release(address)
    for number in range(300):
        address = f"203.0.113.{number % 256}"
        assert limiter.admit(address, 0) is None
        limiter.release(address)
    assert limiter._per_client == {}


@pytest.mark.parametrize(("total", "full"), [(9, False), (10, True), (11, True)])
def test_a_service_is_full_when_all_workers_together_have_its_connections(total, full):
    assert make_limiter(total, connections=10).full is full


def test_without_a_limit_no_client_is_refused():
    limiter = make_limiter(10**9, rate_per_client=1000.0)
    assert not limiter.full
    assert {limiter.admit("203.0.113.7", 0) for _connection in range(900)} == {None}


def test_a_rate_admits_one_seconds_worth_at_once_and_then_its_rate():
    limiter = make_limiter(rate_per_client=5.0)
    assert [limiter.admit("203.0.113.7", 100.0) for _connection in range(6)] == [None] * 5 + [RATE]
    assert limiter.admit("203.0.113.7", 100.1) == RATE
    assert limiter.admit("203.0.113.7", 100.25) is None


@given(st.floats(0.1, 100), st.lists(st.floats(0, 2), max_size=200))
def test_no_client_gets_more_than_its_rate(rate, pauses):
    bucket, now, admitted = Rate(rate, client_tables.unshared()), 0.0, 0
    for pause in pauses:
        now += pause
        admitted += bucket.admit(7, now)
    assert admitted <= max(1.0, rate) + now * rate + 1e-3


@pytest.fixture
def two_workers():
    """The limiters of two workers of one region."""
    regions = []

    def make(**limits):
        config = Config(proxy_id=1, services=(Service("web", (), (), limits=Limits(**limits)),))
        regions.append(shared_memory.Region(shared_memory.describe(config, 2)))
        counters = [ServiceCounters(regions[-1], slot, "web") for slot in range(2)]
        return [Limiter(Limits(**limits), one.total, one.client_numbers) for one in counters], regions[-1]

    yield make
    for region in regions:
        region.cells.release()


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8:1:2::1", "::1"])
def test_connections_of_a_client_in_another_worker_count(two_workers, address):
    (one, two), _region = two_workers(connections_per_client=3)
    assert [limiter.admit(address, 0) for limiter in (one, two, one, two)] == [None, None, None, PER_CLIENT]
    one.release(address)
    assert [limiter.admit(address, 0) for limiter in (two, one)] == [None, PER_CLIENT]
    assert two.admit("203.0.113.8", 0) is None


def test_connections_of_a_dead_worker_are_forgotten(two_workers):
    (one, two), region = two_workers(connections_per_client=1)
    assert [limiter.admit("203.0.113.7", 0) for limiter in (one, two)] == [None, PER_CLIENT]
    region.reset_gauges(0)
    assert two.admit("203.0.113.7", 0) is None


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8:1:2::1"])
def test_connections_of_a_client_in_old_generations_count_until_their_worker_has_ended(two_workers, address):
    (old, other), before = two_workers(connections_per_client=2)
    for slot, limiter in enumerate((old, other)):
        limiter.admit(address, 0)
        before.cells[before.cell(slot, "service", "sessions")] = 1
    (new, _other), after = two_workers(connections_per_client=2)

    def left():
        admitted = 0
        while new.admit(address, 0) is None:
            admitted += 1
        for _time in range(admitted):
            new.release(address)
        return admitted

    assert left() == 2, "the control: nothing is published yet"
    for others, options, admitted in (
        ([before], (), 0),
        ([before], (before, {0}), 1),  # in place: that worker's are in the new region already
        ([], (), 2),
        ([before], (), 0),
    ):
        totals.publish_elsewhere(after, others, *options)
        assert left() == admitted
    assert new.admit("203.0.113.8", 0) is None
    before.reset_gauges(1)  # the supervisor does it when a worker has ended
    totals.publish_elsewhere(after, [before])
    assert left() == 1
    old.release(address)
    totals.publish_elsewhere(after, [before])
    assert left() == 2


def test_a_region_of_version_0_1_0_has_no_room_for_clients_of_old_generations():
    config = Config(proxy_id=1, services=(Service("web", (), (), limits=Limits(connections_per_client=1)),))
    record = shared_memory.describe(config, 2)
    new = shared_memory.Region(record)
    del record["clients_elsewhere"]
    old = shared_memory.Region(record)
    assert [old.beat_cell(slot) for slot in range(3)] == [new.beat_cell(slot) for slot in range(3)]
    totals.publish_elsewhere(old, [new])
    assert ServiceCounters(old, 0, "web").client_numbers("held").elsewhere(7) == [0]
    assert ServiceCounters(new, 0, "web").client_numbers("held").elsewhere(7) == [0]
    for region in (new, old):
        region.close()


def test_workers_share_the_rate_of_a_client(two_workers):
    workers, _region = two_workers(rate_per_client=5.0)
    assert [workers[turn % 2].admit("203.0.113.7", 100.0) for turn in range(6)] == [None] * 5 + [RATE]
    assert [limiter.admit("203.0.113.7", 100.2) for limiter in workers] == [None, RATE]


def test_a_flood_of_addresses_keeps_the_latest():
    """The table bounds the memory. In a full set, the client whose bucket is full first is forgotten first."""
    bucket = Rate(1.0, client_tables.unshared())
    for number in range(1, 200_000):
        assert bucket.admit(number, number / 1000)
    assert not bucket.admit(199_999, 200.0)
