# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The facts that every check examines: plain values, gathered once.

A fact that needs a missing package is None, and ``missing`` has the reason: a new host has neither pyroute2 nor nft.
A fact that could not be read for another reason is an ``unread.Unread``, and ``unread`` has the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...document.documents import Document
from ...document.model import OWNERS, KernelObject
from ...netlink.route_query import RouteAnswer
from ...reconcile.change import Change
from ..firewall.model import Ruleset
from ..rule_matching import Reply

# By family: the setting that lets the kernel forward packets.
FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
# Whether the frames of bridges pass the packet filters for IP (br_netfilter).
BRIDGED = {"ipv4": "net.bridge.bridge-nf-call-iptables", "ipv6": "net.bridge.bridge-nf-call-ip6tables"}
# Whether conntrack accepts a connection whose beginning it has not seen.
TCP_LOOSE = "net.netfilter.nf_conntrack_tcp_loose"


@dataclass(frozen=True)
class Peer:
    """A proxy as this backend sees it, in one family: the next hop in the document, and what the host knows about it.

    ``dev`` is the interface on which ``via`` is a direct neighbour, ``own`` this host's address towards it. ``mac`` is
    from the neighbour table, ``declared`` from the document. ``arrival`` is the kernel's route lookup for a client's
    packet that arrives on ``dev``, ``unmarked`` its route to the client without a mark.
    """

    name: str
    family: str
    via: str
    table: int
    id: int | None = None
    mask: int = 0
    # Whether conntrack keeps the mark and restores it on replies.
    tracked: bool = False
    wanted_dev: str | None = None
    dev: str | None = None
    own: str | None = None
    is_local: bool = False
    declared: tuple[str, ...] = ()
    mac: str | None = None
    # The router towards the clients, if that is another host than the proxy; its MAC; other neighbours at that MAC.
    router: str | None = None
    router_mac: str | None = None
    same_mac: tuple[str, ...] = ()
    # False behind a tunnel, for example, where the interface identifies the proxy's packets.
    has_mac: bool = True
    arrival: RouteAnswer | None = None
    unmarked: RouteAnswer | None = None


@dataclass(frozen=True)
class Backend:
    """A backend as this proxy sees it, and the interface it is on."""

    family: str
    address: str
    dev: str | None = None
    # Behind a bridge of this host that does not lead to the router: a container, which this host routes for.
    is_hosted: bool = False


@dataclass(frozen=True)
class KernelTarget:
    """A service that the kernel of this proxy forwards, and one of its backends.

    Clients' packets to ``address`` and ``port`` go to ``target`` and ``target_port``. ``iif`` is the interface on which
    the neighbours of ``address`` are, None if no interface of this host is in its network; ``oif`` leads to the
    backend. ``arrival`` is the kernel's route lookup for the sample client's packet from ``iif`` to the backend.
    """

    service: str
    family: str
    protocol: str
    address: str
    port: int
    target: str
    target_port: int
    iif: str | None = None
    oif: str | None = None
    arrival: RouteAnswer | None = None

    @property
    def endpoint(self) -> tuple[str, str, int]:
        return self.protocol, self.address, self.port

    @property
    def links(self) -> set[str]:
        """The interfaces on which this host receives packets to forward."""
        return {link for link in (self.iif, self.oif) if link}


@dataclass(frozen=True)
class Socket:
    """A listening TCP socket or an unconnected UDP one, existing or configured. ``protocol`` is tcp or udp.

    With a ``last`` port it stands for one socket on each port from ``port`` to ``last``.
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
        """Whether it receives packets to that address and port; :: also receives IPv4, unless it is IPv6-only."""
        matches = self.address in (address, "::") or (self.is_wildcard and ":" not in address)
        return matches and self.protocol == protocol and port in self.ports


def format_ports(ports: Iterable[int]) -> str:
    """Ports as text: ``80``, ``8000-8003, 8005``."""
    spans: list[list[int]] = []
    for port in sorted(ports):
        if spans and port == spans[-1][1] + 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


@dataclass(frozen=True)
class Relay:
    """A process that listens on ``socket`` and relays connections from its own sockets; ``name`` is the program's."""

    socket: Socket
    name: str
    pid: int


@dataclass(frozen=True)
class Conntrack:
    """Current and maximal number of entries; ``dropped`` counts packets dropped by the full table since boot."""

    count: int
    maximum: int
    dropped: int = 0


@dataclass(frozen=True)
class Unit:
    """A systemd unit's states: loaded | not-found, active | inactive | failed ..., enabled | disabled ..."""

    load: str
    active: str
    enabled: str


@dataclass(frozen=True)
class Silent:
    """A proxy that does not answer the keeper, and since when."""

    proxy: str
    address: str
    since: str


@dataclass(frozen=True)
class Contest:
    """A repair that does not last: how many times in a row it was reverted, its changes, and who reverts it."""

    times: int
    owner: str = ""
    changes: tuple[str, ...] = ()
    who: str = ""


