# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Three proxies with both first tiers at once: a virtual address of keepalived, and an address announced by BGP.

Ports of both addresses, in both families: WEB (forwarder), STREAM (forwarder) and KERNEL (long streams of the kernel
datapath). The router of the lab is the real FRR.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager

from tests.lab import ansible, topology, wiring
from tests.lab.containers import ContainerLab
from tests.support.router import ASN, PROXIES_ASN, Router
from tests.support.waiting import FACTOR, eventually
from tests.walk import fleet as walk
from tests.walk.fleet import ECHO, HTTP, STREAM, WEB

PROXIES, BACKENDS = ("a", "a2", "a3"), ("b", "c")
HOSTS = ("client", "router", *PROXIES, *BACKENDS)
KERNEL, KERNEL_ECHO = 7002, (9002, 9003)
#: The addresses of each first tier.
ADDRESSES = {"vrrp": ("198.18.0.100", "2001:db8::100"), "bgp": ("198.18.9.1", "2001:db8:9::1")}
EVERY = 0.05  # seconds between two attempts at an address
AT_ONCE = 0.9  # an attempt that takes longer has lost a packet: TCP repeats it after a second
READY = 60 * FACTOR


def inventory(proxies: Sequence[str], backends: Sequence[str]) -> dict:
    """The inventory, as users write it."""
    web, echo, *own = ([{"host": name, "port": port} for name in backends] for port in (HTTP, ECHO, *KERNEL_ECHO))
    services = [
        {"name": "web", "listen": [f"0.0.0.0:{WEB}", f"[::]:{WEB}"], "backends": web},
        {"name": "stream", "listen": [f"0.0.0.0:{STREAM}", f"[::]:{STREAM}"], "backends": echo},
    ]
    # A kernel service has one address of each family.
    for (tier, (ipv4, ipv6)), mine in zip(ADDRESSES.items(), own):
        listen = [f"{ipv4}:{KERNEL}", f"[{ipv6}]:{KERNEL}"]
        services.append({"name": f"kernel-{tier}", "datapath": "kernel", "listen": listen, "backends": mine})
    router = topology.load().hosts["router"].on("inside")
    peers = [{"address": address, "asn": ASN, "bfd": True} for address in (router.ipv4, router.ipv6)]
    variables = {
        "l4proxy_services": services,
        # A proxy that was cut off takes its backends for down; without this it is announced again before they are up.
        "forwarder_healthy_needs": "any",
        "l4proxy_virtual_ips": [
            {"name": "web", "addresses": list(ADDRESSES["vrrp"]), "proxies": list(proxies), "vrid": 100}
        ],
        "l4proxy_announce": {"asn": PROXIES_ASN, "peers": peers, "addresses": list(ADDRESSES["bgp"])},
    }
    groups = {"proxies": proxies, "backends": backends}
    children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    return {"all": {"vars": variables, "children": children}}


def next_hops_of(host) -> set[str]:
    """What a route to a host may have as its next hop: BGP prefers the link-local address, which is made of the MAC."""
    return {host.ipv4, host.ipv6, f"fe80::ff:fe00:{int(host.mac[-2:], 16):x}"}


