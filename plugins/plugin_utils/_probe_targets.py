# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets of the handshake probe: what a proxy has to reach, and from which spoofed source. Pure."""

from __future__ import annotations

from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import HEALTH_SOURCE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import proxy_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import backend_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import first_port


def probe_targets(fleet: Fleet, proxy: str, samples: bool = False) -> list[dict[str, Any]]:
    """Return every backend of every TCP service of a proxy, once per family that the service listens on.

    A range is probed at one port, that of health checks if it is set: the others may be closed while they are not used.

    :param samples: include UDP services, and give each target its ``protocol`` and its ``host`` in the inventory (""
        for one that is only an address). The handshake probe is TCP; a sample may be either.
    """
    number = proxy_id(fleet, proxy)
    targets: dict[tuple[str, str, int], dict[str, Any]] = {}
    for service in fleet.services_of_proxy(proxy):
        listening = {6 if ":" in address else 4 for address, _port in service.listen}
        for ref in service.backends if samples or service.protocol == "tcp" else ():
            port = service.health_port or first_port(ref.port)
            more = {"protocol": service.protocol, "host": ref.host or ""} if samples else {}
            for version, address in backend_addresses(fleet, proxy, ref).items():
                if version in listening:
                    targets[service.name, address, port] = {
                        "name": f"{service.name}: {ref.label}",
                        "address": address,
                        "port": port,
                        "source": HEALTH_SOURCE[FAMILY[version]].format(number),
                        **more,
                    }
    return list(targets.values())
