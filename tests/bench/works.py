# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The works. A work loads one running peer for some seconds, and returns one sample."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from tests.bench import hold
from tests.bench.bench_lab import UIDS, BenchLab
from tests.bench.measure import Sample
from tests.bench.peers import BULK, HOLD, HTTP, UDP, Peer, Running, Setting

GIGABYTE = 1e9
UNITS = {"bulk": "GB", "requests": "request", "connections": "connection", "udp": "datagram", "idle": "connection"}
#: wrk prints times in the unit that fits.
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


DEFAULT, LOGGING, TWO, DATAGRAMS = Setting(), Setting(log=True), Setting(workers=2), Setting(udp=True)


@dataclass(frozen=True)
class Work:
    """A named measurement: ``run(lab, peer, running, seconds)``, and its requirements of peers."""

    name: str
    run: Callable[[BenchLab, Peer, Running, float], Sample]
    setting: Setting = DEFAULT
    #: Whether the ends of the scale (no proxy, the kernel's DNAT) are measured beside the proxies.
    ends: bool = False
    quick: bool = True
    #: Segments as large as the virtual wires allow, or as a real wire would carry.
    offload: bool = True
    #: The port of TCP it needs beside that of HTTP, by which a peer is known to forward.
    port: int = HTTP

    @property
    def unit(self) -> str:
        """The units of its rate and CPU time."""
        return UNITS[self.name.split("-")[0]]


def address(lab: BenchLab, peer: Peer) -> str:
    """Return the address of a peer."""
    return str(lab[peer.host].ipv4)


def bulk(streams: int, towards_client: bool) -> Callable[[BenchLab, Peer, Running, float], Sample]:
    """Streams that send at full speed; rates in bit/s, CPU seconds per gigabyte."""

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        command = ["iperf3", "--client", address(lab, peer), "--port", str(BULK), "--parallel", str(streams)]
        command += ["--time", f"{seconds:g}", "--json", *(["--reverse"] if towards_client else [])]
        used = lab.spent(running)
        told = json.loads(lab["client"].run(command, timeout=seconds + 30, check=False).stdout)
        if "error" in told:
            raise RuntimeError(f"{peer.name}: iperf3: {told['error']}")
        received = told["end"]["sum_received"]
        return Sample(received["bits_per_second"], **used(received["bytes"] / GIGABYTE))

    return run


def requests(connections: int) -> Callable[[BenchLab, Peer, Running, float], Sample]:
    """Small requests, one after another, on connections that stay open."""

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        used = lab.spent(running)
        told = read_wrk(lab["client"].run(wrk(lab, peer, connections, seconds), timeout=seconds + 30).stdout)
        return Sample(told["rate"], told["p50"], told["p99"], failed=told["failed"], **used(told["count"]))

    return run


