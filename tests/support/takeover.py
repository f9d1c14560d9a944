# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxies that share a virtual address, which the test moves from one to another, and long streams through them."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config

from tests.lab import netns, wiring
from tests.support import forwarding, keeping, streams
from tests.support.addresses import FAMILIES, address_of
from tests.support.deployment import BACKENDS, PROXIES, Deployment
from tests.support.waiting import PATIENCE, eventually, in_threads

VIRTUAL = {"ipv4": "198.18.0.100", "ipv6": "2001:db8::100"}
HOST = {"ipv4": ("-4", 32), "ipv6": ("-6", 128)}


class Streams:
    """The program of tests/support/streams.py on the client."""

    def __init__(self, lab, family: str, port: int, counts: Mapping[str, int], address: str = ""):
        self.family, self.port = family, port
        kinds = [f"{kind}={count}" for kind, count in counts.items()]
        argv = [sys.executable, streams.__file__, "client", address or VIRTUAL[family], str(port), *kinds]
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
        super().__init__(lab, directory, services, {}, proxies, backends)
        lab.engine = self.engine
        self.on_link, self.holder = on_link, ""
        self.keepers: dict[str, keeping.Running] = {}
        self.forwarders: list[forwarding.Forwarder] = []

    def stored(self, name: str) -> Path:
        """Where the keeper of a host reads its documents."""
        return self.directory / name / "routing.d"

    def start(self) -> None:
        """Apply all documents, start the keepers, and give the virtual address to the first proxy."""
        self.apply()
        for name in (*self.proxies, *self.backends):
            self.keepers[name] = keeping.Running(self.lab, self.lab[name], self.directory / name, "nft")
        keepers = list(self.keepers.values())
        in_threads(lambda index: keepers[index].start(), len(keepers))
        self.move(self.proxies[0])

    def start_forwarders(self) -> None:
        """Start a forwarder on each proxy."""
        for name in self.proxies:
            config = forwarder_config(self.fleet(name), name, {"workers": 1})
            self.forwarders.append(forwarding.Forwarder(self.lab, config, host=name).serve())

    def close(self) -> None:
        for process in (
            *(keeper.process for keeper in self.keepers.values()),
            *(one.process for one in self.forwarders),
        ):
            netns.stop(process)

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

    def take_over(self, old: str, new: str, streams: Iterable[Streams] = ()) -> None:
        """Cut the link of a proxy, and a second after that move the virtual address to another one."""
        self.cut(old)
        time.sleep(0.1)
        self.mark(streams)
        time.sleep(0.9)
        self.move(new)

    def flap(self, name: str, seconds: float) -> None:
        """Let the link of a host be down for some time."""
        self.cut(name)
        time.sleep(seconds)
        self.plug(name)

    @staticmethod
    def mark(streams: Iterable[Streams]) -> None:
        """Begin to measure."""
        for running in streams:
            running.mark()

    def forget(self, name: str) -> None:
        """Remove all conntrack entries of a host, as a reboot does."""
        self.lab[name].run(["conntrack", "-F"])

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


def serve(lab, names: Iterable[str], ports: Iterable[int], idle: float = 1.0) -> None:
    """Start servers of streams on hosts; they end with the lab. They speak every ``idle`` seconds to idle streams."""
    for name in names:
        argv = [sys.executable, streams.__file__, "serve", name, *map(str, ports)]
        process = lab[name].spawn(argv, stdout=subprocess.PIPE, env={**os.environ, "IDLE": str(idle)})
        assert process.stdout.readline() == "ready\n"


@contextmanager
def streaming(lab, counts: Mapping[int, Mapping[str, int]], families: Iterable[str] = FAMILIES):
    """Long streams through the virtual address: for each port and family a :class:`Streams` with these counts."""
    running = [Streams(lab, family, port, kinds) for port, kinds in counts.items() for family in families]
    try:
        yield [one.ready() for one in running]
    finally:
        for one in running:
            one.process.kill()
            one.process.communicate()


def kernel_services(port: int, backends: list[Any], **more: Any) -> list[dict[str, Any]]:
    """A TCP and a UDP service on a port of the virtual address, as users write them."""
    listen = [f"{VIRTUAL['ipv4']}:{port}", f"[{VIRTUAL['ipv6']}]:{port}"]
    common = {"listen": listen, "backends": backends, "datapath": "kernel", **more}
    return [{"name": f"{protocol}{port}", "protocol": protocol, **common} for protocol in ("tcp", "udp")]
