# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of health checks: ``python -m tests.bench.checker SECONDS``, as root.

300 backends of one family are asked every 2 s; the checker's user and system time comes from /proc. The bound is 2 % of
one core, in all. Backends are ports of two hosts, which makes no difference to who asks.
"""

from __future__ import annotations

import sys
import time

from tests.bench.measure import cpu_seconds
from tests.support.forwarding import Forwarder, make_config, raise_lab, wire
from tests.support.waiting import eventually

BACKENDS, INTERVAL, BOUND = 300, 2.0, 0.02
FIRST_PORT = 10_000


def backends(lab, count):
    """Return ``count`` backends, half of them on each of two hosts."""
    hosts = ("b", "c")
    return [
        {"name": f"{host}{number}", "ipv4": lab[host].ipv4, "port": FIRST_PORT + number}
        for number in range(count // 2)
        for host in hosts
    ]


def main(seconds: float) -> int:
    """Measure and print one line; return 1 if it is above the bound."""
    with raise_lab("bc") as lab:
        wire(lab)
        ports = range(FIRST_PORT, FIRST_PORT + BACKENDS // 2)
        for host in ("b", "c"):
            lab.nginx(host, ports=ports)
        service = {
            "name": "many",
            "listen": [{"address": "0.0.0.0", "port": 80}],
            "backends": backends(lab, BACKENDS),
            "health": {"interval": INTERVAL},
        }
        with Forwarder(lab, make_config(service)) as forwarder:
            eventually(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
            (checker,) = forwarder.children("l4-checker")
            before, rounds, begun = cpu_seconds([checker]), checks(forwarder), time.monotonic()
            time.sleep(seconds)
            used, rounds, passed = cpu_seconds([checker]) - before, checks(forwarder) - rounds, time.monotonic() - begun
            all_up = set(states(forwarder)) == {"up"}
    part = used / passed
    print(
        f"{BACKENDS} backends every {INTERVAL:g} s: {part:.2%} of a core ({1e6 * used / rounds:.0f} us a round,"
        f" {rounds} rounds in {passed:.1f} s, all {'up' if all_up else 'NOT up'}); the bound is {BOUND:.0%}"
    )
    return 0 if part <= BOUND and all_up else 1


def targets(forwarder):
    """Return the status of every backend."""
    return [backend["families"]["ipv4"] for backend in forwarder.status()["services"][0]["backends"]]


def states(forwarder):
    """Return the state of every backend."""
    return [one["state"] for one in targets(forwarder)]


def checks(forwarder):
    """Return the number of rounds so far."""
    return sum(one["checks"] for one in targets(forwarder))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
