# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's loop with a clock and news of the test's own: what it repairs, counts and tells, how often it looks."""

from __future__ import annotations

import io
import json
import logging
import signal

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import loop, schedule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import Interest, News
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.reconcile_pass import Documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.state_file import Record
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.fakes import RETURN_PATH, FakeHost

# 2026-11-24T12:00:00Z
NOON = 1795521600.0
RULE = (News("rule"),)


class World:
    """A host, time, and what happens at which second: ``at(3.0, action, news)``. It ends at ``until``."""

    sees_processes = False
    signs = ()

    def __init__(self, directory, tmp_path):
        self.host, self.directory = FakeHost(tmp_path), directory
        self.now, self.events, self.received = 0.0, [], []
        self.cost, self.used = 0.0, 0.0
        self.told, self.interests, self.looks, self.kept, self.glances = [], [], [], [], []
        self.record = Record(str(tmp_path / "run" / "state.json"), lambda: NOON + self.now)

    def cpu(self):
        """Each look costs ``cost``: the clock is asked before and after."""
        self.used += self.cost
        return self.used

    def at(self, second, action=lambda: None, news=RULE):
        self.events.append((second, action, list(news)))

    def watch(self, interest):
        self.interests.append(interest)
        self.looks.append(round(self.now, 3))

    def glance(self, _found, _host):
        self.glances.append(round(self.now, 3))
        return repr(self.host.snapshot()).encode()

    def wait(self, seconds):
        assert len(self.looks) < 500, "it looks and looks"
        upcoming = [event for event in self.events if event[0] <= self.now + seconds]
        if not upcoming:
            self.now += seconds
            return []
        event = min(upcoming, key=lambda found: found[0])
        self.events.remove(event)
        self.now = max(self.now, event[0])
        event[1]()
        return event[2]

    def keep(self, until):
        self.at(until, lambda: self.received.append(signal.SIGTERM), [])
        made = loop.Keeper(
            Documents(str(self.directory)),
            self.host.engine,
            self,
            self.record,
            self.told.append,
            lambda: self.now,
            self.cpu,
            self.glance,
        )
        made.run(self.received)

    @property
    def statuses(self):
        return [text[7:] for text in self.told if text.startswith("STATUS=")]

    @property
    def state(self):
        return json.loads((self.host.memory.parent / "run" / "state.json").read_text())

    def lose_rules(self):
        self.host.kernel.held_rules.clear()


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "routing.d"
    path.mkdir()
    (path / "return_path.json").write_text(json.dumps(RETURN_PATH))
    return path


@pytest.fixture
def world(directory, tmp_path):
    return World(directory, tmp_path)


@pytest.fixture
def host(world):
    return world.host


def without_mac(directory):
    data = {**RETURN_PATH, "marks": [{**RETURN_PATH["marks"][0], "mac": None}]}
    (directory / "return_path.json").write_text(json.dumps(data))


# --- the beginning


def test_what_is_missing_at_the_start_is_restored_and_is_no_repair(world):
    world.keep(1)
    assert len(world.host.kernel.held_rules) == 2
    assert world.looks == [0.0]
    assert (world.state["restored_at_start"], world.state["repairs"]["total"]) == (5, 0)
    assert world.statuses == ["keeping return_path: in place since " + world.record._time(NOON)]


def test_systemd_is_told_that_it_is_ready_after_the_first_look(world, host):
    """Whatever is missing: the network, which may bring it, waits for this."""
    host.kernel.near.clear()
    world.keep(20)
    assert world.told.count("READY=1") == 1
    assert world.told.index("READY=1") < 2
    assert world.state["documents"]["return_path"]["state"] == "waiting"


