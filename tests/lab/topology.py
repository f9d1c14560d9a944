# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's topology as typed data. Pure: nothing here touches the system."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TOPOLOGY_FILE = Path(__file__).with_name("topology.yml")

#: IFNAMSIZ is 16 with the final NUL (include/uapi/linux/if.h).
MAX_INTERFACE_NAME = 15


class TopologyError(ValueError):
    """The topology, or a selection of it, is invalid; ``errors`` has every reason."""

    def __init__(self, errors: list[str]):
        super().__init__("; ".join(errors))
        self.errors = errors


@dataclass(frozen=True)
class Network:
    """One layer-2 segment: a bridge in the switch namespace."""

    name: str
    number: int
    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network

    @property
    def bridge(self) -> str:
        return f"br-{self.name}"

    def ipv4_of(self, number: int) -> str:
        return str(self.ipv4.network_address + number)

    def ipv6_of(self, number: int) -> str:
        """The address of a host number; its digits are the host part: 21 gives ::21."""
        return str(self.ipv6.network_address + int(str(number), 16))

    def mac_of(self, number: int) -> str:
        return f"02:00:00:00:{self.number:02d}:{number:02d}"


@dataclass(frozen=True)
class Interface:
    """A host's interface in a network. ``port`` is the name of the other end, in the switch namespace."""

    host: str
    dev: str
    network: Network
    ipv4: str
    ipv6: str
    mac: str

    @property
    def port(self) -> str:
        return f"{self.host}-{self.network.name}"


@dataclass(frozen=True)
class Host:
    """A host of the topology; ``ipv4``, ``ipv6``, ``mac`` and ``dev`` are those of its first interface."""

    name: str
    number: int
    interfaces: tuple[Interface, ...]
    is_router: bool = False
    release: str | None = None

    @property
    def ipv4(self) -> str:
        return self.interfaces[0].ipv4

    @property
    def ipv6(self) -> str:
        return self.interfaces[0].ipv6

    @property
    def mac(self) -> str:
        return self.interfaces[0].mac

    @property
    def dev(self) -> str:
        return self.interfaces[0].dev

    def on(self, network: str) -> Interface:
        """The interface in the network of that name."""
        for interface in self.interfaces:
            if interface.network.name == network:
                return interface
        raise TopologyError([f"host {self.name} has no interface in network {network}"])


@dataclass(frozen=True)
class Topology:
    networks: Mapping[str, Network]
    hosts: Mapping[str, Host]

    def select(self, names: Iterable[str], networks: Mapping[str, list[str]] | None = None) -> Topology:
        """The part of the topology with the named hosts only.

        ``networks`` gives chosen hosts other legs than the file does: ``{"b": ["inside", "side"]}``.
        """
        names, legs = list(dict.fromkeys(names)), dict(networks or {})
        errors = [f"unknown host {name} (known: {', '.join(self.hosts)})" for name in names if name not in self.hosts]
        errors += [f"networks of {name}: that host is not among the chosen ones" for name in legs if name not in names]
        errors += [
            f"networks of {name}: unknown network {leg} (known: {', '.join(self.networks)})"
            for name, wanted in legs.items()
            for leg in wanted
            if leg not in self.networks
        ]
        if errors:
            raise TopologyError(errors)
        hosts = {name: self.hosts[name] for name in names}
        for name, wanted in legs.items():
            old = hosts[name]
            interfaces = _interfaces(name, old.number, [self.networks[leg] for leg in wanted])
            hosts[name] = Host(name, old.number, interfaces, old.is_router, old.release)
        used = {interface.network.name for host in hosts.values() for interface in host.interfaces}
        return Topology({name: net for name, net in self.networks.items() if name in used}, hosts)

    def router_on(self, network: str) -> Interface | None:
        """The router's interface in that network, if there is one."""
        for host in self.hosts.values():
            if host.is_router:
                return next((leg for leg in host.interfaces if leg.network.name == network), None)
        return None


def _interfaces(host: str, number: int, networks: list[Network]) -> tuple[Interface, ...]:
    return tuple(
        Interface(host, f"eth{index}", net, net.ipv4_of(number), net.ipv6_of(number), net.mac_of(number))
        for index, net in enumerate(networks)
    )


def parse(data: Mapping[str, Any]) -> Topology:
    """The topology of a parsed topology.yml. Raises TopologyError with every fault."""
    networks = {
        name: Network(name, net["number"], ipaddress.IPv4Network(net["ipv4"]), ipaddress.IPv6Network(net["ipv6"]))
        for name, net in data["networks"].items()
    }
    errors, hosts = [], {}
    for name, host in data["hosts"].items():
        unknown = [net for net in host["networks"] if net not in networks]
        if unknown:
            errors.append(f"hosts.{name}.networks: unknown {', '.join(unknown)} (known: {', '.join(networks)})")
            continue
        interfaces = _interfaces(name, host["number"], [networks[net] for net in host["networks"]])
        errors += [
            f"hosts.{name}: interface name {leg.port} is longer than {MAX_INTERFACE_NAME} characters"
            for leg in interfaces
            if len(leg.port) > MAX_INTERFACE_NAME
        ]
        hosts[name] = Host(name, host["number"], interfaces, host.get("router", False), host.get("release"))
    if errors:
        raise TopologyError(errors)
    return Topology(networks, hosts)


def load(path: Path = TOPOLOGY_FILE) -> Topology:
    """The topology in the file ``path``."""
    return parse(yaml.safe_load(path.read_text(encoding="utf-8")))
