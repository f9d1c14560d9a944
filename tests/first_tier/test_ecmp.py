# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which part of the other proxies' connections a Linux router moves when one of three proxies leaves, and returns."""

from __future__ import annotations

import os

import pytest

from tests.lab.netns import NamespaceLab
from tests.support.router import FLAG

PROXIES = ("a", "a2", "a3")
TARGET = {"ipv4": ("198.18.9.1", 32), "ipv6": ("2001:db8:9::1", 128)}
CONNECTIONS = 300


@pytest.fixture(scope="module")
def lab():
    with NamespaceLab(f"ecmp{os.getpid()}", ["client", "router", *PROXIES]) as lab:
        for word in ("ipv4", "ipv6"):
            lab["router"].sysctl(f"net.{word}.fib_multipath_hash_policy", "1")  # ports too
        yield lab


def proxies_of(lab, family: str) -> list[str]:
    """The next hop of connections that differ in the client's port."""
    source = getattr(lab["client"], family)
    text = "".join(
        f"route get {TARGET[family][0]} from {source} iif eth0 ipproto tcp sport {port} dport 80\n"
        for port in range(20000, 20000 + CONNECTIONS)
    )
    lines = lab["router"].run(["ip", FLAG[family], "-batch", "-"], input=text).stdout.splitlines()
    return [line.split(" via ")[1].split()[0] for line in lines if " via " in line]


def choose(lab, numbers: list[str], kind: list[str]) -> None:
    lab["router"].run(["ip", "nexthop", "replace", "id", "10", "group", "/".join(numbers), "type", *kind])


@pytest.mark.parametrize("family", FLAG)
@pytest.mark.parametrize(("kind", "stays"), [(["mpath"], False), (["resilient", "buckets", "128"], True)])
def test_connections_of_other_proxies_stay_only_with_resilient_next_hops(lab, family, kind, stays):
    address, length = TARGET[family]
    router = lab["router"]
    via = [getattr(lab[name], family) for name in PROXIES]
    for number, hop in enumerate(via, 1):
        router.run(["ip", "nexthop", "replace", "id", str(number), "via", hop, "dev", "eth1"])
    choose(lab, ["1", "2", "3"], kind)
    router.run(["ip", FLAG[family], "route", "replace", f"{address}/{length}", "nhid", "10"])
    before = proxies_of(lab, family)
    choose(lab, ["2", "3"], kind[:1])
    after = proxies_of(lab, family)
    moved = sum(old != new for old, new in zip(before, after) if old != via[0])
    print(f"\n{family} {kind[0]}: {moved} of {sum(old != via[0] for old in before)} connections of other proxies move")
    router.run(["ip", "nexthop", "flush"])
    assert len(before) == len(after) == CONNECTIONS
    assert set(before) == set(via)
    assert (moved == 0) is stays