class Fleet(walk.Fleet):
    """The running lab; names of targets are those of ADDRESSES."""

    logs = ansible.REPOSITORY / ".build" / "first_tier"

    def __init__(
        self, lab: ContainerLab, directory, proxies: Sequence[str] = PROXIES, backends: Sequence[str] = BACKENDS
    ):
        super().__init__(lab, directory)
        self.inventory = inventory(proxies, backends)
        self.router = Router(lab, list(proxies))

    def targets(self, proxies: tuple[str, ...], port: int) -> list[tuple[str, int]]:
        return [(address, port) for name in proxies for address in ADDRESSES[name]]

    def deploy(self) -> None:
        """Start backends and router, run ``site``, and wait until both first tiers serve."""
        for port in (ECHO, *KERNEL_ECHO):
            self.serve(*BACKENDS, port=port)
        self.router.start()
        self.play(str(walk.WEB_SERVERS))
        self.play("site")
        self.wait_whole()

    # --- where the addresses are ---

    def holders(self, address: str) -> list[str]:
        """The proxies that have an address on their link."""
        return [name for name in PROXIES if address in self._addresses(name)]

    def _addresses(self, name: str) -> set[str]:
        found = json.loads(wiring.run(["ip", "-n", self.lab[name].netns, "-j", "address"]).stdout)
        dev = self.lab[name].dev
        return {info["local"] for link in found if link.get("ifname") == dev for info in link["addr_info"]}

    @property
    def holder(self) -> str:
        """The proxy that alone has both virtual addresses; empty if there is none."""
        held = [self.holders(address) for address in ADDRESSES["vrrp"]]
        return held[0][0] if held[0] == held[1] and len(held[0]) == 1 else ""

    def announcing(self) -> set[str]:
        """The proxies to which the router sends both announced addresses."""
        hops = [self.router.next_hops(address) for address in ADDRESSES["bgp"]]
        return {name for name in PROXIES if all(map(next_hops_of(self.lab[name]).intersection, hops))}

    def wait_whole(self) -> None:
        """Wait until one proxy has the virtual addresses and all announce."""
        eventually(lambda: self.holder, "one holder", self.show, patience=READY, interval=0.1)
        every = set(PROXIES)
        eventually(lambda: self.announcing() == every, "all announce", self.show, patience=READY, interval=0.1)

    def show(self) -> str:
        here = {address: self.holders(address) for address in ADDRESSES["vrrp"]}
        bgp, bfd = (self.router.ask(f"show {words}") for words in ("bgp ipv4 unicast", "bfd peers brief"))
        return f"{here}\n{self.verdicts()}\n{bgp}{bfd}"

    def verdicts(self) -> str:
        """What each proxy says about its health."""
        return "".join(f"{name}: {self.lab[name].run(['l4proxy', 'healthy'], check=False).stdout}" for name in PROXIES)

    # --- power ---

    def cut(self, name: str) -> None:
        """Cut a proxy's link at the switch: nothing leaves it any more, not even a goodbye."""
        self._port(name, "down")

    def plug(self, name: str) -> None:
        self._port(name, "up")

    def _port(self, name: str, state: str) -> None:
        wiring.run(["ip", "-n", self.lab.switch, "link", "set", self.lab[name].on("inside").port, state])

    # --- what clients see ---

    def outage(self, name: str, since: float) -> float:
        """Seconds from ``since`` until the start of the first attempt from which on every attempt is served at once.

        All attempts at the addresses of a first tier count; of those from ``since`` on, all must have ended.
        """
        mine = [item for item in self.events() if item["event"] == "connection" and item["to"] in ADDRESSES[name]]
        began = [(item["at"] - item["seconds"], item["error"] or item["seconds"] > AT_ONCE) for item in mine]
        assert any(at >= since for at, _late in began), "no attempts"
        return max((at + EVERY - since for at, late in began if late and at >= since), default=0.0)

    def failed(self, since: float) -> list[dict]:
        """The connections that began later and were not served."""
        return [item for item in self.events() if item.get("error") and item["at"] - item["seconds"] >= since]

    def broken(self, since: float) -> list[dict]:
        """The streams that have broken since."""
        return [item for item in self.events() if item["event"] == "broken" and item["at"] >= since]

    @contextmanager
    def load(self, rate: float, *names: str, streams: Iterable[tuple[int, int]] = (), life: float | None = None):
        """Meanwhile open ``rate`` connections a second, and hold ``streams``: pairs of port and count."""
        self.start_load(rate)
        try:
            self.web(*names)
            for port, count in streams:
                self.open("stream", count, *names, port=port, reopen=life is not None, life=life)
            yield
        finally:
            self.end()
            self._read, self._events = 0, []  # the next load has a new log


class Watch(threading.Thread):
    """Records each change of the holder and of the proxies that announce, every 50 ms."""

    def __init__(self, fleet: Fleet):
        super().__init__(daemon=True)
        self.fleet, self._ending = fleet, threading.Event()
        self.seen: list[tuple[float, str, frozenset[str]]] = []

    def run(self) -> None:
        while not self._ending.wait(EVERY):
            now = (time.time(), self.fleet.holder, frozenset(self.fleet.announcing()))
            if not self.seen or self.seen[-1][1:] != now[1:]:
                self.seen.append(now)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self.join()

    def leaves(self, name: str) -> tuple[int, int]:
        """How often a proxy has lost the virtual addresses, and how often its announcement has ended."""
        pairs = list(zip(self.seen, self.seen[1:]))
        held = sum(before[1] == name != after[1] for before, after in pairs)
        return held, sum(name in before[2] and name not in after[2] for before, after in pairs)
