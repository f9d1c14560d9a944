# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The router of the lab with the real FRR: BGP with BFD to each proxy, and ECMP over those that announce."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tests.lab.netns import stop
from tests.support.waiting import eventually

ASN, PROXIES_ASN = 65000, 65001
DAEMONS = Path("/usr/lib/frr")
FLAG = {"ipv4": "-4", "ipv6": "-6"}


def config(peers: dict[str, list[str]]) -> str:
    """frr.conf with these peers of each family, of which only /32 and /128 are taken."""
    lines = ["bfd", " profile fast", "  receive-interval 100", "  transmit-interval 100", " exit", "exit"]
    lines += ["ip prefix-list hosts permit 0.0.0.0/0 ge 32", "ipv6 prefix-list hosts permit ::/0 ge 128"]
    lines += ["route-map hosts permit 10", " match ip address prefix-list hosts", "exit"]
    lines += ["route-map hosts permit 20", " match ipv6 address prefix-list hosts", "exit"]
    lines += [f"router bgp {ASN}", " bgp router-id 198.18.0.1", " no bgp default ipv4-unicast"]
    lines += [" timers bgp 3 9"]
    for addresses in peers.values():
        for address in addresses:
            lines += [f" neighbor {address} remote-as {PROXIES_ASN}", f" neighbor {address} bfd profile fast"]
            lines += [f" neighbor {address} timers connect 1", f" neighbor {address} advertisement-interval 0"]
    for family, addresses in peers.items():
        lines += [f" address-family {family} unicast", "  maximum-paths 8"]
        for address in addresses:
            lines += [f"  neighbor {address} activate", f"  neighbor {address} route-map hosts in"]
        lines += [" exit-address-family"]
    return "\n".join([*lines, "exit", ""])


class Frr:
    """FRR's daemons with this frr.conf in the namespace of a host, with files of their own."""

    def __init__(self, host, text: str):
        self.host, self.text = host, text
        self.directory: Path
        self._processes: list = []

    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"first-tier-{self.host.name}-"))
        path = self.directory / "frr.conf"
        path.write_text(self.text, encoding="ascii")
        (self.directory / "empty").touch()
        shutil.chown(self.directory, "frr", "frr")  # the account of the daemons
        own = ["-f", str(self.directory / "empty"), "--vty_socket", str(self.directory), "--log", "stdout"]
        for name in ("zebra", "bfdd", "bgpd"):  # bfdd before the peers come up
            zebra = ["-z", str(self.directory / "zserv.api"), "-i", str(self.directory / f"{name}.pid")]
            more = ["--bfdctl", str(self.directory / "bfdd.sock")] if name == "bfdd" else []
            with (self.directory / f"{name}.log").open("w", encoding="utf-8") as output:
                argv = [str(DAEMONS / name), *own, *zebra, *more]
                self._processes.append(self.host.spawn(argv, stdout=output, stderr=output, start_new_session=True))
            eventually((self.directory / f"{name}.vty").exists, f"{name} runs")
        self.host.run(["vtysh", "--vty_socket", str(self.directory), "-f", str(path)])

    def stop(self) -> None:
        for process in reversed(self._processes):
            stop(process)
        shutil.rmtree(self.directory)

    def ask(self, command: str) -> str:
        """The output of a command of FRR's shell."""
        return self.host.run(["vtysh", "--vty_socket", str(self.directory), "-c", command]).stdout


class Router(Frr):
    """The router of the lab, with a session to each of these proxies. Hashes ports too, as routers do."""

    def __init__(self, lab, proxies: list[str]):
        self.peers = {family: [getattr(lab[name], family) for name in proxies] for family in ("ipv4", "ipv6")}
        super().__init__(lab["router"], config(self.peers))

    def start(self) -> None:
        self.host.sysctl("net.ipv4.fib_multipath_hash_policy", "1")
        self.host.sysctl("net.ipv6.fib_multipath_hash_policy", "1")
        super().start()

    def next_hops(self, address: str) -> set[str]:
        """The next hops of the kernel's route to a virtual address."""
        family = "ipv6" if ":" in address else "ipv4"
        length = 128 if family == "ipv6" else 32
        listing = self.host.run(["ip", "-j", FLAG[family], "route", "show", f"{address}/{length}"]).stdout
        hops = [hop for route in json.loads(listing or "[]") for hop in route.get("nexthops", [route])]
        return {hop["gateway"] for hop in hops if "gateway" in hop}
