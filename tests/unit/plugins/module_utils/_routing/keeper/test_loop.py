# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's loop: what it restores at the start, waits for, repairs, counts and reports."""

from __future__ import annotations

import json
import signal

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import schedule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import Interest

from ..fakes import RETURN_PATH


def test_an_unknown_mac_is_waited_for_with_everything_else_in_place_and_a_new_one_is_followed(world, host):
    world.store({**RETURN_PATH, "marks": [{**RETURN_PATH["marks"][0], "mac": None}]})
    for second, mac in ((30, "02:00:00:00:00:11"), (40, "02:00:00:00:0a:0a")):
        neighbours = {"198.18.0.11": mac}
        world.at(second, lambda neighbours=neighbours: setattr(host.kernel, "neighbours", neighbours), ["neighbour"])
    world.observe(29, lambda: (len(host.kernel.held_rules), world.statuses[-1]))
    world.observe(31, lambda: (world.repairs, world.statuses[-1].partition(":")[0]))
    world.keep(41)
    waiting = "return_path: waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet"
    assert world.observed == [(2, waiting), (0, "keeping return_path")]
    assert "02:00:00:00:0a:0a" in json.dumps(host.nft.tables)
    assert world.state["repairs"]["by_kind"] == {"marks": 1}


def test_what_is_missing_at_the_start_is_restored_and_is_no_repair(world, host):
    world.keep(1)
    assert len(host.kernel.held_rules) == 2
    assert world.passes == [0.0]
    assert (world.state["restored_at_start"], world.repairs) == (5, 0)
    shown = world.state_file._time(world.state_file.clock() - 1)
    assert world.statuses == [f"keeping return_path: in place since {shown}"]


def test_systemd_is_notified_of_readiness_after_the_first_pass_whatever_is_missing(world):
    """The network, which may bring what is missing, starts after the keeper."""
    world.lose_links()
    world.keep(20)
    assert world.sent.count("READY=1") == 1
    assert world.sent.index("READY=1") < 2
    assert world.state["documents"]["return_path"]["state"] == "waiting"


def test_what_needs_no_link_is_in_place_before_the_links_and_the_rest_is_no_repair(world, host):
    """So the host fails closed from the first packet on."""
    world.at(10, world.lose_links(), ["address"])
    world.observe(5, lambda: (len(host.kernel.held_rules), host.kernel.held_routes, set(host.nft.tables)))
    world.keep(20)
    assert world.observed == [(2, [], {"l4proxy_return_path"})]
    assert len(host.kernel.held_routes) == 1
    assert (world.repairs, world.state["documents"]["return_path"]["state"]) == (0, "in place")
    assert world.state["restored_at_start"] == 5, "a setting, two rules, marks, and the route"


def test_what_is_in_place_stays_while_its_link_is_away(world, host):
    near = dict(host.kernel.near)
    world.at(5, host.kernel.near.clear)
    world.observe(8, lambda: len(host.kernel.held_routes))
    world.at(9, lambda: host.kernel.near.update(near))
    world.keep(20)
    assert world.observed == [1]
    assert world.repairs == 0


def test_the_monitor_is_told_which_objects_matter(world):
    world.keep(1)
    names = frozenset({"l4proxy_return_path", "L4PROXY_RETURN_PATH_"})
    sets = (frozenset({202}), frozenset({20111}), frozenset({"198.18.0.11"}), frozenset({"eth0"}), names)
    assert world.interests == [Interest(*sets, before=1101)]


def test_waiting_backs_off_and_the_status_line_names_what_is_missing(world):
    world.at(20, world.lose_links(), [])
    world.keep(40)
    assert world.passes == [0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4]
    assert world.interests[0].anything
    assert not world.interests[-1].anything
    assert world.statuses[0] == "return_path: waiting for 198.18.0.11 to be on-link"
    assert world.statuses[1].startswith("keeping return_path: in place")
    assert world.repairs == 0


def test_a_notification_ends_the_waiting(world, host):
    world.at(10, world.lose_links(), ["link"])
    world.keep(11)
    assert world.passes[-1] == pytest.approx(10 + schedule.QUIET)
    assert len(host.kernel.held_rules) == 2


def test_what_was_removed_is_restored_counted_and_reported(world, host):
    world.at(100.0, world.lose_rules)
    world.keep(101)
    assert len(host.kernel.held_rules) == 2
    state = world.state
    assert state["repairs"] == {"total": 1, "by_kind": {"rule": 2}}
    assert state["last_repair"]["at"] == "2026-11-24T12:01:40.010Z"
    assert state["last_repair"]["seconds"] == pytest.approx(schedule.QUIET, abs=1e-3)
    assert state["last_repair"]["changes"][0].startswith("add ip rule 1101:")
    shown = world.state_file._time(world.state_file.clock() - 0.99)
    expected = f"in place since {shown}; 1 repair, last {shown} add ip rule 1101: from all fwmark 0xb/0xff unreachable"
    assert world.statuses[-1] == f"keeping return_path: {expected} and 1 more"


def flush_legacy(world):
    world.host.nft.tables.clear()
    world.legacy_fingerprint = (b"another",)


# How something is changed without a notification, when the keeper must have found it, and its passes until then.
SILENT_CHANGES = {
    "setting": (7, lambda world: world.host.redirects.write_text("1\n"), 20, [0.0, 7.01]),
    "iptables-legacy, confirmed by another pass": (7.5, flush_legacy, 20, [0.0, 8.01, 9.02]),
    "nftables": (10, lambda world: world.host.nft.tables.clear(), 61, [0.0, 60.0]),
}


@pytest.mark.parametrize(("second", "change", "until", "passes"), SILENT_CHANGES.values(), ids=SILENT_CHANGES)
def test_a_change_without_a_notification_is_found_and_restored(world, host, second, change, until, passes):
    world.at(second, lambda: change(world), [])
    world.keep(until)
    assert (host.redirects.read_text(), bool(host.nft.tables)) == ("0", True)
    assert world.passes == passes
    assert world.state["last_repair"]["seconds"] is None


def test_a_repair_that_was_blocked_for_a_while_is_counted(world, host):
    near = host.kernel.near

    def down():
        host.kernel.near, host.kernel.held_routes = {}, []

    world.at(10, down, ["link"])
    world.at(12, lambda: setattr(host.kernel, "near", near), ["link"])
    world.keep(13)
    assert world.state["repairs"] == {"total": 1, "by_kind": {"route": 1}}


def test_sighup_starts_a_pass_and_the_watchdog_is_notified_twice_a_minute(world):
    world.at(3, lambda: world.received.append(signal.SIGHUP), [])
    world.keep(301)
    assert world.passes[:2] == [0.0, 3.0]
    assert 9 <= world.sent.count("WATCHDOG=1") <= 13
