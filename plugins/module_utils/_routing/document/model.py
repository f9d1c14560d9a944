# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host must have, as values that are equal exactly when the kernel treats them as the same.

Everything is normalised on construction: addresses are canonical, prefixes carry their length, ``0.0.0.0/0`` is
``default`` (or nothing, as a selector), MACs are lower case, protocols and tables are numbers, a route has its metric.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

FAMILIES = ("ipv4", "ipv6")
# IANA protocol numbers, under the names that ip(8) uses.
IP_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
# The protocol numbers of our own documents; rt_protos(5) uses none of them.
OWNERS = {"local_delivery": 201, "return_path": 202, "kernel_datapath": 204, "announce": 205}
# Owners whose objects the modules do not manage: RTPROT_UNSPEC, RTPROT_KERNEL (linux/rtnetlink.h), and our documents.
RESERVED_PROTOCOLS = {0: "objects without an owner", 2: "the kernel"}
RESERVED_PROTOCOLS |= {number: f"owner {name}" for name, number in OWNERS.items()}
# Protocol number of objects made by policy_rule and policy_route; documents must not use it.
SINGLE_OBJECTS = 203
RULE_ACTIONS = ("lookup", "unreachable", "prohibit", "blackhole")
ROUTE_TYPES = ("unicast", "local", "unreachable", "prohibit", "blackhole")
SCOPES = ("global", "link", "host")
# The kernel's metric for an IPv6 route without one: IP6_RT_PRIO_USER in include/net/ip6_route.h.
DEFAULT_METRIC = {"ipv4": 0, "ipv6": 1024}
MAX_U32 = 0xFFFFFFFF
# The number of table main (linux/rtnetlink.h).
MAIN = 254
# Sysctls of conntrack: they may not exist before the first mark loads its kernel module.
OF_CONNTRACK = "net.netfilter.nf_conntrack_"
# What can hold marks, best first.
MARK_ENGINES = ("nftables", "iptables")

PortRange = tuple[int, int]
UidRange = tuple[int, int]


def family_of(value: str) -> str:
    """``ipv4`` or ``ipv6`` for an address or a prefix. ValueError for anything else."""
    return f"ipv{ipaddress.ip_network(value, strict=False).version}"


def address(value: str) -> str:
    """The canonical form of an address. ValueError for anything else."""
    return str(ipaddress.ip_address(value))


def host_address(value: str) -> str:
    """The canonical address of ``198.18.0.121`` or ``198.18.0.121/24``. ValueError for anything else."""
    return str(ipaddress.ip_interface(value).ip)


@functools.lru_cache(maxsize=4096)
def prefix(value: str) -> str:
    """The canonical ``address/length``, or ``default``. ValueError for a prefix with host bits, usually a typo."""
    if value in ("default", "all"):
        return "default"
    network = ipaddress.ip_network(value)
    return "default" if network.prefixlen == 0 else str(network)


