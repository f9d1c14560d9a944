# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshot that every check goes by: plain values, gathered once.

What a missing package keeps from us is None, and the reason is in ``missing``: a fresh host has neither pyroute2 nor
nft. What could not be read for another reason is an ``unread.Unread``, and the reason is in ``unread``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...document.documents import Document
from ...document.model import OWNERS, KernelObject
from ...netlink.route_query import RouteAnswer
from ...reconcile.plan import Change
from ..firewall.model import Ruleset
from ..rule_matching import Reply


@dataclass(frozen=True)
class Peer:
    """A proxy as this backend sees it, in one family: where its document sends replies, and what is there.

    ``dev`` is the interface on which ``via`` is a direct neighbour, ``own`` this host's address towards it. ``mac`` is
    what the neighbour table says, ``declared`` what the document does. ``arrival`` is the kernel's answer for a
    client's packet that comes in by ``dev``, ``unmarked`` its route to the client without any mark.
    """

    name: str
    family: str
    via: str
    table: int
    id: int | None = None
    mask: int = 0
    # Whether the mark is kept by the connection, and restored when its replies are sent.
    tracked: bool = False
    wanted_dev: str | None = None
    dev: str | None = None
    own: str | None = None
    is_local: bool = False
    declared: tuple[str, ...] = ()
    mac: str | None = None
    # False behind a tunnel, say: then the interface tells its packets.
    # The router of the clients where it is another host than the proxy, its MAC, and who else is known at that MAC.
    router: str | None = None
    router_mac: str | None = None
    beside: tuple[str, ...] = ()
    has_mac: bool = True
    arrival: RouteAnswer | None = None
    unmarked: RouteAnswer | None = None


@dataclass(frozen=True)
class Backend:
    """A backend as this proxy sees it, and the interface it is on."""

    family: str
    address: str
    dev: str | None = None
    # Behind a bridge of this host that leads to no router: a container, which this host routes for.
    is_hosted: bool = False


@dataclass(frozen=True)
class Socket:
    """A listening TCP socket, or an unconnected UDP one: there, or wanted by a config. ``protocol`` is tcp or udp.

    With a ``last`` port it stands for one on each port from ``port`` to it.
    """

    protocol: str
    address: str
    port: int
    last: int = 0

    @property
    def family(self) -> str:
        return "ipv6" if ":" in self.address else "ipv4"

    @property
    def is_wildcard(self) -> bool:
        return self.address in ("0.0.0.0", "::")

    @property
    def ports(self) -> range:
        return range(self.port, max(self.port, self.last) + 1)

    def accepts(self, protocol: str, address: str, port: int) -> bool:
        """Whether what is sent to that address and port arrives here; :: takes IPv4 too, unless its owner says not."""
        here = self.address in (address, "::") or (self.is_wildcard and ":" not in address)
        return here and self.protocol == protocol and port in self.ports


def spelled(ports: Iterable[int]) -> str:
    """Ports in words: ``80``, ``8000-8003, 8005``."""
    spans: list[list[int]] = []
    for port in sorted(ports):
        if spans and port == spans[-1][1] + 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


@dataclass(frozen=True)
class Relay:
    """A process that listens on ``socket`` and passes connections on by its own sockets; ``name`` is the program's."""

    socket: Socket
    name: str
    pid: int


@dataclass(frozen=True)
class Conntrack:
    """Entries now and at most; ``dropped`` counts packets refused because the table was full, since boot."""

    count: int
    most: int
    dropped: int = 0


@dataclass(frozen=True)
class Unit:
    """A systemd unit, in systemd's words: loaded | not-found, active | inactive | failed ..., enabled | disabled ..."""

    load: str
    active: str
    enabled: str


@dataclass(frozen=True)
class Contest:
    """What the keeper says of a repair that does not last: how often in a row, what it was, and who undoes it."""

    times: int
    owner: str = ""
    changes: tuple[str, ...] = ()
    who: str = ""


