# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A backend that boots: from the first packet on, replies go through their proxy or nowhere.

Its keeper starts before there is a network. Here it is stopped once it has looked, so what is seen afterwards rests on
what it set before there was any link, and on no quickness of its own.
"""

from __future__ import annotations

import pytest

from tests.kernel.keeper.test_repairs import MOVED, flap
from tests.support import routing
from tests.support.addresses import address_of
from tests.support.keeping import keeping
from tests.support.routing import PORT, counters, left_as_found, local_delivery, return_path, watch
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b"]


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    lab.engine.apply(lab["a"], local_delivery(lab["b"]))
    for family, word in (("ipv4", "ip"), ("ipv6", "ip6")):
        leak = f"{word} saddr {address_of(lab['b'], family)} tcp sport {PORT} counter"
        watch(lab["router"], f"leaks_{family}", "forward priority 0", leak)
    return lab


@pytest.fixture
def keeper(lab, tmp_path):
    """A keeper that has learnt the proxy's MAC, on a host that is then powered off."""
    with left_as_found(lab, "b") as b, keeping(lab, "b", tmp_path, return_path(lab["a"])) as running:
        eventually(lambda: "in place" in running.state["story"])
        running.stop()
        lab.engine.remove(b, "return_path")
        b.run(["ip", "link", "set", "eth0", "down"])
        yield running
        running.process.poll() is None and running.stop()
        flap(lab, b)


def look_once(lab, keeper) -> None:
    """Run the keeper without a network and stop it; then bring the network up."""
    keeper.start()
    assert "on-link" in keeper.state["story"]
    assert keeper.stop() == 0
    flap(lab, lab["b"])


def attempt(lab, family: str) -> tuple[str, int]:
    """The outcome of a connection through the proxy, and the number of packets that bypass it.

    The client's own address is the source, so a reply that leaks is carried to it.
    """
    leaks = f"leaks_{family}"
    before = counters(lab["router"], leaks)[leaks]
    outcome = routing.handshake(lab["a"], address_of(lab["client"], family), address_of(lab["b"], family))
    return outcome, counters(lab["router"], leaks)[leaks] - before


def test_no_reply_leaks_before_the_keeper_knows_the_network(lab, keeper, family):
    look_once(lab, keeper)
    assert attempt(lab, family) == ("silent", 0)
    keeper.start()
    eventually(lambda: keeper.state["documents"]["return_path"]["state"] == "in place")
    assert attempt(lab, family) == ("established", 0)
    assert keeper.repairs == 0


def test_without_the_cached_mac_replies_leak(lab, keeper, family):
    (keeper.memory / "macs.json").unlink()
    look_once(lab, keeper)
    outcome, leaked = attempt(lab, family)
    assert outcome == "silent"
    assert leaked


def test_without_an_early_pass_replies_leak(lab, keeper, family):
    flap(lab, lab["b"])
    outcome, leaked = attempt(lab, family)
    assert outcome == "silent"
    assert leaked


def test_a_changed_proxy_mac_is_found_after_boot(lab, keeper):
    a = lab["a"]
    a.run(["ip", "link", "set", "eth0", "address", MOVED])
    try:
        look_once(lab, keeper)
        keeper.start()
        eventually(lambda: attempt(lab, "ipv4") == ("established", 0))
        assert MOVED in (keeper.memory / "macs.json").read_text(encoding="utf-8")
    finally:
        a.run(["ip", "link", "set", "eth0", "address", a.mac])
