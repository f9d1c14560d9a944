# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of the benchmark: client, router, two proxy hosts (one for the kernel's DNAT) and a backend."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import hold
from tests.bench.measure import Everything
from tests.bench.peers import BULK, HOLD, HTTP, UDP, Running
from tests.lab.netns import NamespaceLab
from tests.support.routing import Engine, local_delivery, return_path

SOURCE = Path(__file__).with_name("udp.c")
#: Each of these accounts of the client has an address of its own.
UIDS = tuple(range(61001, 61009))
OFFLOADS = ("tso", "gso", "gro")


class BenchLab(NamespaceLab):
    """A lab with routing on both ends, servers on b, and the UDP tool at ``.udp``.

    ``.client_addresses`` are the client's, beside its own; a process of UIDS has the one of its place.
    """

    def __enter__(self) -> BenchLab:
        self._everything = Everything()
        super().__enter__()
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def _set_up(self) -> None:
        engine = Engine(self.tmp)
        engine.apply(self["a"], local_delivery(self["b"]))
        engine.apply(self["b"], return_path(self["a"], self["a2"]))
        self._forward()
        self._add_client_addresses()
        self.udp = self.tmp / "udp"
        subprocess.run(["gcc", "-O2", "-o", str(self.udp), str(SOURCE)], check=True)
        b = self["b"]
        self.nginx("b", ports=[HTTP])
        b.spawn(["iperf3", "--server", "--port", str(BULK)])
        b.spawn([sys.executable, hold.__file__, "server", "0.0.0.0", str(HOLD)])
        b.spawn([str(self.udp), "echo", "0.0.0.0", str(UDP)])
        self._wait_for(BULK, HOLD)

    def _forward(self) -> None:
        """Let the kernel of a2 forward packets; its peers say which ones."""
        a2 = self["a2"]
        a2.sysctl("net.ipv4.ip_forward", "1")
        a2.sysctl("net.ipv4.conf.all.send_redirects", "0")
        a2.sysctl(f"net.ipv4.conf.{a2.dev}.send_redirects", "0")

    def close(self) -> None:
        """Stop all processes, and leave their control group."""
        super().close()
        self._everything.close()

    def spent(self, running: Running) -> Callable[[float], dict[str, float]]:
        """Return a function of a number of units: the CPU seconds for each from now on, as fields of a Sample."""
        peer, total = running.cpu(), self._everything.cpu()

        def per_unit(units: float) -> dict[str, float]:
            units = max(units, 1e-9)
            used = {"total_per_unit": (self._everything.cpu() - total) / units}
            return {**used, "cpu_per_unit": (running.cpu() - peer) / units} if running.pids() else used

        return per_unit

    def _add_client_addresses(self) -> None:
        client = self["client"]
        gateway = self["router"].on("outside").ipv4
        network = client.ipv4.rpartition(".")[0]
        self.client_addresses = [f"{network}.{101 + number}" for number in range(len(UIDS))]
        for source, uid in zip(self.client_addresses, UIDS):
            client.run(["ip", "address", "add", f"{source}/32", "dev", client.dev])
            client.run(["ip", "route", "add", "default", "via", gateway, "src", source, "table", str(uid)])
            client.run(["ip", "rule", "add", "uidrange", f"{uid}-{uid}", "lookup", str(uid)])

    def _wait_for(self, *ports: int) -> None:
        """Wait until the servers of b listen: /proc/net/tcp has the port in state 0A."""
        deadline = time.monotonic() + 20
        wanted = {f":{port:04X}" for port in ports}
        while True:
            listing = self["b"].run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout.splitlines()
            fields = [line.split() for line in listing]
            listening = {row[1][row[1].index(":") :] for row in fields if len(row) > 3 and row[3] == "0A"}
            if wanted <= listening:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the servers of b do not listen on {wanted - listening}")
            time.sleep(0.02)

    def forget(self) -> None:
        """Remove closed connections of a peer, whose ports would delay those of the next one.

        A kernel without INET_DIAG_DESTROY keeps TIME-WAIT sockets; then the first round is not like the others.
        """
        for host in self.hosts.values():
            host.run(["ss", "--kill", "--tcp", "--no-header", "state", "time-wait"], check=False)
            host.run(["conntrack", "--flush"], check=False)

    def offload(self, on: bool) -> None:
        """Let the virtual links carry large segments, or only packets of a real link's size."""
        for host in self.hosts.values():
            for interface in host.spec.interfaces:
                flags = [word for name in OFFLOADS for word in (name, "on" if on else "off")]
                host.run(["ethtool", "-K", interface.dev, *flags])


def raise_lab() -> BenchLab:
    """Return a lab that is not yet up, with a prefix for this process."""
    return BenchLab(f"bench{os.getpid()}", ["client", "router", "a", "a2", "b"])
