# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keys of services that the kernel forwards, and what has to fit together in a document that has some. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from . import model
from .kernel_service import BALANCES, LOGS, ON_ALL_DOWN, ON_DOWN, PROTOCOLS, KernelService, Server
from .model import FAMILIES, MAIN, Rule, Sysctl
from .readers import (
    COMMON,
    Fields,
    Problems,
    boolean,
    check_retiring,
    list_of,
    number,
    object_of,
    one_of,
    rate,
    string,
    text,
)

# The only owner of services: its nft table is one for all.
OWNER = "kernel_datapath"
# What switches forwarding on for the whole host.
SWITCHES = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}


def _client(value: str) -> str:
    return str(ipaddress.ip_network(value))


_port = number(1, 65535, "a port")
# As in the config of the forwarder (_forwarder/config/validation.py, defaults.py).
SERVER: Fields = {
    "name": (text(r"[A-Za-z0-9:][A-Za-z0-9_.:-]{0,79}", "the name of a backend"), True),
    "address": (string(model.address), True),
    "port": (_port, True),
    "weight": (number(1, 65535, "a weight"), False),
    "tier": (number(0, 256, "a tier"), False),
    "enabled": (boolean, False),
}
_connections = number(0, 10_000_000, "a number of connections")
LIMITS: Fields = {
    "connections": (_connections, False),
    "connections_per_client": (_connections, False),
    "rate_per_client": (rate(1_000_000, "a rate of connections per second"), False),
}
SERVICE: Fields = {
    "name": (text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "the name of a service"), True),
    "family": (one_of(FAMILIES), True),
    "protocol": (one_of(PROTOCOLS), True),
    "address": (string(model.address), True),
    "port": (_port, True),
    "balance": (one_of(BALANCES), False),
    "backends": (list_of(object_of(SERVER)), True),
    "on_all_down": (one_of(ON_ALL_DOWN), False),
    "on_down": (one_of(ON_DOWN), False),
    "allow": (list_of(string(_client)), False),
    "deny": (list_of(string(_client)), False),
    "limits": (object_of(LIMITS), False),
    "log": (one_of(LOGS), False),
    **COMMON,
}


def check(values: dict[str, Any]) -> Problems:
    """Errors in the combination of a service's keys."""
    family = values["family"]
    wrong = _check_address("address", values["address"], family)
    if not values["backends"]:
        wrong.append(("backends", "has no backend"))
    seen: dict[Any, int] = {}
    for index, server in enumerate(values["backends"]):
        wrong += _check_address(f"backends[{index}].address", server["address"], family)
        for each in (server["name"], (server["address"], server["port"])):
            if seen.setdefault(each, index) != index:
                wrong.append(
                    (f"backends[{index}]", f"has the name, or the address and port, of backends[{seen[each]}]")
                )
    return wrong + check_retiring(values)


def _check_address(path: str, value: str, family: str) -> Problems:
    address = ipaddress.ip_address(value)
    if model.family_of(value) != family:
        return [(path, f"{value} is not {family}")]
    if address.is_unspecified:
        return [(path, f"{value} is every address of the host; give the one that clients use")]
    if address.is_loopback or address.is_multicast or address.is_link_local:
        return [(path, f"the kernel cannot forward to or for {value}; use another address")]
    return []


def make(backends: Iterable[dict[str, Any]], limits: dict[str, Any] | None = None, **values: Any) -> KernelService:
    return KernelService(servers=tuple(Server(**backend) for backend in backends), **(limits or {}), **values)


def finish(value: KernelService, data: dict[str, Any]) -> dict[str, Any]:
    """The JSON data of a service, whose plain values are in ``data``, in the order of its keys."""
    data |= {"backends": [asdict(server) for server in value.servers]}
    data |= {"limits": {name: getattr(value, name) for name in LIMITS}}
    data |= {name: list(getattr(value, name)) for name in ("allow", "deny")}
    return {name: data[name] for name in SERVICE if name in data}


def together(
    owner: str,
    services: Sequence[KernelService | None],
    forwarding: Sequence[str],
    rules: Iterable[Rule | None],
    sysctls: Sequence[Sysctl | None],
) -> list[str]:
    """Errors between the services of a document, its ``forwarding``, rules and sysctls. Invalid objects are None."""
    if not (services or forwarding):
        return []
    if owner != OWNER:
        name = "services" if services else "forwarding"
        return [f"{name}: only a document of owner {OWNER} has {name}"]
    errors = _shared_backends(services)
    active = {service.family for service in services if service and not service.retiring}
    errors += [
        f"forwarding: has no {family}, which a service needs" for family in FAMILIES if family in active - {*forwarding}
    ]
    # The table of the services is what keeps strangers out of a host that forwards.
    errors += [
        f"forwarding: {family} has no service; remove it, or this host would forward packets of anyone"
        for family in FAMILIES
        if family in {*forwarding} - {service.family for service in services if service}
    ]
    errors += [
        f"sysctls[{index}]: {sysctl.name} is set by forwarding; remove it"
        for index, sysctl in enumerate(sysctls)
        if sysctl and not sysctl.retiring and sysctl.name in SWITCHES.values()
    ]
    return errors + _bypass_errors(active, [rule for rule in rules if rule])


def _shared_backends(services: Sequence[KernelService | None]) -> list[str]:
    """Errors for backends that two services share: what such a backend sends has to tell which service it is from.

    Retiring services leave the packets of shared backends to the others.
    """
    active = [(index, service) for index, service in enumerate(services) if service and not service.retiring]
    virtual = {(service.family, service.address): index for index, service in active}
    users: dict[Any, int] = {}
    errors = []
    for index, service in active:
        for server in service.servers:
            where = f"services[{index}].backends: {server.name}"
            first = users.setdefault((service.protocol, server.address, server.port), index)
            if first != index:
                errors.append(
                    f"{where} ({server.address} {service.protocol} port {server.port}) is also a backend of "
                    f"services[{first}]; each address and port that clients use needs backends, or ports, of its own"
                )
            if (service.family, server.address) in virtual:
                other = virtual[service.family, server.address]
                errors.append(f"{where} has the address {server.address}, on which services[{other}] listens")
    return errors


def _bypass_errors(families: Iterable[str], rules: Sequence[Rule]) -> list[str]:
    marks = {family: bypass(rule for rule in rules if rule.family == family) for family in sorted(families)}
    errors = [
        f"rules: {family} services need a rule that looks up table main ({MAIN}) for packets with the mark of their "
        "replies, which has all bits of its mask"
        for family, mark in marks.items()
        if mark is None
    ]
    if len({mark for mark in marks.values() if mark}) > 1:
        errors.append(f"rules: the rules that look up table main ({MAIN}) need the same mark in both families")
    return errors


def bypass(rules: Iterable[Rule]) -> int | None:
    """The mark, which is also its mask, of packets that must not be delivered locally; None without such a rule."""
    found = (rule for rule in rules if rule.table == MAIN and rule.fwmark and rule.fwmark == rule.fwmask)
    return next((rule.fwmark for rule in found if not rule.src and not rule.ip_proto), None)
