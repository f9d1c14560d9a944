# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy whose kernel forwards services, and clients of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath import banned, counters
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import steps
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.render import render
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.table import Datapath
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import run

from tests.kernel.forwarder.sessions import MANY, Refused, Session
from tests.support import udp
from tests.support.addresses import FAMILIES
from tests.support.routing import handshake, local_delivery
from tests.support.waiting import PATIENCE

PORT, BACKEND = 7980, 9000
BACKENDS = ("b", "c", "d")
MARK = 0xFF
SRC_VALID_MARK = "net.ipv4.conf.all.src_valid_mark"
EARLY_DEMUX = "net.ipv4.ip_early_demux"
FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}


class Proxy:
    """Host a: its table of services, in the lab that has local delivery for forwarder services as well."""

    def __init__(self, lab):
        self.lab, self.host = lab, lab["a"]
        self._datapath = Datapath(run)
        for name in FORWARDING.values():
            self.host.sysctl(name, "1")
        # A backend's rule of local delivery would make the source of its clients' packets invalid.
        self.host.sysctl(SRC_VALID_MARK, "1")
        self.host.sysctl(EARLY_DEMUX, "0")
        for dev in ("all", self.host.dev):  # it forwards out of the interface on which a packet came
            self.host.sysctl(f"net.ipv4.conf.{dev}.send_redirects", "0")
        lab.engine.apply(self.host, local_delivery(*(lab[name] for name in BACKENDS)))
        self.bypass("add")

    def address(self, family: str) -> str:
        """What clients connect to."""
        return str(getattr(self.host, family))

    def bypass(self, verb: str) -> None:
        """Add or delete the rule that keeps marked packets away from local delivery."""
        for flag in ("-4", "-6"):
            rule = ["fwmark", f"{MARK}/{MARK}", "lookup", "main", "priority", "1099"]
            self.host.run(["ip", flag, "rule", verb, *rule])

    def service(self, protocol: str, family: str, names: Iterable[str] = BACKENDS, **options) -> KernelService:
        """``web``, on the proxy's address of a family; ``weights`` are those of its backends."""
        weights = options.pop("weights", {})
        servers = [
            Server(name, getattr(self.lab[name], family), BACKEND, weights.get(name, 1), **options.pop(name, {}))
            for name in names
        ]
        options = {"port": PORT, **options}
        return KernelService("web", family, protocol, getattr(self.host, family), servers=tuple(servers), **options)

    def serve(self, *services: KernelService, states: dict[str, str] | None = None, bans=(), **options) -> None:
        """Change the table; ``states`` are those of the backends of web."""
        table = render(services, States({} if states is None else {"web": states}), mark=MARK, mask=MARK, **options)
        banned.add(table, services, bans)
        with self.host.inside():
            self._datapath.write(self._datapath.read(), table)
        self.services, self._table = services, table
        assert not self.differs()

    def differs(self) -> bool:
        """Whether the live table is another one than serve() made."""
        with self.host.inside():
            return bool(steps(self._datapath.read(), self._table))

    def forget(self) -> None:
        """Let conntrack forget all connections."""
        for family in FAMILIES:
            self.host.run(["conntrack", "-F", "-f", family])

    def counts(self) -> dict:
        """What has been counted for web."""
        with self.host.inside():
            return counters.by_service(self.services, counters.read())["web"]

    def refused(self) -> dict[str, int]:
        """How many clients were refused, by cause."""
        return {cause: number for cause, number in self.counts()["refused"].items() if number}

    def dropped(self) -> dict[str, int]:
        """Packets of no connection that were dropped, by cause."""
        with self.host.inside():
            return {cause: number for cause, number in counters.dropped(counters.read()).items() if number}

    def connections(self) -> dict[str, int]:
        """How many connections each backend has had."""
        return {name: found["connections"] for name, found in self.counts()["backends"].items()}


class Client:
    """Sessions with the service, from the client's own address or from many."""

    def __init__(self, lab, protocol: str, family: str, port: int = PORT):
        self._lab, self.protocol, self.family = lab, protocol, family
        self.to = (getattr(lab["a"], family), port)

    def session(self, source: str | None = None, patience: float = PATIENCE) -> Session:
        return Session(self._lab, self.protocol, self.to, source, patience)

    def is_refused(self, source: str | None = None) -> bool:
        """Whether a session is refused: over TCP by RST; over UDP whether there is no answer."""
        try:
            self.session(source, udp.QUIET).end()
        except (Refused, ConnectionRefusedError):
            return True
        return False

    def is_silent(self) -> bool:
        """Whether there is no answer."""
        if self.protocol == "udp":
            return self.is_refused()
        return handshake(self._lab["client"], getattr(self._lab["client"], self.family), *self.to) == "silent"

    def source(self, number: int) -> str:
        return str(ipaddress.ip_network(MANY[self.family])[number])

    def backends(self, count: int) -> dict[tuple[str, int], str]:
        """{(address, port) of a client: backend} of short sessions from ``count`` addresses."""
        found = {}
        for number in range(1, count + 1):
            session = self.session(self.source(number))
            found[session._sock.getsockname()[:2]] = session.name
            session.end()
        return found
