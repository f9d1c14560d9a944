# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What connections cost in which nothing moves: ``python -m tests.bench.idle``, as root.

- 8,000 idle ones: user-space memory of each, and how long a new connection takes beside them and beside 10;
- 1,000 that are paused, half-closed or reset: CPU of all processes of the forwarder.

Prints a line each with its bound; the exit code says whether all are kept. (That a slow reader costs no memory is in
tests/kernel/forwarder/test_bulk.py.)
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import time

from tests.bench import hold, measure
from tests.support import tcp
from tests.support.forwarding import AS_DAEMON, Forwarder, make_config, make_service, raise_lab, wire

HELD, RAW = 8000, 7000
IDLE, FEW = 8000, 10
MEMORY = 4096  # bytes a connection
LATENCY = 1.5  # times that beside FEW
ROUNDS, NEW = 3, 1000
SETTLED = 2.0  # seconds after which opening connections no longer disturbs the measurement
PAUSED = 1000
CPU, SECONDS = 0.01, 10.0  # share of one core, and seconds of the measurement
SMALL = "4096 16384 65536"  # bytes of a socket buffer here: a thousand full ones must fit into memory

ROW = "{:<52}{:>12}{:>12}  {}"


class Report:
    """Measured values, each with a bound."""

    def __init__(self) -> None:
        self.failed = False
        print(ROW.format("value", "measured", "bound", ""))

    def line(self, what: str, value: float, bound: float, form: str) -> None:
        """Print a value."""
        kept = value <= bound
        self.failed = self.failed or not kept
        print(ROW.format(what, form.format(value), form.format(bound), "" if kept else "MISSED"), flush=True)


@contextlib.contextmanager
def held(lab, forwarder, count: int):
    """Open connections and keep them open, half of them over IPv6."""
    holders = []
    for address in (lab["a"].ipv4, lab["a"].ipv6):
        command = [sys.executable, hold.__file__, "client", address, str(HELD), str(count // 2)]
        holders.append(lab["client"].spawn(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE))
    try:
        for holder in holders:
            said = holder.stdout.readline().strip()
            if said != f"holding {count // 2}":
                raise RuntimeError(f"{count} idle connections: {said}\n{holder.stdout.read()}\n{forwarder.show()}")
        yield
    finally:
        for holder in holders:
            holder.stdin.close()
            holder.wait(60)
        forwarder.settled()  # else the next ones would be opened while these are closing


def new_connection(lab) -> float:
    """Return the median seconds of a new connection with one byte in each direction."""
    taken = []
    with lab["client"].inside():
        for number in range(NEW):
            begun = time.perf_counter()
            with socket.create_connection((lab["a"].ipv6 if number % 2 else lab["a"].ipv4, HELD), 20) as sock:
                sock.sendall(b"?")
                sock.recv(1)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def idle(lab, forwarder, report: Report) -> None:
    """Measure memory and latency, alternating between few and many connections."""
    pids = measure.family(forwarder.process.pid)
    memory: dict[int, list[int]] = {FEW: [], IDLE: []}
    latency: dict[int, list[float]] = {FEW: [], IDLE: []}
    for _round in range(ROUNDS):
        for count in (FEW, IDLE):
            with held(lab, forwarder, count):
                time.sleep(SETTLED)
                memory[count].append(measure.memory(pids))
                latency[count].append(new_connection(lab))
    each = (max(memory[IDLE]) - memory[FEW][0]) / IDLE
    report.line(f"memory of each of {IDLE} idle connections, bytes", each, MEMORY, "{:.0f}")
    few, many = (statistics.median(latency[count]) for count in (FEW, IDLE))
    print(f"  a new connection: {few * 1e6:.0f} us with {FEW} others, {many * 1e6:.0f} us with {IDLE} others")
    report.line(f"a new connection beside {IDLE}, times that beside {FEW}", many / few, LATENCY, "{:.2f}")


def fill(sock: socket.socket) -> None:
    """Send until all buffers are full."""
    sock.setblocking(False)
    deadline = time.monotonic() + 0.02
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            while sock.send(bytes(65536)):
                pass


def paused(client: socket.socket, server: socket.socket) -> None:
    """The client does not read."""
    fill(server)


def half_closed(client: socket.socket, server: socket.socket) -> None:
    """The client has closed its direction."""
    client.shutdown(socket.SHUT_WR)


def half_closed_by_the_backend(client: socket.socket, server: socket.socket) -> None:
    """The backend has closed its direction."""
    server.shutdown(socket.SHUT_WR)


def reset_while_paused(client: socket.socket, server: socket.socket) -> None:
    """The backend does not read and the client is gone: epoll cannot mask the socket's error."""
    fill(client)
    tcp.reset(client)


def reset(client: socket.socket, server: socket.socket) -> None:
    """The client is gone."""
    tcp.reset(client)


KINDS = (paused, half_closed, half_closed_by_the_backend, reset_while_paused, reset)


def standing(lab, forwarder, report: Report) -> None:
    """Measure the cost of stalled sessions."""
    with tcp.listen(lab, "b", 9001) as listener:
        pairs = [tcp.pair(lab, listener, RAW) for _session in range(PAUSED)]
        for number, (client, server) in enumerate(pairs):
            KINDS[number % len(KINDS)](client, server)
        time.sleep(SETTLED)
        pids = measure.family(forwarder.process.pid)
        sessions = sum(worker["sessions"] for worker in forwarder.status()["workers"])
        before, begun = measure.cpu_seconds(pids), time.monotonic()
        time.sleep(SECONDS)
        used = (measure.cpu_seconds(pids) - before) / (time.monotonic() - begun)
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        print(f"  {PAUSED} opened ({before:.1f} s of CPU so far), {sessions} still open: {kinds}")
        report.line("CPU of those in which nothing moves, % of a core", 100 * used, 100 * CPU, "{:.2f}")
        for client, server in pairs:
            client.close()
            server.close()


def main() -> int:
    """Measure; return 1 if a value exceeds its bound."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    report = Report()
    with raise_lab("id") as lab:
        wire(lab)
        for address in (lab["b"].ipv4, lab["b"].ipv6):
            lab["b"].spawn([sys.executable, hold.__file__, "server", address, "9000"])
        services = (
            # Each server is a single Python loop, so an answer may take a while.
            make_service(lab, "held", HELD, 9000, backends=["b"], log="errors", connect_timeout=5),
            make_service(lab, "raw", RAW, 9001, backends=["b"], log="errors"),
        )
        with Forwarder(lab, make_config(*services, workers=2), wrapper=AS_DAEMON) as forwarder:
            idle(lab, forwarder, report)
            for name in ("rmem", "wmem"):
                lab["a"].sysctl(f"net.ipv4.tcp_{name}", SMALL)
            standing(lab, forwarder, report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
