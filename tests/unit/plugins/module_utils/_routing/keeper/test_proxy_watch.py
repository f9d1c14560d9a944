# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When a proxy counts as dead and as alive again, and which routes then move. Network and time are fake."""

from __future__ import annotations

import errno
import random
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark, Route
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import liveness
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.proxy_watch import ProxyWatch

A, A2 = "198.18.0.11", "198.18.0.12"
ROUTES = tuple(
    Route("ipv4", 20700 + number, via=via, fallback=(other,)) for number, via, other in ((11, A, A2), (12, A2, A))
)
STAYING = Route("ipv4", 20111, via=A)
MARKS = tuple(Mark(name, number, 255, via=(via,)) for name, number, via in (("a", 11, A), ("a2", 12, A2)))
DOCUMENT = Document("return_path", 202, routes=(*ROUTES, STAYING), marks=MARKS)


class Network:
    """The kernel, the prober and the clock. ``dead`` do not answer; ``lost`` is the part of exchanges that fail."""

    has_macs = True

    def __init__(self, lost: float = 0.0):
        self.now, self.dead, self.lost, self.down = 1000.0, set(), lost, 0
        self.live = {route.key: Route("ipv4", route.table, via=route.via, dev="eth0") for route in DOCUMENT.routes}
        self.asked, self._answers, self._random = [], [], random.Random(1)
        self.watch = ProxyWatch(lambda: self, lambda: self.now, lambda: 50.0, lambda *_key: self)
        self.watch.follow({"return_path": DOCUMENT})

    # the kernel

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def on_link(self, _address, _dev=None):
        return "eth0"

    def source_towards(self, _address):
        return "198.18.0.21"

    def routes(self, _protocol):
        return [SimpleNamespace(value=route) for route in self.live.values()]

    def set_route(self, route, _protocol):
        self.live[route.key] = route

    # the prober

    def ask(self, neighbour, everybody):
        if self.down:
            raise OSError(self.down, "no")
        self.asked.append((self.now, neighbour.address, everybody))
        if neighbour.address not in self.dead and self._random.random() >= self.lost:
            self._answers.append(neighbour.address)

    def answers(self):
        found, self._answers = self._answers, []
        return found

    def wait(self, _seconds):
        return bool(self._answers)

    # the test

    def run(self, seconds: float, until=lambda: False) -> float:
        """Let time pass; return how much has passed when ``until`` became true."""
        begin = self.now
        while self.now < begin + seconds and not until():
            self.now += max(self.watch.sleep(self.now), 0.001)
            self.watch.tend()
        return self.now - begin

    @property
    def hops(self) -> list[str]:
        return [self.live[route.key].via for route in DOCUMENT.routes]


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.29])
def test_the_routes_of_a_dead_proxy_move_within_a_second_and_back_after_three(phase):
    network = Network()
    network.run(2.0 + phase)
    network.dead = {A}
    assert network.run(5.0, lambda: network.hops == [A2, A2, A]) < 0.9
    assert network.watch.silent == {A: ("a", 50.0)}
    assert network.watch.problems == [f"proxy a does not answer at {A}: its replies leave through {A2}"]
    network.run(5.0)
    network.dead = set()
    assert 2.0 < network.run(9.0, lambda: network.hops == [A, A2, A]) < 3.5
    assert network.watch.problems == []


def test_a_flapping_proxy_keeps_its_replies_elsewhere():
    network = Network()
    network.run(2.0)
    for _flap in range(3):
        network.dead = {A}
        network.run(2.0)
        network.dead = set()
        network.run(2.0)
        assert network.hops == [A2, A2, A]


@pytest.mark.parametrize("silent", [{A, A2}, {A}, {A2}])
def test_nothing_moves_while_nobody_else_answers(silent):
    network = Network()
    network.run(2.0)
    network.dead = {A, A2}
    network.run(3.0)
    assert network.hops == [A, A2, A]
    assert network.watch.problems[0] == f"proxy a does not answer at {A}: nobody else could get its replies"
    # Those that come back do so together, unless one stays dead.
    network.dead -= silent
    network.run(9.0)
    assert network.hops == ([A, A2, A] if len(silent) == 2 else [A, A, A] if silent == {A} else [A2, A2, A])


def test_a_link_that_is_down_says_nothing_about_proxies():
    network = Network()
    network.run(2.0)
    network.down = errno.ENETDOWN
    network.run(5.0)
    assert (network.watch.silent, network.hops, network.watch.problems) == ({}, [A, A2, A], [])
    network.down = errno.EPERM
    network.run(1.0)
    assert network.watch.problems[0].startswith("cannot ask proxy 198.18.0.12 whether it is alive: Operation not")


def test_a_lossy_link_is_no_death():
    """8 % in each direction, for an hour."""
    network = Network(lost=1 - 0.92**2)
    network.run(3600, lambda: bool(network.watch.silent))
    assert network.watch.silent == {}
    assert len(network.asked) / 3600 / 2 < 4


def test_everybody_is_asked_when_the_mac_may_have_changed():
    network = Network()
    network.run(1.0)
    assert not any(everybody for _time, _address, everybody in network.asked)
    network.dead, network.asked = {A}, []
    network.run(0.84)
    asked = [everybody for _time, address, everybody in network.asked if address == A]
    lost, same = liveness.LOST, liveness.SAME_MAC
    assert asked[:lost] == [False] * same + [True] * (lost - same)


def test_only_routes_with_fallbacks_cost_anything():
    watch = ProxyWatch(lambda: pytest.fail("the network is used"))
    watch.follow({"return_path": Document("return_path", 202, routes=(STAYING,))})
    assert not watch.tend()
    assert (watch.sleep(0.0) > 60, watch.answers(A)) == (True, None)


def test_what_cannot_be_asked_is_reported_and_moves_nothing():
    def refuse(*_key):
        raise OSError(97, "Address family not supported by protocol")

    network = Network()
    network.watch = ProxyWatch(lambda: network, lambda: network.now, lambda: 50.0, refuse)
    network.watch.follow({"return_path": DOCUMENT})
    network.run(3.0)
    (problem,) = network.watch.problems
    assert problem.startswith("cannot ask the proxies on eth0 whether they are alive: Address family not supported")
    network.has_macs = False
    watch = ProxyWatch(lambda: network, lambda: network.now, lambda: 50.0, lambda *_key: network)
    watch.follow({"return_path": DOCUMENT})
    assert watch.problems[0].startswith("eth0 has no MAC addresses")

    def missing():
        raise MissingPackage("python3-pyroute2", "no pyroute2")

    watch = ProxyWatch(missing)
    watch.follow({"return_path": DOCUMENT})
    assert not watch.tend()
