# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state document of the kernel datapath: the services that a proxy's kernel forwards, and what that needs. Pure.

Which services these are: _datapath.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import MAIN
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.service_schema import OWNER
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import PROTOCOL_KERNEL_DATAPATH, Numbers
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._state_document import state_document

# A packet within a connection begins an entry, so that a connection can outlive its proxy; entries count bytes. While a
# connection moves, its directions take different proxies: conntrack must not find a packet invalid because it
# acknowledges what the other proxy has forwarded. After a change of the datapath, a backend's packet may be for a
# client that has the port of a socket of the forwarder: with early demux, it would be dropped, or go to that socket.
SYSCTLS = {
    "net.ipv4.ip_early_demux": "0",
    "net.netfilter.nf_conntrack_tcp_loose": "1",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "1",
    "net.netfilter.nf_conntrack_acct": "1",
}
# The lines about connections have their duration.
OF_LOG = {"net.netfilter.nf_conntrack_timestamp": "1"}
# How clients are spread; every other algorithm is a hash of address and port.
SOURCE_HASH = "source_hash"


def kernel_datapath(fleet: Fleet, proxy: str) -> dict[str, Any] | None:
    """Derive the state document of the kernel datapath of one proxy host.

    :returns: the document. Without a kernel service: None, or an empty document if an earlier run has stored one.
    :raises DerivationError: with every fault of the forwarder's config too, because the values come from it.
    """
    datapaths = Datapaths(fleet)
    if not any(datapaths.in_kernel(service) for service in fleet.services_of_proxy(proxy)):
        return state_document(OWNER, PROTOCOL_KERNEL_DATAPATH, {}) if fleet.known.get(OWNER) else None
    data = config.load(forwarder_config(fleet, proxy, {}))
    services = [one for service in data.services if service.in_kernel for one in _services(service)]
    families = sorted({service["family"] for service in services})
    settings = {**SYSCTLS, **(OF_LOG if any(service["log"] == "all" for service in services) else {})}
    numbers = fleet.numbers(proxy)
    _refuse_mark_of_bypass(numbers, proxy, data.proxy_id)
    sections = {
        "rules": [_bypass(numbers, family) for family in families],
        "sysctls": [{"name": name, "value": value} for name, value in settings.items()],
        "services": services,
        "forwarding": families,
    }
    return state_document(OWNER, PROTOCOL_KERNEL_DATAPATH, sections)


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