@dataclass(frozen=True)
class Forwarder:
    """What forwarder.json wants, and what runs: ``pid`` and its effective capabilities, None when nothing runs.

    ``targets`` are the backends' addresses with their ports, ``uid`` the account that connects to them.
    """

    path: str
    error: str | None = None
    listeners: tuple[Socket, ...] = ()
    backends: tuple[str, ...] = ()
    pid: int | None = None
    capabilities: int | None = None
    targets: tuple[Socket, ...] = ()
    uid: int | None = None
    stopped: bool = False


@dataclass(frozen=True)
class Drift:
    """How far the host is from one document: the changes that are needed, or why that cannot be said."""

    owner: str
    changes: tuple[Change, ...] = ()
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """``applied`` is False when ``documents`` are still to be applied. ``clients`` is one sample client a family."""

    documents: tuple[Document, ...] = ()
    faults: tuple[str, ...] = ()
    applied: bool = True
    clients: Mapping[str, str] = field(default_factory=dict)
    # Families whose sample client was chosen by the caller, and so stands for real ones.
    clients_given: frozenset[str] = frozenset()
    ports: tuple[tuple[str, int], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    # name: whether it is up
    links: Mapping[str, bool] = field(default_factory=dict)
    # This host's addresses: all of them, or (without pyroute2) those that the documents ask for.
    own: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    # (address, MAC) of IPv4 neighbours
    arp: tuple[tuple[str, str], ...] = ()
    peers: tuple[Peer, ...] = ()
    backends: tuple[Backend, ...] = ()
    replies: Mapping[Reply, RouteAnswer] = field(default_factory=dict)
    rules: tuple[KernelObject, ...] | None = None
    routes: tuple[KernelObject, ...] | None = None
    addresses: tuple[KernelObject, ...] | None = None
    # destination: the gateway that a redirect has taught
    redirected: Mapping[str, str] | None = None
    ruleset: Ruleset | None = None
    # Where DNAT rules of the filters send packets: address: interface
    translated: Mapping[str, str] = field(default_factory=dict)
    # Whether our own table gives forwarded packets their mark back.
    restores_forwarded: bool = False
    sockets: tuple[Socket, ...] = ()
    relays: tuple[Relay, ...] = ()
    conntrack: Conntrack | None = None
    units: Mapping[str, Unit] | None = None
    drop_ins: tuple[str, ...] = ()
    contest: Contest | None = None
    forwarder: Forwarder | None = None
    drift: tuple[Drift, ...] = ()

    @property
    def return_path(self) -> tuple[Document, ...]:
        """The documents that send replies to a next hop: this host is a backend."""
        return tuple(one for one in self.documents if any(route.via for route in one.routes))

    @property
    def local_delivery(self) -> tuple[Document, ...]:
        """The documents that take replies in: this host is a proxy."""
        return tuple(one for one in self.documents if any(route.type == "local" for route in one.routes))

    @property
    def protocols(self) -> frozenset[int]:
        """The protocol numbers of ours, also of a document that is not looked at: a host may be at both ends."""
        return frozenset(one.protocol for one in self.documents) | frozenset(OWNERS.values())

    def served(self, address: str) -> list[tuple[str, int]]:
        """(protocol, port) at an address of this host: those that were named, else what listens there."""
        there = {(one.protocol, one.port) for one in self.sockets if one.accepts(one.protocol, address, one.port)}
        return sorted(self.ports or there)

    def setting(self, name: str, default: int = 0) -> int:
        """A setting as a number; ``default`` where the kernel has none of that name."""
        value = self.settings.get(name, "")
        return int(value) if value.lstrip("-").isdigit() else default

    def highest(self, family: str, link: str, key: str) -> int:
        """The larger of ``all`` and the interface's own, which is how the kernel reads rp_filter and its like."""
        return max(self.setting(conf(family, name, key)) for name in ("all", link))


def conf(family: str, link: str, key: str) -> str:
    """The name of a setting of one interface, as ``Sysctl`` spells it: a dot in the interface's name becomes /."""
    return f"net.{family}.conf.{link.replace('.', '/')}.{key}"
