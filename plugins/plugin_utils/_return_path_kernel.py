# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The return path of services that the kernel of several proxies forwards: their connections outlive a proxy. Pure.

On the ports of such services the mark of a connection follows its last sender, and a table of their own leads to the
proxy, or to another one while it is dead. Ports of the forwarder keep the table that never moves. Services of one proxy
need nothing of this, and with strategy ``address`` there are no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.families import family_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import Sections, default_route
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import ServiceRef
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet

Subnets = Mapping[str, Mapping[int, SharedSubnet]]


class LastSenders:
    """The services of a backend that the kernel of several proxies forwards."""

    def __init__(self, fleet: Fleet, backend: str) -> None:
        self._fleet, self._backend = fleet, backend
        datapaths = Datapaths(fleet)
        every = [service for service in fleet.services_of_backend(backend) if datapaths.in_kernel(service)]
        self._services = [service for service in every if len(self._proxies_of(service)) > 1]

    def _proxies_of(self, service: ServiceRef) -> list[str]:
        return [proxy for proxy in self._fleet.proxies_of_service(service) if proxy != self._backend]

    def _ports(self, service: ServiceRef) -> Iterator[int]:
        return (int(ref.port) for ref in service.backends if ref.host == self._backend)

    def _of_proxy(self, proxy: str) -> list[ServiceRef]:
        return [service for service in self._services if proxy in self._proxies_of(service)]

    def ports(self, proxy: str) -> list[str]:
        """Return the ports whose connections a proxy may take over, such as ``tcp/8080``."""
        return sorted({f"{one.protocol}/{port}" for one in self._of_proxy(proxy) for port in self._ports(one)})

    def fallback(self, proxy: str) -> list[str]:
        """Return the other proxies that have all of these services, because all their replies use one table."""
        services = self._of_proxy(proxy)
        others = [other for other in self._fleet.proxies if services and other != proxy]
        return [other for other in others if all(other in self._proxies_of(service) for service in services)]

    def objects(self, proxy: str, number: int, subnets: Subnets) -> Sections:
        """Return the rules for these ports, and the routes of their table; the mark gets its ``ports`` elsewhere.

        :param number: the proxy's id.
        :param subnets: the subnets that each proxy shares with the backend, by IP version.
        """
        numbers = self._fleet.numbers(self._backend)
        table, value = numbers.table_by_last_sender(number), numbers.mark(proxy, number)
        sections: Sections = {"rules": [], "routes": []}
        for version, subnet in sorted(subnets[proxy].items()):
            others = [subnets[other][version] for other in self.fallback(proxy) if version in subnets[other]]
            ports = {
                (service.protocol, port)
                for service in self._of_proxy(proxy)
                for port in self._ports(service)
                if FAMILY[version] in {family_of(address) for address, _port in service.listen}
            }
            if not (others and ports):
                continue
            match = {"family": FAMILY[version], "fwmark": value, "fwmask": numbers.mark_mask}
            match |= {"priority": numbers.priority_first, "action": "lookup", "table": table}
            sections["rules"] += [{**match, "ip_proto": protocol, "sport": port} for protocol, port in sorted(ports)]
            route: dict[str, Any] = default_route(version, subnet, table)
            if any(other.backend.device != subnet.backend.device for other in others):
                route["dev"] = None
            sections["routes"].append({**route, "fallback": [str(other.proxy.address) for other in others]})
        return sections

    def notes(self) -> Iterator[str]:
        """Yield what an operator may not expect."""
        for proxy in self._fleet.proxies_of_backend(self._backend):
            services = self._of_proxy(proxy)
            if len({tuple(self._proxies_of(service)) for service in services}) > 1:
                names, others = ", ".join(one.name for one in services), self.fallback(proxy)
                way = f"leave through {' or '.join(others)}" if others else "are lost until the client sends something"
                yield (
                    f"the services {names} of {self._backend} have different proxies: if {proxy} fails, replies of "
                    f"their open connections {way}; give them the same proxies, so that any of these can take over"
                )