def test_what_needs_no_link_is_there_before_the_links_are(world, host):
    """So that it fails closed from the first packet on; what comes later is no repair."""
    near, host.kernel.near = host.kernel.near, {}
    world.at(10, lambda: host.kernel.near.update(near), [News("address")])
    world.at(
        5, lambda: world.kept.append((len(host.kernel.held_rules), host.kernel.held_routes, set(host.nft.tables))), []
    )
    world.keep(20)
    assert world.kept == [(2, [], {"l4proxy_return_path"})]
    assert len(host.kernel.held_routes) == 1
    assert (world.state["repairs"]["total"], world.state["documents"]["return_path"]["state"]) == (0, "in place")
    assert world.state["restored_at_start"] == 5, "a setting, two rules, marks, and the route"


def test_what_is_in_place_stays_while_its_link_is_away(world, host):
    near = dict(host.kernel.near)
    world.at(5, host.kernel.near.clear)
    world.at(8, lambda: world.kept.append(len(host.kernel.held_routes)), [])
    world.at(9, lambda: host.kernel.near.update(near))
    world.keep(20)
    assert world.kept == [1]
    assert world.state["repairs"]["total"] == 0


def test_it_watches_what_the_documents_are_about(world):
    world.keep(1)
    tables = frozenset({20111})
    expected = Interest(
        frozenset({202}),
        tables,
        frozenset({"198.18.0.11"}),
        frozenset({"eth0"}),
        frozenset({"l4proxy_return_path", "L4PROXY_RETURN_PATH_"}),
        before=1101,
    )
    assert world.interests == [expected]


def test_it_waits_with_a_back_off_and_says_for_what(world, host):
    near, host.kernel.near = host.kernel.near, {}
    world.at(20, lambda: setattr(host.kernel, "near", near), [])
    world.keep(40)
    assert world.looks == [0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4]
    assert world.interests[0].anything
    assert not world.interests[-1].anything
    assert world.statuses[0] == "return_path: waiting for 198.18.0.11 to be on-link"
    assert world.statuses[1].startswith("keeping return_path: in place")
    assert world.state["repairs"]["total"] == 0


def test_news_end_the_waiting(world, host):
    near, host.kernel.near = host.kernel.near, {}
    world.at(10, lambda: setattr(host.kernel, "near", near), [News("link")])
    world.keep(11)
    assert world.looks[-1] == pytest.approx(10 + schedule.QUIET)
    assert len(host.kernel.held_rules) == 2


def test_the_mac_of_a_silent_proxy_is_awaited_with_the_rest_in_place(world, host, directory):
    without_mac(directory)
    world.at(30, lambda: host.kernel.neighbours.update({"198.18.0.11": "02:00:00:00:00:11"}), [News("neighbour")])
    world.keep(31)
    waiting = "return_path: waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet"
    assert world.statuses[0] == waiting
    assert len(host.kernel.held_rules) == 2
    assert world.statuses[-1].startswith("keeping return_path")
    assert world.state["repairs"]["total"] == 0, "what was waited for is no repair"


# --- repairs


def test_what_was_taken_away_is_put_back_and_counted(world, host):
    world.at(100.0, world.lose_rules)
    world.keep(101)
    assert len(host.kernel.held_rules) == 2
    state = world.state
    assert state["repairs"] == {"total": 1, "by_kind": {"rule": 2}}
    assert state["last_repair"]["at"] == "2026-11-24T12:01:40.010Z"
    assert state["last_repair"]["seconds"] == pytest.approx(schedule.QUIET, abs=1e-3)
    assert state["last_repair"]["changes"][0].startswith("add ip rule 1101:")
    shown = world.record._time(NOON + 100.01)
    expected = f"in place since {shown}; 1 repair, last {shown} add ip rule 1101: from all fwmark 0xb/0xff unreachable"
    assert world.statuses[-1] == f"keeping return_path: {expected} and 1 more"


