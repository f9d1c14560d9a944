# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The subnet that a proxy and a backend share, and the address of each in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import HostAddress
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host

VERSIONS = (4, 6)


@dataclass(frozen=True)
class SharedSubnet:
    """A subnet that a proxy and a backend share: the address of each in it."""

    proxy: HostAddress
    backend: HostAddress

    @property
    def prefix(self) -> int | None:
        """The prefix length, of the end that has the other in its subnet."""
        return self.proxy.prefix if self.proxy.holds(self.backend.address) else self.backend.prefix


def shared_subnet(proxy: Host, backend: Host, version: int) -> SharedSubnet | None:
    """Return the subnet of one IP version that a proxy and a backend share; None if there is none.

    An address that both hosts have (``docker0`` and the like) does not count. Of several shared subnets, the one with
    the backend's preferred address wins (``ansible_host``, then the address of the default route).
    """
    for backend_address in backend.of_family(version):
        for proxy_address in proxy.of_family(version):
            if backend_address.address == proxy_address.address:
                continue
            if backend_address.holds(proxy_address.address) or proxy_address.holds(backend_address.address):
                return SharedSubnet(proxy=proxy_address, backend=backend_address)
    return None


def shared_subnets(proxy: Host, backend: Host) -> dict[int, SharedSubnet]:
    """Return the subnets that a proxy and a backend share, by IP version."""
    found = {version: shared_subnet(proxy, backend, version) for version in VERSIONS}
    return {version: subnet for version, subnet in found.items() if subnet}
