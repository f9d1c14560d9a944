# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The speed of the routing engine with a large fleet: ``python -m tests.bench.routing`` (root).

One document as no host has it, both ends in one: local delivery for 500 backends (three protocols, two families: 3,000
rules), and the return path to 16 proxies. It is applied, applied again, made smaller by one backend, and removed, each
in a process of its own, as Ansible and the keeper do it; the time is the engine's, from the document as JSON text to
the outcome, without the start of Python. The bounds are for the
processor's time, which is most of it where nothing else runs. The memory is that of the whole process, with pyroute2.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine

BACKENDS, PROXIES = 500, 16
PROTOCOLS = {"ipv4": ("tcp", "udp", "icmp"), "ipv6": ("tcp", "udp", "ipv6-icmp")}
# Bounds in seconds.
BOUNDS = {"apply": 2.0, "nothing to do": 0.5}


def fleet(backends: int = BACKENDS, proxies: int = PROXIES) -> dict:
    """The document: addresses of 198.18.0.0/15 and 2001:db8::/64, which the lab's hosts have on eth0."""
    rules, routes, marks = [], [], []
    for number in range(backends):
        sources = {"ipv4": f"198.19.{number // 250}.{number % 250 + 1}/32", "ipv6": f"2001:db8::19:{number + 1:x}/128"}
        for family, protocols in PROTOCOLS.items():
            lookup = {"family": family, "priority": 1100, "src": sources[family], "action": "lookup", "table": 20100}
            rules += [{**lookup, "ip_proto": protocol} for protocol in protocols]
    routes += [{"family": family, "table": 20100, "dst": "default", "type": "local"} for family in PROTOCOLS]
    for number in range(101, 101 + proxies):
        mark = {"fwmark": number, "fwmask": 255}
        hops = {"ipv4": f"198.18.0.{number}", "ipv6": f"2001:db8::{number:x}"}
        for family in PROTOCOLS:
            rules.append({"family": family, "priority": 1100, **mark, "action": "lookup", "table": 20100 + number})
            rules.append({"family": family, "priority": 1101, **mark, "action": "unreachable"})
            routes.append({"family": family, "table": 20100 + number, "dst": "default", "via": hops[family]})
        mac = f"02:00:00:00:01:{number:02x}"
        marks.append({"name": f"a{number}", "id": number, "mask": 255, "mac": mac, "via": list(hops.values())})
    return {"schema": 1, "owner": "bench", "protocol": 210, "rules": rules, "routes": routes, "marks": marks}


def measure(directory: str) -> None:
    """Run the engine once in this process and print its figures as JSON. Standard input: the document, or nothing."""
    content = sys.stdin.read()
    host = engine.Host(sysctls=sysctl.Sysctls(f"{directory}/sysctl.json"), lock=f"{directory}/lock")
    started, cpu = time.monotonic(), cpu_seconds()
    if content:
        outcome = engine.reconcile(documents.load(json.loads(content)), host, engine.Options(directory=directory))
    else:
        outcome = engine.remove("bench", host, protocol=210, directory=directory)
    took = {"seconds": time.monotonic() - started, "cpu": cpu_seconds() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    changes = len(outcome.changes)
    del content, outcome
    gc.collect()
    print(json.dumps({**took, "changes": changes, "peak": peak, "rest": resident()}))


def cpu_seconds() -> float:
    """CPU seconds of this process and the commands it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def resident() -> float:
    """Resident memory of this process in MiB (proc_pid_statm(5))."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    from tests.lab.netns import NamespaceLab  # not imported in the measured processes

    whole, smaller = fleet(), fleet(BACKENDS - 1)
    runs = [("apply", whole), ("nothing to do", whole), ("one backend less", smaller), ("remove", None)]
    with NamespaceLab(f"bench{os.getpid()}", ["b"]) as lab, tempfile.TemporaryDirectory() as directory:
        print(f"{len(whole['rules'])} rules, {len(whole['routes'])} routes, {len(whole['marks'])} marks")
        command = [sys.executable, "-m", "tests.bench.routing", "measure", directory]
        late = []
        for name, data in runs:
            done = lab["b"].run(
                command, input=json.dumps(data) if data else "", cwd=Path(__file__).parents[2], timeout=120,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([".build/collections", "."])},
            )  # fmt: skip
            found = json.loads(done.stdout)
            bound = BOUNDS.get(name)
            late += [name] if bound and found["cpu"] > bound else []
            told = f" (at most {bound:g} s)" if bound else ""
            print(
                f"{name:17} {found['seconds']:6.3f} s, of which cpu {found['cpu']:.3f} s{told}, {found['changes']} "
                f"changes, {found['peak']:.0f} MiB at its peak, {found['rest']:.0f} MiB afterwards"
            )
    raise SystemExit(f"too slow: {', '.join(late)}" if late else 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        if sys.argv[1:2] == ["measure"]:
            measure(sys.argv[2])
        else:
            main()