def test_a_proxy_with_a_new_mac_is_followed(world, host, directory):
    without_mac(directory)
    host.kernel.neighbours = {"198.18.0.11": "02:00:00:00:00:11"}
    moved = {"198.18.0.11": "02:00:00:00:0a:0a"}
    world.at(10, lambda: setattr(host.kernel, "neighbours", moved), [News("neighbour")])
    world.keep(11)
    assert "02:00:00:00:0a:0a" in json.dumps(host.nft.tables)
    assert world.state["repairs"]["by_kind"] == {"marks": 1}


def test_a_setting_is_put_back_without_news(world, host):
    world.at(7, lambda: host.redirects.write_text("1\n"), [])
    world.keep(20)
    assert host.redirects.read_text() == "0"
    assert world.looks == [0.0, 7.01]
    assert world.state["last_repair"]["seconds"] is None


def test_what_has_no_news_but_signs_is_put_back(world, host):
    def flush():
        host.nft.tables.clear()
        world.signs = (b"another",)

    world.at(7.5, flush, [])
    world.keep(20)
    assert host.nft.tables
    assert world.looks == [0.0, 8.01, 9.02], "what it has changed itself is looked at once more"


def test_what_has_no_news_is_seen_within_a_minute(world, host):
    world.at(10, host.nft.tables.clear, [])
    world.keep(61)
    assert world.looks == [0.0, 60.0]
    assert host.nft.tables


def test_a_look_that_costs_much_is_rare(world):
    world.cost = 0.5
    world.keep(1200)
    assert world.looks == pytest.approx([0.0, 900.0], abs=1)


def test_at_rest_it_glances_and_reads_everything_now_and_then(world):
    world.keep(1000)
    assert world.looks == [0.0, 60.0, 960.0], "the first look changed something, the second one found it whole"
    assert world.glances == [float(second) for second in range(60, 960, 60)]


def test_a_glance_that_shows_something_else_is_a_look(world, host):
    world.at(150, host.nft.tables.clear, [])
    world.keep(370)
    assert world.looks == [0.0, 60.0, 180.0, 240.0], "what a look has changed is looked at once more"
    assert host.nft.tables


def test_another_document_is_not_what_was_known(world, host, directory):
    """Though the host is as it was when the one before was in place."""
    (directory / "return_path.json").write_text(json.dumps({**RETURN_PATH, "rules": []}))
    world.at(100, lambda: (directory / "return_path.json").write_text(json.dumps(RETURN_PATH)), [])
    world.keep(150)
    assert len(host.kernel.held_rules) == 2
    assert world.looks == [0.0, 60.0, 100.01]


def test_where_iptables_legacy_is_used_there_is_no_glance(world):
    world.signs = (b"rules", b"")
    world.keep(200)
    assert world.glances == []
    assert len(world.looks) >= 3


def test_while_something_retires_there_is_no_glance(world, host, directory):
    host.connections = {11: 1}
    retiring = {**RETURN_PATH["rules"][0], "retiring": True, "retire_at": int(NOON) + 4000}
    data = {**RETURN_PATH, "rules": [retiring, *RETURN_PATH["rules"][1:]]}
    world.at(10, lambda: (directory / "return_path.json").write_text(json.dumps(data)), [])
    world.keep(200)
    assert world.glances == []


def test_systemd_is_told_that_all_is_well_twice_a_minute(world):
    world.keep(301)
    assert 9 <= world.told.count("WATCHDOG=1") <= 13


def test_a_document_that_a_run_has_written_is_read_and_nothing_repaired(world, host, directory):
    def write():
        data = {**RETURN_PATH, "rules": RETURN_PATH["rules"][:1]}
        (directory / "return_path.json").write_text(json.dumps(data))

    world.at(11, write, [])
    world.keep(20)
    assert len(host.kernel.held_rules) == 1
    assert world.state["repairs"]["total"] == 0
    assert world.looks == [0.0, 11.01]


