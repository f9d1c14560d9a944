# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cost and speed of the keeper: ``python -m tests.bench.keeper [SECONDS]`` (root).

For the document of a usual backend, and for one as no host has it (500 backends and 16 proxies): resident memory; CPU
at rest, measured over SECONDS (60) of idle waiting, plus the cost of fingerprints and passes at their usual rate; CPU
while others' routes come and go by the thousand; and the time from the removal of a rule to its return.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import (
    fingerprint,
    reconcile_pass,
    schedule,
)

from tests.bench.routing import BACKENDS, PROXIES, fleet
from tests.lab.netns import NamespaceLab
from tests.support.keeping import Running, keeping, storm
from tests.support.routing import Engine
from tests.support.waiting import eventually

# As the return path has them.
SETTINGS = [
    {"name": f"net.{family}.conf.{link}.accept_redirects", "value": "0"}
    for family in ("ipv4", "ipv6")
    for link in ("all", "eth0")
]
# Bounds: MiB, and per cent of a core.
MEMORY_BOUND, CPU_BOUND = 45, 0.1
REPAIRS = 20


def memory(keeper: Running) -> float:
    status = Path(f"/proc/{keeper.process.pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def used(keeper: Running) -> float:
    """Seconds of CPU so far, exact to the nanosecond (/proc/PID/schedstat), without children."""
    return int(Path(f"/proc/{keeper.process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def pass_cost(keeper: Running, passes: int = 10) -> float:
    """CPU seconds of a complete pass, with child processes; a tick of /proc is 10 ms, so measure several."""
    before = keeper.cpu()
    for _pass in range(passes):
        own = used(keeper)
        keeper.process.send_signal(signal.SIGHUP)
        eventually(lambda own=own: used(keeper) > own + 0.003)
        time.sleep(1.0)
    return (keeper.cpu() - before) / passes


def fingerprint_cost(keeper: Running, host: Any, comparisons: int = 10) -> float:
    """CPU seconds of a fingerprint, computed in this process, because only the clock makes the keeper compute one."""
    with keeper.host.inside():
        result = reconcile_pass.reconcile_all(reconcile_pass.Documents(str(keeper.documents)), host)
        before = time.process_time()
        for _comparison in range(comparisons):
            assert fingerprint.compute(result, host)
        return (time.process_time() - before) / comparisons


def rest(keeper: Running, seconds: float) -> float:
    """Per cent of a core while idle."""
    before = used(keeper)
    time.sleep(seconds)
    return 100 * (used(keeper) - before) / seconds


def in_storm(keeper: Running) -> tuple[float, float]:
    """Per cent of a core, and changes per second, while foreign routes change."""
    before, began = keeper.cpu(), time.monotonic()
    for _time in range(5):
        storm(keeper.host, 4000)
    took = time.monotonic() - began
    return 100 * (keeper.cpu() - before) / took, 5 * 8000 / took


def repair(keeper: Running) -> float:
    """Seconds until a removed rule is restored; a different rule each time."""
    before = keeper.repairs
    # Two proxies at least: another one each time, so that it does not look like a conflict.
    rule = f"priority 1101 fwmark {101 + before % 2}/255"
    keeper.host.run(["ip", "rule", "del", *rule.split()])
    began = time.monotonic()
    eventually(lambda: keeper.repairs > before)
    took = time.monotonic() - began
    time.sleep(0.3)
    return took


def measure(lab: NamespaceLab, name: str, data: dict, seconds: float) -> list[str]:
    """Print the figures; return the values above their bounds."""
    with tempfile.TemporaryDirectory() as directory, keeping(lab, "b", Path(directory), data) as keeper:
        eventually(lambda: "in place" in keeper.state["story"])
        took = sorted(repair(keeper) for _number in range(REPAIRS))
        time.sleep(schedule.CALM)
        keeper.rest()
        cost, comparing = pass_cost(keeper), fingerprint_cost(keeper, lab.engine.host(keeper.host))
        still = rest(keeper, min(seconds, schedule.FULL - 5))
        busy, rate = in_storm(keeper)
        every = max(schedule.FULL, comparing * schedule.SHARE)
        resident, total = memory(keeper), still + 100 * (comparing / every + cost / schedule.LONGEST_FULL)
        print(f"{name}: {len(data['rules'])} rules, {len(data['marks'])} marks")
        print(f"  memory      {resident:6.1f} MiB (at most {MEMORY_BOUND})")
        print(
            f"  at rest     {total:6.3f} % of a core (at most {CPU_BOUND}): waiting {still:.3f} %, "
            f"a fingerprint of {1000 * comparing:.0f} ms CPU every {every:.0f} s, "
            f"and a pass of {1000 * cost:.0f} ms every {schedule.LONGEST_FULL:.0f} s"
        )
        print(f"  in a storm  {busy:6.3f} % of a core, at {rate:.0f} changes of foreign routes per second")
        print(f"  a repair    {1000 * median(took):6.0f} ms (median of {REPAIRS}), {1000 * took[-1]:.0f} ms at most")
        missed = [f"{name}: memory"] if resident > MEMORY_BOUND else []
        return missed + ([f"{name}: CPU"] if total > CPU_BOUND else [])


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 60.0
    documents = {"a usual backend": fleet(0, 2), f"{BACKENDS} backends, {PROXIES} proxies": fleet()}
    documents = {name: {**data, "sysctls": SETTINGS} for name, data in documents.items()}
    missed = []
    with NamespaceLab(f"bench{os.getpid()}", ["b"]) as lab, tempfile.TemporaryDirectory() as directory:
        lab.engine = Engine(Path(directory))
        # The keeper waits until it has a route to each backend.
        lab["b"].run(["ip", "route", "add", "198.19.0.0/16", "dev", "eth0"])
        for name, data in documents.items():
            missed += measure(lab, name, data, seconds)
    raise SystemExit(f"above the bound:  {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
