# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The removal of one host from a running fleet: what forbids it, and what to remove from the inventory then. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import ServiceRef, find_name, parse_services

BACKENDS, PROXIES = "backends", "proxies"
# The variable that names the host, for each group.
NAMES = {BACKENDS: "l4proxy_backend", PROXIES: "l4proxy_proxy"}


def removal(
    services: Any, groups: Mapping[str, Sequence[str]], group: str, name: str, hostvars: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return the ``faults`` that forbid the removal of a host, and the ``edits`` of the inventory that belong to it.

    :param groups: the hosts of each group, with ``all`` for the whole inventory.
    :param group: ``backends`` or ``proxies``: what the host is removed as.
    :raises DerivationError: faults of ``l4proxy_services`` itself.
    """
    hosts = [str(host) for host in groups.get(group) or ()]
    if name not in hosts:
        wrong = f"{NAMES[group]}: {name} is not in the group {group}" if name else f"{NAMES[group]} is not defined"
        return {"faults": [f"{wrong}; set it to the host to remove ({', '.join(hosts)})"], "edits": []}
    proxies, backends = ([str(host) for host in groups.get(one) or ()] for one in (PROXIES, BACKENDS))
    parsed = parse_services(services, [str(host) for host in groups["all"]], proxies, backends)
    faults = [_fault(service, group, name) for service in parsed]
    if group == PROXIES and hosts == [name]:
        faults = [f"{name} is the only proxy; to remove the whole fleet, run the playbook trueip.l4proxy.teardown"]
    edits = [edit for service in parsed for edit in _edits(service, group, name)]
    if group == PROXIES:
        edits += [
            f"{ADDRESSES_VARIABLE} of {host}: remove the key {key}"
            for host in backends
            for key in _declared(hostvars[host])
            if find_name(key, [name])
        ]
    edits.append(f"remove {name} from the group {group}")
    return {"faults": [fault for fault in faults if fault], "edits": edits}


def _fault(service: ServiceRef, group: str, name: str) -> str:
    """Return why a service cannot do without a host; empty if it can."""
    enabled = [ref for ref in service.backends if ref.options.get("enabled") is not False]
    if group == BACKENDS and service.backends and all(ref.host == name for ref in enabled or service.backends):
        what = "backend" if enabled == list(service.backends) else "enabled backend"
    elif group == PROXIES and service.proxies and all(proxy == name for proxy in service.proxies):
        what = "proxy"
    else:
        return ""
    return (
        f"{name} is the only {what} of service {service.name} ({service.path}); add another one to it, or remove the "
        "service, and run the playbook trueip.l4proxy.site first"
    )


def _edits(service: ServiceRef, group: str, name: str) -> list[str]:
    """Return what to remove from a service, as sentences with the path in ``l4proxy_services``."""
    if group == BACKENDS:
        refs = [ref for ref in service.backends if ref.host == name]
        return [f"remove {name}:{ref.port} from the backends of service {service.name} ({ref.path})" for ref in refs]
    named = service.proxies and name in service.proxies
    return [f"remove {name} from the proxies of service {service.name} ({service.path}.proxies)"] if named else []


def _declared(variables: Mapping[str, Any]) -> list[str]:
    """Return the names in ``return_path_addresses`` of a backend."""
    declared = variables.get(ADDRESSES_VARIABLE)
    return [str(key) for key in declared] if isinstance(declared, Mapping) else []
