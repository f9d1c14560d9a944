# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, status, metrics and reload with thousands of services: ``python -m tests.bench.services``, as root.

Nothing is forwarded, and no health question asked. The bounds are half a second for the status of 1,000 services with
three backends each, and 50 ms of a worker's CPU time for a config of 300 backends that it takes in place; they are
meant for a machine that does nothing else.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import tcp
from tests.support.forwarding import Forwarder, make_config, raise_lab
from tests.support.waiting import PATIENCE

#: Services, and backends of each.
SHAPES = ((250, 3), (1000, 3), (3000, 1), (9000, 1))
BOUNDED, BOUND = (1000, 3), 0.5  # seconds
IN_PLACE = ((100, 3), (1, 300))  # 300 backends
CHANGES, CHANGE_BOUND = 10, 0.05  # seconds of a worker's CPU time, for one change
METRICS, FIRST_PORT = 9110, 10_000


def document(count: int, backends: int) -> dict:
    """A config of ``count`` services, whose backends do not exist."""
    services = [
        {
            "name": f"s{number}",
            "listen": [{"address": "127.0.0.1", "port": FIRST_PORT + number}],
            "backends": [
                {
                    "name": f"b{one}",
                    "ipv4": f"198.18.{one % 250}.{(number + one // 250) % 250 + 1}",
                    "ipv6": f"2001:db8::{one}",
                    "port": 80,
                }
                for one in range(backends)
            ],
            "health": {"enabled": False},
        }
        for number in range(count)
    ]
    return make_config(*services, workers=2, metrics={"listen": f"127.0.0.1:{METRICS}"})


def timed(work: Callable) -> tuple[float, object]:
    """Return (seconds, result) of ``work()``."""
    begun = time.monotonic()
    result = work()
    return time.monotonic() - begun, result


def scrape(lab) -> int:
    """Return the size of the complete metrics."""
    with lab["a"].inside():
        sock = socket.create_connection(("127.0.0.1", METRICS), timeout=PATIENCE)
    with sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return len(tcp.receive_all(sock))


def measure(lab, count: int, backends: int) -> float:
    """Measure and print one size; return the seconds of a status."""
    config = document(count, backends)
    started, forwarder = timed(lambda: Forwarder(lab, config).serve())
    with forwarder:
        asked, status = timed(forwarder.status)
        scraped, size = timed(lambda: scrape(lab))
        reloaded, outcome = timed(forwarder.reload)
    complete = len(status["services"]) == count and outcome.returncode == 0
    print(
        f"{count:5} services x {backends}: start {started:5.2f} s, status {asked:5.2f} s, metrics {scraped:5.2f} s"
        f" ({size / 1e6:.1f} MB), reload {reloaded:5.2f} s{'' if complete else '  NOT COMPLETE'}",
        flush=True,
    )
    return asked if complete else float("inf")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process: the first field of /proc/PID/schedstat, nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def measure_changes(lab, count: int, backends: int) -> float:
    """Measure and print what changes in place cost; return the seconds of a worker's CPU time for one change."""
    with Forwarder(lab, document(count, backends)) as forwarder:
        worker = forwarder.workers()[0]
        begun = cpu_seconds(worker)
        for number in range(CHANGES):
            config = document(count, backends)
            for service in config["services"]:
                service["idle_timeout"] = 100 + number
            forwarder.configure(config)
            forwarder.reload()
        used = (cpu_seconds(worker) - begun) / CHANGES
        complete = forwarder.workers()[0] == worker and forwarder.runtime()["generation"] == CHANGES + 1
    print(
        f"{count:5} services x {backends}: change in place {used * 1e3:.1f} ms of a worker"
        f"{'' if complete else '  NOT COMPLETE'}",
        flush=True,
    )
    return used if complete else float("inf")


def main() -> int:
    """Measure every size; return 1 if one is incomplete or above the bound."""
    with raise_lab("sv") as lab:
        changes = [measure_changes(lab, *shape) for shape in IN_PLACE]
        asked = {shape: measure(lab, *shape) for shape in SHAPES}
    print(f"the bound is {BOUND:g} s for the status of {BOUNDED[0]} services x {BOUNDED[1]}")
    print(f"the bound is {CHANGE_BOUND * 1e3:g} ms for a change in place")
    within = asked[BOUNDED] <= BOUND and max(changes) <= CHANGE_BOUND
    return 0 if within and float("inf") not in asked.values() else 1


if __name__ == "__main__":
    sys.exit(main())
