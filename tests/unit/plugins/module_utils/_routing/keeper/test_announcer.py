# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When addresses are announced, by what the forwarder answers. Kernel, forwarder and time are fake."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.announced import Announced
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import MAIN, Route
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.announcer import Announcer
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.health_question import Verdict
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.kernel import NetlinkError
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import promise

ADDRESSES = (Announced("ipv4", "203.0.113.80"), Announced("ipv6", "2001:db8:80::80"))
DOCUMENT = Document("announce", 205, announce=ADDRESSES)
OTHERS = Route("ipv4", MAIN, "203.0.113.99", type="blackhole", metric=1)
HEALTHY, BAD = Verdict(True, None, "healthy"), Verdict(False, "worker", "worker 0 does not beat since 1.4 s")
WITHDRAWN, SILENT, REFUSED = Verdict(False, "withdrawn", "an operator has withdrawn it"), None, "no forwarder listens"


class Host:
    """Kernel, monitor, clock and forwarder: ``says`` is a verdict, SILENT, or REFUSED."""

    def __init__(self, *present: Route):
        self.now, self.says, self.asked, self.failing = 0.0, HEALTHY, 0, None
        self.tokens, self.shown, self.here = [OTHERS, *present], [], list(ADDRESSES)
        self.restart()

    def restart(self) -> None:
        self.announcer = Announcer(lambda: self, "admin.sock", self, lambda: self.now, lambda: 50.0, self.ask)
        self.announcer.follow({"announce": DOCUMENT}, True)

    def attend(self, _descriptor):
        pass

    def ask(self, _path):
        self.asked += 1
        says = self.says
        verdict = says if isinstance(says, Verdict) else None
        fault = says if says == REFUSED else ""
        return SimpleNamespace(verdict=lambda: verdict, fault=fault, fileno=lambda: 9, close=lambda: None)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def routes(self, _protocol, table):
        found = self.tokens if table == MAIN else [each.local_route for each in self.here]
        return [SimpleNamespace(value=route) for route in found]

    def set_route(self, route, _protocol):
        if self.failing:
            raise self.failing
        self.tokens.append(route)
        self.note()

    def remove_route(self, route, _protocol):
        self.tokens.remove(route)
        self.note()

    def note(self) -> None:
        self.shown.append(sorted(route.metric for route in self.tokens if route != OTHERS))

    def run(self, seconds: float, says=HEALTHY) -> set[int]:
        """Let time pass while the forwarder says this; return the metrics of the tokens."""
        self.says, end = says, self.now + seconds
        while self.now < end:
            self.now = round(self.now + 0.05, 3)
            self.announcer.tend()
        return {route.metric for route in self.tokens if route != OTHERS}


@pytest.mark.parametrize(
    ("says", "gone_within", "back_after"),
    [(BAD, 0.6, 10), (SILENT, 1.6, 10), (REFUSED, 1.1, 10)],
    ids=["unhealthy", "hung", "stopped"],
)
def test_an_unhealthy_forwarder_loses_its_tokens_soon_and_gets_them_back_after_the_hold_time(
    says, gone_within, back_after
):
    host = Host()
    assert host.run(9.5) == set()
    assert host.run(1.5) == {1}
    assert host.run(gone_within, says) == set()
    assert host.run(back_after - 0.5) == set()
    assert host.run(1.5) == {1}


def test_flapping_health_never_brings_the_tokens_back():
    host = Host()
    assert host.run(11) == {1}
    for _number in range(5):
        assert host.run(1, BAD) == set()
        assert host.run(9) == set()


def test_one_lost_answer_changes_nothing():
    host = Host()
    host.run(11)
    assert host.run(0.5, SILENT) == {1}
    assert host.run(3) == {1}


@pytest.mark.parametrize("says", [SILENT, REFUSED])
def test_a_healthy_forwarder_that_is_replaced_keeps_its_tokens_as_long_as_it_has_promised(monkeypatch, says):
    host = Host()
    host.run(11)
    monkeypatch.setattr(promise, "holds", lambda path: host.now < 16)
    assert host.run(4.5, says) == {1}
    assert host.run(2.5, says) == set()


def test_a_withdrawn_proxy_is_announced_gracefully_then_not_and_again_at_once_after_rejoin():
    host = Host()
    host.run(11)
    assert host.run(1, WITHDRAWN) == {2}
    assert [] not in [metrics for metrics in host.shown[:-2] if metrics != [1]], "added before the other is removed"
    assert host.run(3.5, WITHDRAWN) == {2}
    assert host.run(1, WITHDRAWN) == set()
    assert host.announcer.state["state"] == "not announced"
    assert host.run(0.6) == {1}
    assert host.run(1, WITHDRAWN) == {2}
    assert host.run(0.6, BAD) == set(), "one that gets unhealthy meanwhile must hurry"
    assert host.run(11, WITHDRAWN) == set()


@pytest.mark.parametrize(("metric", "says", "expected"), [(1, HEALTHY, {1}), (1, BAD, set()), (2, WITHDRAWN, {2})])
def test_a_new_keeper_continues_with_the_tokens_that_it_finds(metric, says, expected):
    host = Host(*(each.token(metric) for each in ADDRESSES))
    assert host.run(0.6, says) == expected
    assert OTHERS in host.tokens


def test_a_lost_token_is_restored_and_a_kernel_that_refuses_is_reported():
    host = Host()
    host.run(11)
    host.tokens = [OTHERS]
    assert host.run(0.6) == {1}
    host.tokens, host.failing = [OTHERS], NetlinkError(12)
    host.run(0.6)
    assert host.announcer.problems[0].startswith("cannot change what is announced of 203.0.113.80, 2001:db8:80::80")
    host.failing = None
    assert (host.run(0.6), host.announcer.problems) == ({1}, [])


def test_an_address_that_the_host_no_longer_accepts_loses_its_token():
    host = Host()
    host.run(11)
    host.here.pop()
    host.run(0.6)
    assert [route.family for route in host.tokens if route != OTHERS] == ["ipv4"]


def test_a_forwarder_that_has_ended_and_whose_unit_has_removed_the_tokens_has_to_hold_again():
    host = Host()
    host.run(11)
    host.tokens = [OTHERS]
    assert host.run(0.6, REFUSED) == set()
    assert host.run(9) == set()
    assert host.run(2) == {1}


def test_without_a_document_nobody_is_asked_and_an_incomplete_pass_changes_nothing():
    host = Host()
    host.run(11)
    host.announcer.follow({}, False)
    assert host.announcer.state["addresses"] == ["203.0.113.80", "2001:db8:80::80"]
    host.announcer.follow({}, True)
    asked = host.asked
    host.run(5)
    assert (host.asked, host.announcer.state, host.announcer.sleep(host.now)) == (asked, None, 3600.0)