def test_what_retires_leaves_in_time_and_is_no_repair(world, host, directory):
    retiring = {**RETURN_PATH["rules"][0], "retiring": True, "retire_at": int(NOON) + 42}
    world.at(
        10,
        lambda: (directory / "return_path.json").write_text(
            json.dumps({**RETURN_PATH, "rules": [retiring, RETURN_PATH["rules"][1]]})
        ),
        [],
    )
    host.connections = {11: 1}
    world.at(41, lambda: world.kept.append(len(host.kernel.held_rules)), [])
    world.keep(50)
    assert world.kept == [2]
    assert len(host.kernel.held_rules) == 1
    assert world.state["repairs"]["total"] == 0


def test_a_hangup_signal_makes_it_look(world):
    world.at(3, lambda: world.received.append(signal.SIGHUP), [])
    world.keep(4)
    assert world.looks == [0.0, 3.0]


def test_a_repair_that_was_blocked_meanwhile_is_counted(world, host):
    near = host.kernel.near

    def down():
        host.kernel.near, host.kernel.held_routes = {}, []

    world.at(10, down, [News("link")])
    world.at(12, lambda: setattr(host.kernel, "near", near), [News("link")])
    world.keep(13)
    assert world.state["repairs"] == {"total": 1, "by_kind": {"route": 1}}


# --- how often


def test_a_new_mac_is_looked_at_at_once(world, host):
    world.at(5, news=[News("neighbour")])
    world.keep(6)
    assert world.looks == [0.0, 5.0]


def test_a_burst_of_news_is_one_look(world):
    for number in range(8):
        world.at(10 + number * 0.001)
    world.keep(11)
    assert len(world.looks) == 2


def test_news_without_an_end_are_looked_at_all_the_same(world):
    for number in range(400):
        world.at(10 + number * 0.005)
    world.at(11, world.lose_rules)
    world.keep(13)
    assert len(world.looks) < 12, "a flood must not make it look all the time"
    repaired = NOON + 11
    assert world.state["last_repair"]["at"] < f"2026-11-24T12:00:{repaired + 1 - NOON:02.0f}.1Z"


def test_what_is_undone_again_and_again_is_repaired_twice_a_second(world, host, caplog):
    """Nothing tells when it ends, and then the host is whole within a second."""
    for number in range(1000):
        world.at(10 + number * 0.1, world.lose_rules)
    with caplog.at_level(logging.WARNING):
        world.keep(110.6)
    total = world.state["repairs"]["total"]
    assert 150 <= total <= 210
    assert len(host.kernel.held_rules) == 2
    assert world.state["undone"] == total - 1
    assert "what is repaired is undone" in world.statuses[-1]
    assert "undone 3 times in a row, so the next repair waits 0.5 s" in caplog.text
    assert caplog.text.count("repaired") < 20, "a log has an end"


def test_after_minutes_it_is_repaired_ever_less_often(world):
    for number in range(6000):
        world.at(10 + number * 0.1, world.lose_rules)
    world.keep(610)
    assert world.looks[-1] - world.looks[-2] == pytest.approx(30, abs=0.2)


def test_a_fight_costs_a_tenth_of_a_core_at_most(world):
    world.cost = 0.2
    for number in range(1000):
        world.at(10 + number * 0.1, world.lose_rules)
    world.keep(110)
    late = [look for look in world.looks if look > 20]
    assert all(after - before >= 1.9 for before, after in zip(late, late[1:]))


def test_a_fight_over_what_has_no_news_is_no_better(world, host):
    for number in range(400):
        world.at(10 + number * 0.25, lambda: host.redirects.write_text("1\n"), [])
    world.keep(110)
    assert 80 <= world.state["repairs"]["total"] <= 110, "it is seen each second"
    assert world.state["undone"]


def test_after_a_fight_it_is_as_quick_as_before(world):
    for number in range(300):
        world.at(10 + number * 0.1, world.lose_rules)
    world.at(200, world.lose_rules)
    world.keep(201)
    assert world.looks[-1] == pytest.approx(200 + schedule.QUIET)
    assert world.state["undone"] == 0