@functools.lru_cache(maxsize=4096)
def network(value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A canonical prefix as an object; cached, because a host may have thousands of rules that are compared often."""
    return ipaddress.ip_network(value)


def mac(value: str) -> str:
    """A unicast MAC in lower case with colons. ValueError otherwise."""
    text = value.strip().lower().replace("-", ":")
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text):
        raise ValueError(f"{value!r} is not a MAC address")
    if int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is not the MAC address of one interface")
    return text


def ip_protocol(value: object) -> int:
    """The number for ``tcp``, ``udp``, ``icmp``, ``ipv6-icmp``, or a number. ValueError otherwise."""
    if isinstance(value, str) and value.lower() in IP_PROTOCOLS:
        return IP_PROTOCOLS[value.lower()]
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255:
        return value
    raise ValueError(f"{value!r} is not an IP protocol ({', '.join(IP_PROTOCOLS)}, or a number 1-255)")


def ip_protocol_name(number: int) -> str:
    return next((name for name, known in IP_PROTOCOLS.items() if known == number), str(number))


def served_port(text: str) -> tuple[int, int]:
    """``tcp/8080`` → (6, 8080). ValueError for anything else."""
    match = re.fullmatch(r"(tcp|udp)/([1-9][0-9]{0,4})", text)
    if not match or int(match.group(2)) > 65535:
        raise ValueError(f"{text!r} is not a port with its protocol, such as tcp/8080")
    return IP_PROTOCOLS[match.group(1)], int(match.group(2))


def _set(instance: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _selector(value: str | None) -> str | None:
    text = None if value is None else prefix(value)
    return None if text == "default" else text


def _sortable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in a form in which None, numbers, tuples and strings can be compared."""
    return tuple((value is not None, str(type(value)), value if value is not None else 0) for value in values)


@dataclass(frozen=True)
class Rule:
    """A policy rule. ``lookup`` needs a table; a rule with another action rejects or drops the packet: it is a guard.

    ``suppress_prefixlength`` N makes a lookup ignore routes with a prefix of N bits or fewer.
    ``retire_at`` (seconds since the epoch) is when a retiring object is removed at the latest; see ``reconcile.drain``.
    """

    family: str
    priority: int
    action: str = "lookup"
    table: int | None = None
    src: str | None = None
    dst: str | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: int | None = None
    fwmask: int | None = None
    ip_proto: int | None = None
    sport: PortRange | None = None
    dport: PortRange | None = None
    uid_range: UidRange | None = None
    suppress_prefixlength: int | None = None
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _set(self, src=_selector(self.src), dst=_selector(self.dst))
        if self.fwmark is not None and self.fwmask is None:
            _set(self, fwmask=MAX_U32)
        if self.ip_proto is not None:
            _set(self, ip_proto=ip_protocol(self.ip_proto))

    @property
    def selectors(self) -> tuple[Any, ...]:
        packet = (self.src, self.dst, self.iif, self.oif, self.fwmark, self.fwmask)
        return (*packet, self.ip_proto, self.sport, self.dport, self.uid_range)

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the rule, whatever it does with the packet."""
        return (self.family, self.priority, *self.selectors)

    @property
    def order(self) -> tuple[Any, ...]:
        return _sortable((*self.key, self.action, self.table, self.suppress_prefixlength))

    @property
    def is_guard(self) -> bool:
        return self.action != "lookup"


@dataclass(frozen=True)
class Route:
    """A route. With ``dev`` None the kernel finds the interface by ``via``; it is filled in before routes are compared.

    ``scope`` is the IPv4 scope (how far away the destination is); IPv6 has only ``global``. ``mtu`` and ``advmss`` are
    in bytes. ``onlink`` treats ``via`` as a neighbour on ``dev`` even if no prefix says so. ``fallback`` are next hops
    that the keeper may use instead while ``via`` does not answer; the kernel does not know them.
    """

    family: str
    table: int
    dst: str = "default"
    type: str = "unicast"
    via: str | None = None
    dev: str | None = None
    src: str | None = None
    metric: int = None  # type: ignore[assignment]  # __post_init__ sets it
    scope: str = None  # type: ignore[assignment]  # __post_init__ sets it
    onlink: bool = False
    mtu: int | None = None
    advmss: int | None = None
    fallback: tuple[str, ...] = ()
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _set(self, dst=prefix(self.dst))
        _set(self, via=self.via and address(self.via), src=self.src and address(self.src))
        _set(self, fallback=tuple(map(address, self.fallback)))
        if self.metric is None:
            _set(self, metric=DEFAULT_METRIC[self.family])
        if self.type == "local" and self.dev is None:
            _set(self, dev="lo")
        if self.type not in ("unicast", "local"):
            _set(self, via=None, dev=None)  # IPv6 lists them with "dev lo", IPv4 without
        if self.scope is None:
            _set(self, scope=default_scope(self.family, self.type, self.via))

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.family, self.table, self.dst, self.metric)

    @property
    def order(self) -> tuple[Any, ...]:
        details = (self.src, self.scope, self.onlink, self.mtu, self.advmss, self.fallback)
        return _sortable((*self.key, self.type, self.via, self.dev, *details))


def default_scope(family: str, kind: str, via: str | None) -> str:
    """The scope that ip-route(8) chooses: for IPv4 ``host`` for local routes, ``link`` for those without next hop."""
    if family == "ipv6":
        return "global"
    return "host" if kind == "local" else "link" if kind == "unicast" and via is None else "global"


@dataclass(frozen=True)
class Address:
    """An additional address: a /32 or /128 that adds no prefix route and is a source only for sockets bound to it."""

    family: str
    address: str
    dev: str
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _set(self, address=host_address(self.address))

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.address, self.dev)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.family, self.address, self.dev)


@dataclass(frozen=True)
class Mark:
    """Sets ``id`` under ``mask`` on packets from ``macs``, on packets that arrive on ``iif``, or on packets for a
    ``transparent`` socket of this host. Without any of these, the MACs of ``via`` are looked up in the neighbour table.

    With ``conntrack`` the connection keeps the mark and its replies get it, including forwarded ones; without, each
    incoming packet is marked individually (always with ``transparent``). Marked replies must leave through ``via``;
    ``oif`` is the interface that leads there, for an engine that cannot match a next hop.

    ``last_sender`` are ports of this host (``tcp/8080``) whose connections do not stay with the proxy that began them:
    their mark follows the last sender, and their replies may leave through any proxy whose mark lists the port.
    """

    name: str
    id: int
    mask: int
    macs: tuple[str, ...] = ()
    via: tuple[str, ...] = ()
    iif: str | None = None
    transparent: bool = False
    conntrack: bool = True
    oif: str | None = None
    last_sender: tuple[str, ...] = ()
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _set(self, macs=tuple(sorted({mac(value) for value in self.macs})))
        _set(self, via=tuple(sorted({address(value) for value in self.via}, key=lambda text: (":" in text, text))))
        _set(self, last_sender=tuple(sorted(set(self.last_sender), key=served_port)))
        if self.transparent:
            _set(self, conntrack=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """During a change between conntrack and none, both marks of one id exist."""
        return (self.id, self.conntrack)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.id, self.name, self.conntrack)

    @property
    def follows_neighbour(self) -> bool:
        """Whether it matches packets by the MAC of their sender."""
        return self.iif is None and not self.transparent


@dataclass(frozen=True)
class Observed:
    """The live marks of an owner, and whether the engine's objects are exactly what these marks render to."""

    marks: tuple[Mark, ...] = ()
    sound: bool = True
    engine: str | None = None


@dataclass(frozen=True)
class Sysctl:
    """A sysctl: its name as sysctl(8) spells it (``net.ipv4.conf.eth0/100.rp_filter``) and its value."""

    name: str
    value: str
    retiring: bool = field(default=False, compare=False)
    retire_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _set(self, name=sysctl_name(self.name), value=sysctl_value(self.value))

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.name,)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.name,)


