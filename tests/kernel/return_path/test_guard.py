# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Replies fail closed: they go through their proxy or are dropped."""

from __future__ import annotations

import pytest

from tests.support.addresses import address_of
from tests.support.routing import PORT, attempt, counters, local_delivery, return_path, watch

HOSTS = ["client", "router", "a", "a2", "b"]

TABLE = "l4proxy_return_path"


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    for proxy in ("a", "a2"):
        lab.engine.apply(lab[proxy], local_delivery(lab["b"]))
    make_whole(lab)
    return lab


def make_whole(lab) -> None:
    lab.engine.apply(lab["b"], return_path(lab["a"], lab["a2"]))


@pytest.fixture
def whole(lab):
    yield lab
    make_whole(lab)


ROUTE, LOOKUP = "ip {f} route flush table 20111", "ip {f} rule del priority 1100 fwmark 11/255 lookup 20111"
RULE = "ip {f} rule del priority 1101 fwmark 11/255 unreachable"
NFT = f"nft flush chain inet {TABLE} guard_11"
FLUSH = "nft delete table inet l4proxy_return_path"
WAY = "ip {f} route del default dev eth0 table 20111"
AS_ROUTE = "ip {f} route add unreachable default metric 4278198272 table 20111 proto 202"
# (parts that are removed on b, whether a reply leaks, whether the nft guard drops it)
MISSING = [
    ([ROUTE], False, False),
    ([ROUTE, NFT], False, False),
    ([ROUTE, RULE], False, True),
    ([LOOKUP, RULE], False, True),
    ([LOOKUP, RULE, NFT], True, False),
    ([ROUTE, RULE, NFT], True, False),
    # No guard is left: only the keeper repairs this.
    ([FLUSH], True, False),
    # A guard that is a route disappears with its table.
    ([AS_ROUTE, WAY, RULE, NFT], False, False),
    ([AS_ROUTE, ROUTE, RULE, NFT], True, False),
]
NAMES = {ROUTE: "route", LOOKUP: "lookup", RULE: "guard rule", NFT: "nft guard", FLUSH: "nft ruleset"}
NAMES[WAY] = "the one route"
NAMES[AS_ROUTE] = "a guard that is a route"


@pytest.mark.parametrize(
    ("commands", "leaks", "counted"), MISSING, ids=["+".join(map(NAMES.get, row[0])) for row in MISSING]
)
def test_replies_never_bypass_the_proxy(whole, family, commands, leaks, counted):
    b, source = whole["b"], address_of(whole["client"], family)
    word = "ip" if family == "ipv4" else "ip6"
    watch(whole["router"], "leaks", "forward priority 0", f"{word} saddr {address_of(b, family)} counter")
    for command in commands:
        b.run(command.format(f="-4" if family == "ipv4" else "-6").split())
    # From the client's own address, so that the router forwards a leaked reply.
    with attempt(whole["a"], source, address_of(b, family)) as connection:
        assert connection.outcome() == "silent"
    assert (counters(whole["router"], "leaks")["leaks"] > 0) == leaks
    held = 0 if FLUSH in commands else counters(b, TABLE).get("guard_11", 0)
    assert (held > 0) == counted
