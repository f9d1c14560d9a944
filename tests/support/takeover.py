# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxies that share a virtual address, which the test moves from one to another, and long streams through them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager

from tests.lab import wiring
from tests.support import streams
from tests.support.addresses import FAMILIES, address_of
from tests.support.waiting import PATIENCE, eventually

VIRTUAL = {"ipv4": "198.18.0.100", "ipv6": "2001:db8::100"}
HOST = {"ipv4": ("-4", 32), "ipv6": ("-6", 128)}


class Streams:
    """The program of tests/support/streams.py on the client."""

    def __init__(self, lab, family: str, port: int, counts: Mapping[str, int]):
        self.family, self.port = family, port
        kinds = [f"{kind}={count}" for kind, count in counts.items()]
        argv = [sys.executable, streams.__file__, "client", VIRTUAL[family], str(port), *kinds]
        pipe = subprocess.PIPE
        self.process = lab["client"].spawn(argv, stdin=pipe, stdout=pipe, stderr=None)
        self.counts = counts

    def ready(self) -> Streams:
        assert self.process.stdout.readline() == "ready\n"
        return self

    def mark(self) -> None:
        self._ask("mark")

    def report(self) -> dict[str, dict]:
        return self._ask("report")

    def moved(self) -> dict[str, int]:
        """How many of each kind have moved bytes since the mark."""
        return {kind: found["moved"] for kind, found in self.report().items()}

    def all_move(self, patience: float = PATIENCE) -> dict[str, dict]:
        """Wait until all have moved bytes since the mark; return the report."""
        eventually(lambda: self.moved() == self.counts, str(self.counts), lambda: str(self.report()), patience=patience)
        return self.report()

    def _ask(self, command: str) -> dict[str, dict]:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Virtual:
    """The virtual address of a lab's proxies: the router has a route to one of them."""

    def __init__(self, lab):
        self.lab = lab

    def move(self, name: str) -> None:
        """Let the router send packets for the virtual address to a proxy."""
        for family, (option, length) in HOST.items():
            via = address_of(self.lab[name], family)
            route = ["ip", option, "route", "replace", f"{VIRTUAL[family]}/{length}", "via", via]
            self.lab["router"].run(route)

    def cut(self, name: str) -> None:
        """Cut the link of a host at the switch."""
        self._port(name, "down")

    def plug(self, name: str) -> None:
        self._port(name, "up")

    def _port(self, name: str, state: str) -> None:
        port = self.lab[name].on("inside").port
        wiring.run(["ip", "-n", self.lab.switch, "link", "set", port, state])


def serve(lab, names: Iterable[str], ports: Iterable[int]) -> None:
    """Start servers of streams on hosts; they end with the lab."""
    for name in names:
        argv = [sys.executable, streams.__file__, "serve", name, *map(str, ports)]
        process = lab[name].spawn(argv, stdout=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"


@contextmanager
def streaming(lab, counts: Mapping[str, int], port: int, families: Iterable[str] = FAMILIES):
    """Long streams through the virtual address; a list with one :class:`Streams` for each family."""
    running = [Streams(lab, family, port, counts) for family in families]
    try:
        yield [one.ready() for one in running]
    finally:
        for one in running:
            one.process.kill()
            one.process.wait()