def connections(parallel: int) -> Callable[[BenchLab, Peer, Running, float], Sample]:
    """A new connection for every request, from several client addresses, so that ports do not run out."""

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        command = [*wrk(lab, peer, parallel // len(UIDS), seconds), "--header", "Connection: close"]
        used = lab.spent(running)
        clients = [
            lab["client"].spawn(["setpriv", f"--reuid={uid}", "--clear-groups", *command], stdout=subprocess.PIPE)
            for uid in UIDS
        ]
        told = [read_wrk(client.communicate(timeout=seconds + 30)[0]) for client in clients]
        rate, count = (sum(one[key] for one in told) for key in ("rate", "count"))
        p50, p99 = (sum(one[key] * one["count"] for one in told) / max(count, 1) for key in ("p50", "p99"))
        return Sample(rate, p50, p99, failed=sum(one["failed"] for one in told), **used(count))

    return run


def wrk(lab: BenchLab, peer: Peer, count: int, seconds: float) -> list[str]:
    """Return the command line that sends requests over ``count`` connections."""
    target = f"http://{address(lab, peer)}:{HTTP}/"
    return ["wrk", "--threads", "1", "--connections", str(count), "--duration", f"{seconds:g}s", "--latency", target]


def read_wrk(text: str) -> dict[str, float]:
    """Parse wrk's report: requests, requests per second, latencies in seconds, failures."""

    def time_of(percent: int) -> float:
        number, unit = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE).groups()
        return float(number) * SECONDS[unit]

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return {
        "count": float(re.search(r"(\d+) requests in", text)[1]),
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "p50": time_of(50),
        "p99": time_of(99),
        "failed": sum(map(int, errors.groups())) if errors else 0 + (int(refused[1]) if refused else 0),
    }


def datagrams(clients: int, size: int, in_flight: int = 64, new: bool = False):
    """Request and reply over UDP; the rate is replies per second.

    A ``new`` client with each request: for a moment only, because nginx has connections for 9,950 sessions.
    """

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        numbers = map(str, (UDP, clients, in_flight, size, min(seconds, 0.4) if new else seconds))
        used = lab.spent(running)
        command = [str(lab.udp), "new" if new else "load", address(lab, peer), *numbers, *lab.client_addresses]
        told = json.loads(lab["client"].run(command, timeout=seconds + 30).stdout)
        cpu = used(2 * told["replies"])  # a datagram each way
        return Sample(told["replies"] / told["seconds"], told["p50"], told["p99"], failed=told["lost"], **cpu)

    return run


@contextmanager
def held(lab: BenchLab, peer: Peer, count: int):
    """Keep ``count`` idle connections open through a peer."""
    words = ["client", address(lab, peer), str(HOLD), str(count), *lab.client_addresses]
    command = [sys.executable, hold.__file__, *words]
    holder = lab["client"].spawn(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        answer = holder.stdout.readline().strip()
        if answer != f"holding {count}":
            raise RuntimeError(f"{peer.name}: {count} idle connections: {answer or holder.log.read_text()}")
        yield
    finally:
        holder.stdin.close()
        holder.wait(30)


def idle(count: int) -> Callable[[BenchLab, Peer, Running, float], Sample]:
    """User-space memory of a peer for each idle connection, in bytes."""

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        with held(lab, peer, 10):
            running.settle()
            before = running.memory()
        with held(lab, peer, count):
            return Sample(rss=(running.memory() - before) / count)

    return run


def beside(count: int, work: Callable[[BenchLab, Peer, Running, float], Sample]):
    """Another work while ``count`` idle connections are open."""

    def run(lab: BenchLab, peer: Peer, running: Running, seconds: float) -> Sample:
        with held(lab, peer, count):
            return work(lab, peer, running, seconds)

    return run


WORKS = (
    Work("bulk-1-down", bulk(1, True), ends=True, port=BULK),
    Work("bulk-1-up", bulk(1, False), ends=True, port=BULK),
    Work("bulk-16-down", bulk(16, True), quick=False, port=BULK),
    Work("bulk-16-up", bulk(16, False), quick=False, port=BULK),
    Work("bulk-1-down-segments", bulk(1, True), ends=True, quick=False, offload=False, port=BULK),
    Work("bulk-1-up-segments", bulk(1, False), quick=False, offload=False, port=BULK),
    Work("requests-64", requests(64), ends=True),
    Work("requests-1000", requests(1000), quick=False),
    Work("connections-32", connections(32), ends=True),
    Work("connections-256", connections(256), quick=False),
    Work("connections-32-logged", connections(32), LOGGING),
    Work("udp-64-100", datagrams(100, 64), DATAGRAMS, ends=True),
    Work("udp-1200-100", datagrams(100, 1200), DATAGRAMS, quick=False),
    Work("udp-64-5000", datagrams(5000, 64), DATAGRAMS),
    Work("udp-64-new", datagrams(64, 64, new=True), DATAGRAMS),
    Work("idle-1000", idle(1000), quick=False, port=HOLD),
    Work("idle-8000", idle(8000), port=HOLD),
    *(
        Work(f"requests-64-beside-{count}", beside(count, requests(64)), quick=False, port=HOLD)
        for count in (10, 1000, 8000)
    ),
    *(
        Work(f"connections-32-beside-{count}", beside(count, connections(32)), quick=False, port=HOLD)
        for count in (10, 1000, 8000)
    ),
    Work("requests-64-workers-2", requests(64), TWO, quick=False),
    Work("connections-32-workers-2", connections(32), TWO, quick=False),
    Work("udp-64-100-workers-2", datagrams(100, 64), Setting(workers=2, udp=True), quick=False),
)