def test_a_step_that_fails_is_tried_again_and_its_own_news_do_not_hurry_it(world, host):
    host.kernel.fail = "set ip route"
    for number in range(100):
        world.at(0.1 + number * 0.1)
    world.at(8, lambda: setattr(host.kernel, "fail", ""), [])
    world.keep(20)
    assert world.looks[:5] == [0.0, 0.2, 0.6, 1.1, 1.6]
    assert [look for look in world.looks if 8 < look < 8.6], "somebody may have taken away what the step built on"
    assert len(host.kernel.held_rules) == 2


def test_a_step_that_fails_for_long_is_tried_ever_less_often(world, host):
    host.kernel.fail = "set ip route"
    world.keep(110)
    assert world.looks[-1] - world.looks[-2] == 15.0


# --- what is wrong


def test_a_bad_document_is_named_and_the_others_are_kept(world, host, directory):
    bad = {"schema": 1, "owner": "local_delivery", "protocol": 201, "rules": [{}], "x": 1}
    (directory / "local_delivery.json").write_text(json.dumps(bad))
    world.keep(1)
    assert len(host.kernel.held_rules) == 2
    path = directory / "local_delivery.json"
    for error in ("x: unknown key", "rules[0].family: required", "rules[0].action: required"):
        assert f"{path}: {error}" in world.statuses[-1]
        assert any(f"{path}: {error}" in problem for problem in world.state["problems"])


def test_a_missing_package_is_told_and_no_reason_to_end(world, host):
    host.nft.missing = True
    world.at(30, lambda: setattr(host.nft, "missing", False), [])
    world.keep(61)
    assert world.statuses[0] == "return_path: marks need the command nft: install the package nftables"
    assert host.nft.tables
    assert world.statuses[-1].startswith("keeping return_path")


def test_no_documents_is_nothing_to_keep(world, directory):
    (directory / "return_path.json").unlink()
    world.keep(1)
    assert world.statuses == ["nothing to keep: no documents"]


def test_the_documents_are_read_under_the_lock(world, host, directory, monkeypatch):
    """A run changes the kernel first and stores its document last: news of it must not bring the old one back."""
    locked = []
    load_all = store.load_all

    def seen(path):
        locked.append(host.lock.exists() and not _free(host.lock))
        return load_all(path)

    monkeypatch.setattr(store, "load_all", seen)
    world.keep(1)
    assert locked == [True]


def _free(path):
    import fcntl

    with open(path, encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# --- once, and dry runs


def run(host, directory, **options):
    return loop.run(str(directory), host=host.engine, environ={}, **options)


def test_once_makes_one_pass(host, directory):
    near, host.kernel.near = host.kernel.near, {}
    assert run(host, directory, once=True) == 1
    host.kernel.near = near
    assert run(host, directory, once=True) == 0


def test_an_empty_document_is_applied(host, directory):
    run(host, directory, once=True)
    empty = {key: RETURN_PATH[key] for key in ("schema", "owner", "protocol")}
    (directory / "return_path.json").write_text(json.dumps(empty))
    assert run(host, directory, once=True) == 0
    assert host.kernel.held_rules == []


def test_a_dry_run_shows_the_difference(host, directory):
    out = io.StringIO()
    assert run(host, directory, dry_run=True, out=out) == 2
    assert "return_path: add ip rule 1101: from all fwmark 0xb/0xff unreachable\n" in out.getvalue()
    assert host.kernel.calls == []
    run(host, directory, once=True)
    assert run(host, directory, dry_run=True, out=io.StringIO()) == 0


def test_a_dry_run_tells_what_is_wrong(host, directory):
    (directory / "x.json").write_text("{")
    out = io.StringIO()
    assert run(host, directory, dry_run=True, out=out) == 1
    assert f"{directory}/x.json: is not JSON" in out.getvalue()
