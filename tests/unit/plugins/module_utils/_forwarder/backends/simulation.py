# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A health checker with a simulated clock, and a simulated network that answers its probes."""

from __future__ import annotations

import errno

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_round import TICK
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.probe_results import NO_ANSWER

SOURCES = ("198.51.100.1", "2001:db8:ffff::1")
HEALTH = HealthCheck(interval=2.0, timeout=1.0, rise=2, fall=3, source=SOURCES)
SILENCE = errno.ETIMEDOUT
REFUSED, RESET, UNREACHABLE = errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH


class Network:
    """Answers probes: ``says`` is {(address, whether it is spoofed): errno or SILENCE}; all others succeed (0).

    With an exchange, the addresses of ``established`` take connections, and ``says`` is the result of the exchange.
    """

    def __init__(self):
        self.says = {}
        self.established = set()
        self.asked = []  # (address, source) of every probe, in order
        self.open = 0
        self.cannot = {}  # source -> the errno with which its probe cannot be sent

    def probe(self, address, _port, source, *exchange):
        if source in self.cannot:
            raise OSError(self.cannot[source], "cannot")
        self.asked.append((address, source, *exchange))
        self.open += 1
        return Probe(self, self.says.get((address, source is not None), 0), address in self.established)


class Probe:
    def __init__(self, network, number, established):
        self._network = network
        self._number = number
        self.established = self.moved = established

    def expired(self):
        return NO_ANSWER if self.established else SILENCE

    def poll(self):
        return None if self._number == SILENCE else self._number

    def close(self):
        self._network.open -= 1


class Log:
    waiting = False

    def __init__(self):
        self.events = []

    def event(self, name, **fields):
        self.events.append({"event": name, **fields})

    def named(self, name):
        return [one for one in self.events if one["event"] == name]


class Line:
    """The channel to the supervisor; while it is ``full`` it takes nothing."""

    def __init__(self):
        self.sent = []
        self.full = False

    def send(self, message):
        if not self.full:
            self.sent.append(message)
        return not self.full


def service(*addresses, protocol="tcp", health=HEALTH, name="web", **options):
    backends = tuple(
        Backend(name=f"b{number}", port=80, **{"ipv6" if ":" in address else "ipv4": address})
        for number, address in enumerate(addresses)
    )
    return Service(name, (), backends, protocol=protocol, health=health, **options)


class Run:
    """A checker that turn() advances by some time, one TICK per step."""

    def __init__(self, *services, region=None):
        config = Config(proxy_id=1, services=services)
        self.region = region or shared_memory.Region(shared_memory.describe(config, 1))
        self.log = Log()
        self.line = Line()
        self.checker = health_checker.HealthChecker(config, self.log, self.line, self.region)
        self.time = 1000.0
        self.checker.now = lambda: self.time
        self.checker._resume()

    def turn(self, seconds):
        until = self.time + seconds
        while self.time < until:
            self.checker._turn()
            self.time += TICK

    def states(self):
        return [shared_memory.STATES[self.region.state("health", number)] for number in range(len(self.region.targets))]

    def end(self):
        for one in self.checker._running:
            one.round.close()
        self.region.close()


B, C, V6 = "198.18.0.21", "198.18.0.22", "2001:db8::21"
