# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's config of one proxy host, checked by the code that checks it on the host. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import (
    HASH_TABLES,
    HEALTHY_NEEDS,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._announce import announced_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import KERNEL, KEY, Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, collect
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY, SCHEMA
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._port_slices import source_ports
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import proxy_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import backend_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import ServiceRef
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import virtual_addresses

# In place of an id that could not be derived, so that the rest of the config can be checked.
UNKNOWN_ID = 255
ANNOUNCED = "announced"  # name of the addresses that BGP announces, in virtual_addresses


def forwarder_config(fleet: Fleet, proxy: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the forwarder's config for one proxy host.

    :param settings: top-level keys of the config that do not come from the services (``workers``, ``log`` …); an empty
        text is a key that is not set.
    :returns: a config that ``_forwarder.config.config.load`` has accepted.
    :raises DerivationError: with every fault, each at its path in ``l4proxy_services``.
    """
    mine = fleet.services_of_proxy(proxy)
    if not mine or proxy not in fleet.proxies:
        raise DerivationError([fleet.why_unserved(proxy)])
    errors = [_only_itself(proxy, service) for service in mine if not service.backends]
    mine = [service for service in mine if service.backends]
    if not mine:
        raise DerivationError(errors)
    datapaths = Datapaths(fleet)
    errors += [fault for service in mine for fault in datapaths.faults(service)]
    services = [
        {
            **{key: value for key, value in service.options.items() if key != KEY},
            # Version 0.1.0, to which a fleet may go back, does not know the key; without it the forwarder serves.
            **({KEY: KERNEL} if datapaths.in_kernel(service) else {}),
            "listen": [{"address": address, "port": port} for address, port in service.listen],
            "backends": _backends(fleet, proxy, service, errors),
        }
        for service in mine
    ]
    number = collect(errors, proxy_id, fleet, proxy)
    ports = source_ports(fleet, proxy)
    own = {"source_ports": ports} if ports else {}
    settings = {key: value for key, value in settings.items() if value not in ("", None, [])}
    if settings.get("hash_table") == HASH_TABLES[0]:
        del settings["hash_table"]  # version 0.1.0, which a rollback starts, has only this one and not the key
    if {"deny_files", "never_ban"} & settings.keys():
        hosts = [*fleet.proxies, *(ref.label for service in mine for ref in service.backends)]
        addresses = {str(one) for host in dict.fromkeys(hosts) for one in fleet.own_addresses(host)}
        settings["never_ban"] = [*settings.get("never_ban", ()), *sorted(addresses)]
    if settings.get("healthy_needs") == HEALTHY_NEEDS[0]:
        del settings["healthy_needs"]  # the same
    announced = [str(one) for one in announced_addresses(fleet, proxy)]
    virtual = {**(collect(errors, virtual_addresses, fleet, proxy) or {}), ANNOUNCED: announced}
    if any(virtual.values()):  # version 0.1.0 does not know the key
        settings["virtual_addresses"] = {name: found for name, found in virtual.items() if found}
    data = {"schema": SCHEMA, "proxy_id": number or UNKNOWN_ID, **own, **settings, "services": services}
    try:
        config.load(data)
    except config.ConfigError as error:
        errors += [_user_path(one, mine) for one in error.errors]
    if errors:
        raise DerivationError(errors)
    return data


def _backends(fleet: Fleet, proxy: str, service: ServiceRef, errors: list[str]) -> list[dict[str, Any]]:
    labels = [ref.label for ref in service.backends]
    rows: list[dict[str, Any]] = []
    for ref in service.backends:
        addresses = collect(errors, backend_addresses, fleet, proxy, ref) or _placeholder_addresses(len(rows))
        name = ref.label if labels.count(ref.label) == 1 else f"{ref.label}:{ref.port}"
        families = {FAMILY[version]: address for version, address in addresses.items()}
        # Version 0.1.0, to which a fleet may go back, does not know "enabled"; true is the default.
        options = {key: value for key, value in ref.options.items() if not (key == "enabled" and value is True)}
        rows.append({"name": name, "port": ref.port, **options, **families})
    return rows


def _placeholder_addresses(number: int) -> dict[int, str]:
    """Return addresses for a backend whose own could not be derived, so that its other keys can be checked."""
    return {4: str(IPv4Address("10.0.0.1") + number), 6: str(IPv6Address("2001:db8::1") + number)}


def _only_itself(proxy: str, service: ServiceRef) -> str:
    return (
        f"{service.path}.backends: {proxy} is the only backend, and a proxy cannot be its own backend; add another "
        f"host, or name other proxies than {proxy} in {service.path}.proxies"
    )


def _user_path(message: str, services: list[ServiceRef]) -> str:
    """Return a message with its path of the config (``services[0]…``) as the path in ``l4proxy_services``.

    The two differ if other proxies serve some of the services.
    """

    def user(found: re.Match[str]) -> str:
        service = services[int(found[1])]
        return service.path if found[2] is None else service.backends[int(found[2])].path

    return re.sub(r"\bservices\[(\d+)\](?:\.backends\[(\d+)\])?", user, message)
