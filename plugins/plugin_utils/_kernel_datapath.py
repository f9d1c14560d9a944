# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state document of the kernel datapath: the services that a proxy's kernel forwards, and what that needs. Pure.

Which services these are: _datapath.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.service_schema import MAIN, OWNER
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import KERNEL, Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import PROTOCOL_KERNEL_DATAPATH, Numbers
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._state_document import state_document

# A packet within a connection begins an entry, so that a connection can outlive its proxy; entries count bytes.
SYSCTLS = {"net.netfilter.nf_conntrack_tcp_loose": "1", "net.netfilter.nf_conntrack_acct": "1"}
# How clients are spread; every other algorithm is a hash of address and port.
SOURCE_HASH = "source_hash"


@dataclass(frozen=True)
class Derived:
    """The state documents of the kernel datapath of one proxy.

    :ivar document: what the proxy has to have. Without a kernel service: None, or an empty document if an earlier run
        has stored one.
    :ivar before: what it has to have before the forwarder loads its config: the same, and the services that the
        forwarder is about to take over.
    """

    document: dict[str, Any] | None = None
    before: dict[str, Any] | None = None


def kernel_datapath(fleet: Fleet, proxy: str) -> Derived:
    """Derive the state documents of the kernel datapath of one proxy host.

    :raises DerivationError: with every fault of the forwarder's config too, because the values come from it.
    """
    stored = fleet.known.get(OWNER)
    datapaths = Datapaths(fleet)
    if not stored and not any(datapaths.in_kernel(service) for service in fleet.services_of_proxy(proxy)):
        return Derived()
    data = config.load(forwarder_config(fleet, proxy, {}))
    numbers = fleet.numbers(proxy)
    services = [one for service in data.services if service.datapath == KERNEL for one in _services(service)]
    if services:
        _refuse_mark_of_bypass(numbers, proxy, data.proxy_id)
    leaving = _taken_over(data, services, stored or {})
    return Derived(_document(numbers, services), _document(numbers, services + leaving))


def _document(numbers: Numbers, services: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    families = sorted({str(service["family"]) for service in services})
    sections = {
        "rules": [_bypass(numbers, family) for family in families],
        "sysctls": [{"name": name, "value": value} for name, value in SYSCTLS.items() if services],
        "services": services,
        "forwarding": families,
    }
    return state_document(OWNER, PROTOCOL_KERNEL_DATAPATH, sections)


def _taken_over(
    data: config.Config, services: Sequence[Mapping[str, Any]], stored: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the services of the stored document that the forwarder serves from now on.

    One whose backends the kernel uses for another service from now on is left out: a backend's port has one service.
    """
    listeners = {
        (service.protocol, listener.family, listener.port, address)
        for service in data.services
        for listener in service.listen
        for address in ([None] if listener.wildcard else [listener.address])
        if service.datapath != KERNEL
    }
    used = {server for service in services for server in _servers(service)}
    return [
        dict(service)
        for service in stored.get("services") or ()
        if not service.get("retiring")
        and not used & _servers(service)
        and any(
            (service["protocol"], service["family"], service["port"], address) in listeners
            for address in (service["address"], None)
        )
    ]


def _servers(service: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    return {(service["protocol"], backend["address"], backend["port"]) for backend in service["backends"]}


def _services(service: Service) -> Iterator[dict[str, Any]]:
    """Yield a service as objects of the document: one for each address that clients connect to."""
    limits = {
        "connections": service.limits.connections,
        "connections_per_client": service.limits.connections_per_client,
        "rate_per_client": service.limits.rate_per_client,
    }
    for listener in service.listen:
        yield {
            "name": service.name,
            "family": listener.family,
            "protocol": service.protocol,
            "address": listener.address,
            "port": listener.port,
            "balance": SOURCE_HASH if service.balance == SOURCE_HASH else "hash",
            "backends": [_backend(one, listener.family) for one in service.backends_of(listener.family)],
            "on_all_down": service.on_all_down,
            "on_down": service.on_down or "keep",
            "allow": list(service.allow),
            "deny": list(service.deny),
            "limits": limits,
            "log": service.log,
        }


def _backend(backend: Backend, family: str) -> dict[str, Any]:
    return {
        "name": backend.name,
        "address": backend.address(family),
        "port": backend.port,
        "weight": backend.weight,
        "tier": backend.tier,
        "enabled": not backend.disabled,
    }


def _bypass(numbers: Numbers, family: str) -> dict[str, Any]:
    """Return the rule by which local delivery leaves alone what the kernel forwards; the datapath sets the mark."""
    mask = numbers.mark_mask
    return {"family": family, "priority": numbers.priority_first, "fwmark": mask, "fwmask": mask,
            "action": "lookup", "table": MAIN}  # fmt: skip


def _refuse_mark_of_bypass(numbers: Numbers, proxy: str, number: int) -> None:
    if numbers.mark(proxy, number) == numbers.mark_mask:
        raise DerivationError(
            [
                f"proxy {proxy} has id {number}, whose mark {numbers.mark_mask:#x} is that of replies which the kernel "
                f"forwards; set a smaller l4proxy_id in the host_vars of {proxy}"
            ]
        )
