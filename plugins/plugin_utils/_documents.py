# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of both ends, derived from a fleet: forwarder config, local delivery, return path, probe targets.

Pure. Ids, masks, tables, priorities and owners are all derived here; docs/docsite/rst/architecture.rst has the numbers.
Each document is checked by the very function that checks it on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Callable

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import document
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError, Meeting
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE, ServiceRef

SCHEMA = 1
MARK_MASK = 0xFF
TABLE_BASE = 20100
PRIORITY_LOOKUP = 1100
PRIORITY_GUARD = 1101
PROTOCOL_LOCAL_DELIVERY = 201
PROTOCOL_RETURN_PATH = 202
STRATEGIES = ("mark",)

# Stands for an id that could not be derived while the rest of a config is checked all the same.
NO_ID = 255

# A bare `from BACKEND` would make the proxy answer ARP for the whole subnet; a port would leave out ICMP errors.
IP_PROTOCOLS = {4: ("tcp", "udp", "icmp"), 6: ("tcp", "udp", "ipv6-icmp")}
FAMILY = {4: "ipv4", 6: "ipv6"}

# Sources of the handshake probe, one a proxy: documentation ranges (RFC 5737, RFC 3849) that no client comes from.
PROBE_SOURCE = {4: "198.51.100.{0}", 6: "2001:db8:ffff::{0}"}


