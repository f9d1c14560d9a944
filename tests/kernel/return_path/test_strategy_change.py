# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A live stream survives a change of strategy: backends first get both, then proxies switch, then the old one goes."""

from __future__ import annotations

import contextlib
import itertools
import math
import time

import pytest

from tests.support import deployment
from tests.support.addresses import FAMILIES
from tests.support.deployment import (
    PROXIES,
    ask,
    by_strategy,
    echo_servers,
    service,
    source_of,
    spoofed,
)
from tests.support.routing import attempt, listing
from tests.support.waiting import eventually

HOSTS = ["router", *PROXIES, "b"]

STRATEGIES = ["mark", "address", "fwmark_accept"]
CHANGES = list(itertools.permutations(STRATEGIES, 2))
YEAR = 365 * 86400.0


@pytest.fixture(scope="module")
def lab(lab):
    with echo_servers(lab, ["b"]):
        yield lab


@pytest.fixture
def fleet(lab, tmp_path):
    made = deployment.Deployment(lab, tmp_path, [service("tcp", "b")], {}, backends=["b"])
    before = listing(lab["b"])
    yield made
    made.remove()
    assert listing(lab["b"]) == before
    # Without marks conntrack sees no packets, so connections that end now would stay in its list.
    lab["b"].run(["conntrack", "-F"])


def change(lab, fleet, strategy: str) -> None:
    fleet.variables = by_strategy(lab, strategy, ["b"])


@contextlib.contextmanager
def streams(lab, fleet):
    """A live connection of a client through a to b, in each family."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(spoofed(lab["a"], source_of(lab["a"], family), fleet.target("a", "b", family), "tcp"))
            for family in FAMILIES
        ]


def answers(connections) -> list[bytes]:
    return [ask(sock) for sock in connections]


ALIVE = [b"b", b"b"]


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=[" to ".join(pair) for pair in CHANGES])
def test_a_live_stream_survives_a_change_of_strategy_until_it_ends(lab, fleet, old, new):
    change(lab, fleet, old)
    fleet.apply()
    with contextlib.ExitStack() as switched:
        with streams(lab, fleet) as live, contextlib.ExitStack() as stack:
            assert answers(live) == ALIVE
            targets = {family: fleet.target("a", "b", family) for family in FAMILIES}
            change(lab, fleet, new)
            fleet.apply_backends(drain=math.inf, now=time.time())
            assert answers(live) == ALIVE
            # Until the proxies switch, new connections work as before.
            late = [
                stack.enter_context(spoofed(lab["a"], source_of(lab["a"], family), target, "tcp"))
                for family, target in targets.items()
            ]
            assert answers(late) == ALIVE
            fleet.apply_proxies(drain=math.inf, now=time.time())
            new_ones = switched.enter_context(streams(lab, fleet))
            fleet.apply(drain=math.inf, now=time.time() + YEAR)
            assert answers(new_ones) == answers(live) == answers(late) == ALIVE

        # New connections do not need the old objects, so these go with the last old connection.
        def only_new() -> list[str] | None:
            fleet.apply(drain=math.inf, now=time.time() + YEAR)
            return None if "retiring" in (fleet.directory / "b" / "return_path.json").read_text() else listing(lab["b"])

        after = eventually(only_new)
        assert answers(new_ones) == ALIVE
    fleet.remove()
    fleet.apply()
    assert listing(lab["b"]) == after


@pytest.mark.parametrize(("old", "new"), [("mark", "address"), ("address", "mark"), ("address", "fwmark_accept")])
def test_without_a_drain_a_change_of_strategy_breaks_the_stream(lab, fleet, old, new):
    change(lab, fleet, old)
    fleet.apply()
    with contextlib.ExitStack() as stack:
        live = [
            stack.enter_context(attempt(lab["a"], source_of(lab["a"], family), fleet.target("a", "b", family)))
            for family in FAMILIES
        ]
        assert [one.outcome() for one in live] == ["established"] * 2
        change(lab, fleet, new)
        fleet.apply()
        assert_dead(live)


def assert_dead(live) -> None:
    for one in live:
        one.socket.send(b"who is there?")
    for one in live:
        eventually(lambda one=one: one.retransmits >= 2)
        with pytest.raises(BlockingIOError):
            one.socket.recv(1)


def test_a_live_stream_survives_the_removal_of_its_proxy(lab, fleet):
    change(lab, fleet, "mark")
    fleet.apply()
    with streams(lab, fleet) as live:
        fleet.services = [service("tcp", "b", proxies=["a2"])]
        fleet.apply_backends(drain=math.inf, now=time.time())
        fleet.apply_backends(drain=math.inf, now=time.time() + YEAR)
        assert answers(live) == ALIVE
