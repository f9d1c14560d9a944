# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a proxy host has to reach, with whose address. Pure."""

from __future__ import annotations

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._derivation import proxy_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import PROBE_SOURCE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import first_port


def probe_targets(fleet: Fleet, proxy: str, samples: bool = False) -> list[dict[str, Any]]:
    """List every backend of every TCP service of a proxy, once a family that the service listens on.

    Of a range, it asks one, and where the service names a port for health checks, that one: the others may be closed
    while nobody uses them.

    :param samples: list those of UDP services too, each with its ``protocol`` and its ``host`` in the inventory ("" for
        one that is only an address). The probe is a TCP handshake; a sample may be either.
    """
    number = proxy_id(fleet, proxy)
    targets: dict[tuple[str, str, int], dict[str, Any]] = {}
    for service in fleet.services_of_proxy(proxy):
        listening = {6 if ":" in address else 4 for address, _port in service.listen}
        for ref in service.backends if samples or service.protocol == "tcp" else ():
            port = service.health_port or first_port(ref.port)
            more = {"protocol": service.protocol, "host": ref.host or ""} if samples else {}
            for version, address in fleet.backend_addresses(proxy, ref).items():
                if version in listening:
                    targets[service.name, address, port] = {
                        "name": f"{service.name}: {ref.label}",
                        "address": address,
                        "port": port,
                        "source": PROBE_SOURCE[version].format(number),
                        **more,
                    }
    return list(targets.values())