def _collect(errors: list[str], call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, and keep the errors instead of raising them. Returns None where there were any."""
    try:
        return call(*arguments)
    except DerivationError as error:
        errors.extend(error.errors)
        return None


def _conf(version: int, device: str, key: str) -> str:
    """Return the name of a per-interface sysctl; with slashes where the interface's name has a dot (sysctl(8))."""
    parts = ["net", FAMILY[version], "conf", device, key]
    return ("/" if "." in device else ".").join(parts)


def _sysctls(version: int, devices: Iterable[str | None], key: str) -> list[dict[str, str]]:
    names = ["all", *sorted({device for device in devices if device})]
    return [{"name": _conf(version, name, key), "value": "0"} for name in names]


def _backends(fleet: Fleet, proxy: str, service: ServiceRef, errors: list[str]) -> list[dict[str, Any]]:
    labels = [ref.label for ref in service.backends]
    rows = []
    for ref in service.backends:
        addresses = _collect(errors, fleet.backend_addresses, proxy, ref) or _stand_in(len(rows))
        name = ref.label if labels.count(ref.label) == 1 else f"{ref.label}:{ref.port}"
        families = {FAMILY[version]: address for version, address in addresses.items()}
        rows.append({"name": name, "port": ref.port, **ref.options, **families})
    return rows


def _stand_in(number: int) -> dict[int, str]:
    """Return addresses under which a backend whose own are in doubt is checked for its other faults."""
    return {4: str(IPv4Address("10.0.0.1") + number), 6: str(IPv6Address("2001:db8::1") + number)}


def _proxy_id(fleet: Fleet, proxy: str) -> int:
    return fleet.proxy_id(proxy, _all_meetings(fleet, proxy))


def _all_meetings(fleet: Fleet, proxy: str) -> list[Meeting]:
    found = [
        meeting
        for service in fleet.services_of_proxy(proxy)
        for ref in service.backends
        for meeting in fleet.meetings_of(proxy, ref).values()
    ]
    return list(dict.fromkeys(found))


def forwarder_config(fleet: Fleet, proxy: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the forwarder's config for one proxy host.

    :param settings: top-level keys of the config that do not come from the services (``drain_timeout``, ``log`` …).
    :returns: a config that ``_forwarder.config.load`` has accepted.
    :raises DerivationError: with every fault, each at its path in ``l4proxy_services``.
    """
    errors: list[str] = []
    mine = fleet.services_of_proxy(proxy)
    if not mine or proxy not in fleet.proxies:
        raise DerivationError([unserved(fleet, proxy)])
    services = [
        {
            **service.options,
            "listen": [{"address": address, "port": port} for address, port in service.listen],
            "backends": _backends(fleet, proxy, service, errors),
        }
        for service in mine
    ]
    proxy_id = _collect(errors, _proxy_id, fleet, proxy)
    data = {"schema": SCHEMA, "proxy_id": proxy_id or NO_ID, **settings, "services": services}
    try:
        config.load(data)
    except config.ConfigError as error:
        errors += [_user_path(one, mine) for one in error.errors]
    if errors:
        raise DerivationError(errors)
    return data


def _user_path(message: str, services: list[ServiceRef]) -> str:
    """Turn a path of the config (``services[0]…``) into the user's, who may have given other services to others."""
    return re.sub(r"\bservices\[(\d+)\]", lambda found: f"{VARIABLE}[{services[int(found[1])].index}]", message)


def unserved(fleet: Fleet, name: str) -> str:
    """Say why a host that is in a group has nothing to do."""
    role, group = ("forwarder", "proxies") if name in fleet.proxies else ("return_path", "backends")
    if name not in [*fleet.proxies, *fleet.backends]:
        return f"{name} is neither in the group proxies nor in the group backends; add it to one of them"
    return (
        f"{name} is in the group {group}, but in no service of {VARIABLE}, and an empty configuration would end what "
        f"it serves now; name it in a service, take it out of the group, or set {role}_state: absent for it"
    )


def local_delivery(fleet: Fleet, proxy: str) -> dict[str, Any]:
    """Derive the rules and routes that make a proxy accept its backends' replies to addresses it does not own."""
    addresses: dict[int, set[str]] = {4: set(), 6: set()}
    errors: list[str] = []
    for service in fleet.services_of_proxy(proxy):
        for ref in service.backends:
            for version, address in (_collect(errors, fleet.backend_addresses, proxy, ref) or {}).items():
                addresses[version].add(address)
    if errors:
        raise DerivationError(errors)
    rules, routes = [], []
    for version, found in addresses.items():
        family = {"family": FAMILY[version]}
        for address in sorted(found):
            rules += [
                {**family, "priority": PRIORITY_LOOKUP, "src": address, "ip_proto": protocol, "action": "lookup",
                 "table": TABLE_BASE}
                for protocol in IP_PROTOCOLS[version]
            ]  # fmt: skip
        if found:
            routes.append({**family, "table": TABLE_BASE, "dst": "default", "type": "local", "dev": "lo"})
    devices = [one.proxy.device for one in _all_meetings(fleet, proxy)]
    return _checked(
        {
            "schema": SCHEMA,
            "owner": "local_delivery",
            "protocol": PROTOCOL_LOCAL_DELIVERY,
            "rules": rules,
            "routes": routes,
            "marks": [],
            # A proxy that forwards one packet of a backend would tell it to use the router from then on.
            "sysctls": _sysctls(4, devices, "send_redirects"),
        }
    )


def _one_way_back(proxy: str, number: int, meetings: Mapping[int, Meeting]) -> dict[str, list[dict[str, Any]]]:
    """Return rules, routes and the mark that send a backend's replies back through one proxy."""
    table = TABLE_BASE + number
    rules, routes = [], []
    for version, meeting in sorted(meetings.items()):
        match = {"family": FAMILY[version], "fwmark": number, "fwmask": MARK_MASK}
        rules.append({**match, "priority": PRIORITY_LOOKUP, "action": "lookup", "table": table})
        rules.append({**match, "priority": PRIORITY_GUARD, "action": "unreachable"})
        via = str(meeting.proxy.address)
        routes.append(
            {"family": FAMILY[version], "table": table, "dst": "default", "type": "unicast", "via": via,
             "dev": meeting.backend.device}
        )  # fmt: skip
    macs = {meeting.proxy.mac for meeting in meetings.values() if meeting.proxy.mac}
    mark = {
        "name": proxy,
        "id": number,
        "mask": MARK_MASK,
        "mac": macs.pop() if len(macs) == 1 else None,
        "via": [str(meeting.proxy.address) for _version, meeting in sorted(meetings.items())],
    }
    return {"rules": rules, "routes": routes, "marks": [mark]}


def return_path(fleet: Fleet, backend: str, strategy: str) -> dict[str, Any]:
    """Derive the rules, routes, marks and sysctls that send a backend's replies to the proxy they came through."""
    if strategy not in STRATEGIES:
        raise DerivationError(
            [f"return_path_strategy of {backend}: {strategy!r} is not in this version; use {', '.join(STRATEGIES)}"]
        )
    proxies = fleet.proxies_of_backend(backend)
    if not proxies:
        raise DerivationError([unserved(fleet, backend)])
    errors: list[str] = []
    found = {proxy: _collect(errors, fleet.meetings, proxy, backend) for proxy in proxies}
    if errors:
        raise DerivationError(errors)
    ids = {proxy: fleet.proxy_id(proxy, meetings.values()) for proxy, meetings in found.items()}
    check_ids(ids)
    ways = [_one_way_back(proxy, ids[proxy], meetings) for proxy, meetings in found.items()]
    devices: dict[int, set[str | None]] = {}
    for meetings in found.values():
        for version, meeting in meetings.items():
            devices.setdefault(version, set()).add(meeting.backend.device)
    sysctls: list[dict[str, str]] = []
    for version, names in sorted(devices.items()):
        # A redirect that a backend has accepted outranks every policy route for 300 seconds.
        sysctls += _sysctls(version, names, "accept_redirects")
    return _checked(
        {
            "schema": SCHEMA,
            "owner": "return_path",
            "protocol": PROTOCOL_RETURN_PATH,
            **{key: [one for way in ways for one in way[key]] for key in ("rules", "routes", "marks")},
            "sysctls": sysctls,
        }
    )


def _checked(data: dict[str, Any]) -> dict[str, Any]:
    try:
        document.load(data)
    except document.DocumentError as error:
        raise DerivationError([f"{data['owner']}: {one}" for one in error.errors]) from None
    return data


def check_ids(ids: Mapping[str, int]) -> None:
    """Refuse two proxies with one id.

    :raises DerivationError: naming both and the remedy.
    """
    owners: dict[int, str] = {}
    errors = []
    for proxy, number in ids.items():
        if number in owners:
            errors.append(
                f"proxies {owners[number]} and {proxy} have one id, {number}; backends could not tell them apart: "
                "set l4proxy_id (1 to 255) in the host_vars of one of them"
            )
        owners.setdefault(number, proxy)
    if errors:
        raise DerivationError(errors)


def probe_targets(fleet: Fleet, proxy: str) -> list[dict[str, Any]]:
    """List every backend of every service of a proxy, once a family that the service listens on."""
    number = _proxy_id(fleet, proxy)
    targets: dict[tuple[str, str, int], dict[str, Any]] = {}
    for service in fleet.services_of_proxy(proxy):
        listening = {6 if ":" in address else 4 for address, _port in service.listen}
        for ref in service.backends:
            for version, address in fleet.backend_addresses(proxy, ref).items():
                if version in listening:
                    targets[service.name, address, ref.port] = {
                        "name": f"{service.name}: {ref.label}",
                        "address": address,
                        "port": ref.port,
                        "source": PROBE_SOURCE[version].format(number),
                    }
    return list(targets.values())


def check_fleet(views: Iterable[tuple[Fleet, Mapping[str, Any]]]) -> None:
    """Derive everything for the hosts of a run and throw it away.

    :param views: for each host the fleet as seen from it, and its roles: ``forwarder`` and ``return_path``, each the
        settings of the role, or None where the role is not to be present.
    :raises DerivationError: every fault of every host, each once.
    """
    errors: list[str] = []
    ids: dict[str, int] = {}
    for fleet, roles in views:
        name = fleet.name
        if roles.get("forwarder") is not None and name in fleet.proxies:
            data = _collect(errors, forwarder_config, fleet, name, roles["forwarder"])
            ids.update({name: data["proxy_id"]} if data else {})
            _collect(errors, local_delivery, fleet, name)
        if roles.get("return_path") is not None and name in fleet.backends:
            _collect(errors, return_path, fleet, name, roles["return_path"].get("strategy", STRATEGIES[0]))
    _collect(errors, check_ids, ids)
    if errors:
        raise DerivationError(errors)