@dataclass(frozen=True)
class OldCode:
    """A generation of the forwarder that runs another archive: ``age`` is the seconds since it was replaced."""

    generation: int
    version: str | None
    sessions: int
    age: float


@dataclass(frozen=True)
class Forwarder:
    """The forwarder's config, and its process: ``pid`` and effective ``capabilities`` are None if it does not run.

    ``targets`` are the backends' addresses with their ports, ``uid`` is the user id that connects to them.
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
    old_code: tuple[OldCode, ...] = ()
    # Sockets that could not be bound when it started, with the reason: ("tcp:0.0.0.0:80", "EADDRINUSE: ...").
    failed: tuple[tuple[str, str], ...] = ()
    not_saved: str | None = None  # why the last save of its state file failed


@dataclass(frozen=True)
class Drift:
    """How the host differs from one document: the changes needed, or why these cannot be determined."""

    owner: str
    changes: tuple[Change, ...] = ()
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """``applied`` is False if ``documents`` are still to be applied. ``clients`` has one sample client per family."""

    documents: tuple[Document, ...] = ()
    faults: tuple[str, ...] = ()
    applied: bool = True
    clients: Mapping[str, str] = field(default_factory=dict)
    # Families whose sample client the caller chose, so that it stands for real clients.
    clients_given: frozenset[str] = frozenset()
    ports: tuple[tuple[str, int], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    # By interface name: whether it is up.
    links: Mapping[str, bool] = field(default_factory=dict)
    # This host's addresses; without pyroute2 only those that the documents use.
    own: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    # (address, MAC) of IPv4 neighbours.
    arp: tuple[tuple[str, str], ...] = ()
    peers: tuple[Peer, ...] = ()
    backends: tuple[Backend, ...] = ()
    kernel_targets: tuple[KernelTarget, ...] = ()
    replies: Mapping[Reply, RouteAnswer] = field(default_factory=dict)
    rules: tuple[KernelObject, ...] | None = None
    routes: tuple[KernelObject, ...] | None = None
    addresses: tuple[KernelObject, ...] | None = None
    # By destination: the gateway learned from an ICMP redirect.
    redirected: Mapping[str, str] | None = None
    ruleset: Ruleset | None = None
    # By destination address of a DNAT rule: the interface that leads there.
    translated: Mapping[str, str] = field(default_factory=dict)
    # Families in which this host forwards only its kernel services, because it did not forward before them.
    only_services: frozenset[str] = frozenset()
    # The bridges, where br_netfilter passes their frames to packet filters for IP.
    bridges: tuple[str, ...] = ()
    # Whether our own rules restore the mark of forwarded packets.
    restores_forwarded: bool = False
    sockets: tuple[Socket, ...] = ()
    relays: tuple[Relay, ...] = ()
    conntrack: Conntrack | None = None
    units: Mapping[str, Unit] | None = None
    drop_ins: tuple[str, ...] = ()
    contest: Contest | None = None
    silent: tuple[Silent, ...] = ()
    forwarder: Forwarder | None = None
    drift: tuple[Drift, ...] = ()

    @property
    def return_path(self) -> tuple[Document, ...]:
        """The documents that send replies to a next hop: this host is a backend."""
        return tuple(document for document in self.documents if any(route.via for route in document.routes))

    @property
    def local_delivery(self) -> tuple[Document, ...]:
        """The documents that deliver replies locally: this host is a proxy."""
        return tuple(document for document in self.documents if any(route.type == "local" for route in document.routes))

    @property
    def kernel_datapath(self) -> tuple[Document, ...]:
        """The documents with services that the kernel forwards: this host is a proxy."""
        return tuple(document for document in self.documents if document.services)

    @property
    def protocols(self) -> frozenset[int]:
        """All our protocol numbers, even without a document: a host may be proxy and backend at once."""
        return frozenset(document.protocol for document in self.documents) | frozenset(OWNERS.values())

    @property
    def filters(self) -> Ruleset:
        """The packet filters, for a check that has made sure that this host can list them."""
        if self.ruleset is None:
            raise ValueError("this host cannot list packet filters")
        return self.ruleset

    def served(self, address: str) -> list[tuple[str, int]]:
        """(protocol, port) at an address of this host: those that the caller named, else those with a socket."""
        sockets = [socket for socket in self.sockets if socket.accepts(socket.protocol, address, socket.port)]
        return sorted(self.ports or {(socket.protocol, socket.port) for socket in sockets})

    def setting(self, name: str, default: int = 0) -> int:
        """A setting as a number; ``default`` if the kernel has none of that name."""
        value = self.settings.get(name, "")
        return int(value) if value.lstrip("-").isdigit() else default

    def highest(self, family: str, link: str, key: str) -> int:
        """The larger of ``all`` and the interface's own: the kernel combines rp_filter and similar settings so."""
        return max(self.setting(conf(family, name, key)) for name in ("all", link))


def conf(family: str, link: str, key: str) -> str:
    """The name of an interface's setting, as in ``Sysctl``: a dot in the interface's name becomes a slash."""
    return f"net.{family}.conf.{link.replace('.', '/')}.{key}"
