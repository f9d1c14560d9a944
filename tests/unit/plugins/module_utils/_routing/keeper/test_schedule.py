# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often the keeper runs a pass: bursts, floods, repairs that are reverted, and passes that fail."""

from __future__ import annotations

import logging

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import schedule


def test_a_neighbour_notification_starts_a_pass_at_once_and_a_burst_of_others_starts_one(world):
    world.at(5, kinds=["neighbour"])
    world.repeat(8, 10, 0.001)
    world.keep(11)
    assert (world.passes[:2], len(world.passes)) == ([0.0, 5.0], 3)


def test_a_flood_of_notifications_neither_delays_a_repair_nor_starts_many_passes(world):
    world.repeat(400, 10, 0.005)
    world.at(11, world.lose_rules)
    world.keep(13)
    assert len(world.passes) < 12
    assert world.state["last_repair"]["at"] < "2026-11-24T12:00:12.1Z"


def test_a_repair_that_is_always_reverted_is_made_twice_a_second_and_logged_rarely(world, host, caplog):
    world.repeat(1000, 10, 0.1, world.lose_rules)
    with caplog.at_level(logging.WARNING):
        world.keep(110.6)
    assert 150 <= world.repairs <= 210
    assert len(host.kernel.held_rules) == 2
    assert world.state["undone"] == world.repairs - 1
    assert "the repair was reverted" in world.statuses[-1]
    assert "the repair was reverted 3 times in a row; the next one waits 0.5 s" in caplog.text
    assert caplog.text.count("repaired") < 20


def test_after_minutes_a_reverted_repair_is_made_less_and_less_often(world):
    world.repeat(6000, 10, 0.1, world.lose_rules)
    world.keep(610)
    assert world.passes[-1] - world.passes[-2] == pytest.approx(30, abs=0.2)


def test_reverted_repairs_use_at_most_a_tenth_of_a_core(world):
    world.cost = 0.2
    world.repeat(1000, 10, 0.1, world.lose_rules)
    world.keep(110)
    late = [second for second in world.passes if second > 20]
    assert all(after - before >= 1.9 for before, after in zip(late, late[1:]))


def test_a_setting_that_is_always_reverted_is_repaired_at_each_poll(world, host):
    world.repeat(400, 10, 0.25, lambda: host.redirects.write_text("1\n"), [])
    world.keep(110)
    assert 80 <= world.repairs <= 110
    assert world.state["undone"]


def test_once_repairs_last_again_the_next_one_is_as_quick_as_before(world):
    world.repeat(300, 10, 0.1, world.lose_rules)
    world.at(200, world.lose_rules)
    world.keep(201)
    assert world.passes[-1] == pytest.approx(200 + schedule.QUIET)
    assert world.state["undone"] == 0


def test_a_failing_pass_is_retried_with_a_back_off_that_its_own_notifications_do_not_shorten(world, host):
    host.kernel.fail = "set ip route"
    world.repeat(100, 0.1, 0.1)
    world.at(8, lambda: setattr(host.kernel, "fail", ""), [])
    world.keep(20)
    assert world.passes[:5] == [0.0, 0.2, 0.6, 1.1, 1.6]
    assert [second for second in world.passes if 8 < second < 8.6]
    assert len(host.kernel.held_rules) == 2


def test_a_pass_that_fails_for_long_is_retried_less_and_less_often(world, host):
    host.kernel.fail = "set ip route"
    world.keep(110)
    assert world.passes[-1] - world.passes[-2] == 15.0


def test_an_expensive_pass_is_rare(world):
    world.cost = 0.5
    world.keep(1200)
    assert world.passes == pytest.approx([0.0, 900.0], abs=1)


def test_a_stable_host_is_compared_each_minute_and_read_completely_now_and_then(world):
    world.keep(1000)
    assert world.passes == [0.0, 60.0, 960.0], "the first pass made changes, the second one confirmed them"
    assert world.comparisons == [float(second) for second in range(60, 960, 60)]


def test_a_different_fingerprint_starts_a_pass_and_another_one_confirms_its_changes(world, host):
    world.at(150, host.nft.tables.clear, [])
    world.keep(370)
    assert world.passes == [0.0, 60.0, 180.0, 240.0]
    assert host.nft.tables


def test_fingerprints_are_not_compared_where_iptables_legacy_has_rules(world):
    world.legacy_fingerprint = (b"rules", b"")
    world.keep(200)
    assert world.comparisons == []
    assert len(world.passes) >= 3