@dataclass(frozen=True)
class Setting:
    """A sysctl as it is on the host: its value, whether the owner holds it, and the value that releasing it restores.

    ``restore`` is None when a release changes nothing.
    """

    name: str
    value: str
    held: bool = False
    restore: str | None = None


def sysctl_value(value: object) -> str:
    """The value with single blanks: the kernel separates several numbers by tabs, people by blanks."""
    return " ".join(str(value).split())


def sysctl_name(name: str) -> str:
    """One spelling for a sysctl: dots separate, and a dot within an interface's name is written ``/`` (sysctl(8)).

    Accepts ``net/ipv4/conf/eth0.100/rp_filter`` and the ambiguous ``net.ipv4.conf.eth0.100.rp_filter`` as well.
    ValueError for anything else.
    """
    separator = re.search(r"[./]", name)
    if separator and separator.group() == "/":
        name = name.translate(str.maketrans("./", "/."))
    per_link = re.fullmatch(r"(net\.ipv[46]\.(?:conf|neigh))\.(.+)\.(\w+)", name)
    if per_link:
        name = ".".join((per_link.group(1), per_link.group(2).replace(".", "/"), per_link.group(3)))
    parts = name.split(".")
    if len(parts) < 2 or not all(re.fullmatch(r"[\w/:@-]+", part) for part in parts):
        raise ValueError(f"{name!r} is not the name of a sysctl")
    if any(part.strip("/") != part or "//" in part for part in parts):
        raise ValueError(f"{name!r} is not the name of a sysctl")
    return name


@dataclass(frozen=True)
class KernelObject:
    """A listed object of the kernel, and its owner. ``value`` is None if the model cannot express it; see ``text``.

    ``seen`` is the part of such a rule that the model can express. ``partly``: it has more selectors. ``inverted``
    ("not"): it selects what does not match. Its action may be ``goto``, with ``table`` as the priority, or ``nop``.
    """

    value: Any
    protocol: int
    family: str = ""
    table: int = 0
    text: str = ""
    seen: Rule | None = None
    inverted: bool = False
    partly: bool = False
