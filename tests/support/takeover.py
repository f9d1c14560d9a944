# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxies that share a virtual address, which the test moves from one to another, and long streams through them."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.lab import netns, wiring
from tests.support import keeping, streams
from tests.support.addresses import FAMILIES, address_of
from tests.support.deployment import BACKENDS, PROXIES, Deployment, by_strategy
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


class Fleet(Deployment):
    """Proxies that share a virtual address, and backends; each host has a keeper, all documents are derived.

    The router has a route for the virtual address to one of the proxies. With ``on_link`` that proxy has the address
    itself, on the link of the router, and a move is announced as keepalived does it.
    """

    def __init__(self, lab, directory: Path, services, proxies=PROXIES, backends=BACKENDS, *, on_link: bool = False):
        super().__init__(lab, directory, services, by_strategy(lab, "mark", backends, proxies), proxies, backends)
        lab.engine = self.engine
        self.on_link, self.holder = on_link, ""
        self.keepers: dict[str, keeping.Running] = {}

    def stored(self, name: str) -> Path:
        """Where the keeper of a host reads its documents."""
        return self.directory / name / "routing.d"

    def start(self) -> None:
        """Apply all documents, start the keepers, and give the virtual address to the first proxy."""
        self.apply()
        for name in (*self.proxies, *self.backends):
            self.keepers[name] = keeping.Running(self.lab, self.lab[name], self.directory / name, "nft")
            self.keepers[name].start()
        self.move(self.proxies[0])

    def close(self) -> None:
        for keeper in self.keepers.values():
            netns.stop(keeper.process)

    def move(self, name: str) -> None:
        """Let packets for the virtual address go to a proxy."""
        for family, (option, length) in HOST.items():
            address = f"{VIRTUAL[family]}/{length}"
            if not self.on_link:
                via = address_of(self.lab[name], family)
                self.lab["router"].run(["ip", option, "route", "replace", address, "via", via])
                continue
            if self.holder:
                self.lab[self.holder].run(["ip", option, "address", "del", address, "dev", self.lab[self.holder].dev])
            nodad = ["nodad"] if family == "ipv6" else []
            self.lab[name].run(["ip", option, "address", "add", address, "dev", self.lab[name].dev, *nodad])
            announce(self.lab[name], family)
        self.holder = name

    def cut(self, name: str) -> None:
        """Cut the link of a host at the switch."""
        self._port(name, "down")

    def plug(self, name: str) -> None:
        self._port(name, "up")

    def _port(self, name: str, state: str) -> None:
        wiring.run(["ip", "-n", self.lab.switch, "link", "set", self.lab[name].on("inside").port, state])


def announce(host, family: str) -> None:
    """Tell the neighbours the MAC of the virtual address: gratuitous ARP, or an unsolicited neighbour advertisement."""
    if family == "ipv4":
        host.run(["arping", "-U", "-c", "1", "-I", host.dev, VIRTUAL[family]], check=False)
        return
    packed, mac = socket.inet_pton(socket.AF_INET6, VIRTUAL[family]), bytes.fromhex(host.mac.replace(":", ""))
    override = 0x20000000
    # RFC 4861, sections 4.4 and 4.6.1: type 136, and option 2 with the MAC
    message = struct.pack("!BBHI16sBB6s", 136, 0, 0, override, packed, 2, 1, mac)
    with host.inside(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(host.dev))
        sock.sendto(message, ("ff02::1", 0))


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
