# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads under load: ``python -m tests.bench.soak [SECONDS]``, as root.

A reload every second, each with another number of workers, while new connections arrive and long streams go on, over
both families. Prints what failed; anything above zero is a failure.
"""

from __future__ import annotations

import sys
import threading
import time

from tests.kernel import forwarder_lab as fl

WEB, RAW = 8000, 7000
THREADS, STREAMS = 8, 100
WORKERS = (2, 4, 1, 3)


class Load:
    """Threads that ask for a page again and again, and streams that carry a number to and fro."""

    def __init__(self, lab, listener):
        self.lab = lab
        self.streams = [fl.pair(lab, listener, RAW) for _stream in range(STREAMS)]
        self.requests, self.slowest = 0, 0.0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(THREADS)]

    def start(self):
        """Begin."""
        for thread in self._threads:
            thread.start()

    def _ask(self, number):
        address = self.lab["a"].ipv4 if number % 2 else self.lab["a"].ipv6
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                answer = fl.get(self.lab, address, WEB)
                failure = None if answer in (b"b\n", b"c\n", b"d\n") else f"wrong answer {answer!r}"
            except OSError as error:
                failure = repr(error)
            with self._lock:
                self.requests += 1
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if failure:
                    self.failures.append(failure)
            time.sleep(THREADS / 200)  # about 200 new connections a second in all

    def exercise(self, number):
        """Send a number through every stream, both ways."""
        data = number.to_bytes(8, "big")
        for client, server in self.streams:
            try:
                client.sendall(data)
                server.sendall(data)
                if server.recv(8) != data or client.recv(8) != data:
                    self.failures.append("a stream carried something else")
            except OSError as error:
                self.failures.append(f"stream: {error!r}")

    def stop(self):
        """End; every stream is closed by both ends."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for end in sum(self.streams, ()):
            end.close()


def main(seconds: float) -> int:
    """Run and print one line; returns 1 when anything failed."""
    with fl.raise_lab("so") as lab, fl.listen(lab, "b", 9000) as listener:
        fl.wire(lab)
        for host in fl.BACKENDS:
            lab.nginx(host, ports=[8080])
        services = (fl.service(lab, "web", WEB, 8080), fl.service(lab, "raw", RAW, 9000, backends=["b"]))
        options = {"drain_timeout": 600}
        with fl.Forwarder(lab, fl.config(*services, workers=2, **options)) as forwarder:
            load = Load(lab, listener)
            load.start()
            reloads, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                begun = time.monotonic()
                forwarder.configure(fl.config(*services, workers=WORKERS[reloads % len(WORKERS)], **options))
                outcome = forwarder.reload()
                if outcome.returncode:
                    load.failures.append(outcome.stderr)
                reloads += 1
                load.exercise(reloads)
                time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
            load.stop()
    print(
        f"{reloads} reloads in {seconds:g} s, {load.requests} new connections (slowest {load.slowest:.2f} s),"
        f" {STREAMS} streams: {len(load.failures)} failures"
    )
    for failure in sorted(set(load.failures)):
        print(f"  {load.failures.count(failure)} x {failure}")
    return 1 if load.failures else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
