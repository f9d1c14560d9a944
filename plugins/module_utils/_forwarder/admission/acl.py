# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The access list of a service: networks that are allowed or denied. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .refusal import Refusal

DENIED = Refusal("denied", "client address is denied")
NOT_ALLOWED = Refusal("denied", "client address is not allowed")
REMOVED = Refusal("other", "the listener was removed")


class Networks:
    """A set of networks, given as text. A lookup costs one step per prefix length in use."""

    def __init__(self, networks: Iterable[str]) -> None:
        # IP version -> {host bits to shift away: {network bits}}
        self._by_version: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in map(ipaddress.ip_network, networks):
            shift = network.max_prefixlen - network.prefixlen
            bits = int(network.network_address) >> shift
            self._by_version[network.version].setdefault(shift, set()).add(bits)
        self._any = any(self._by_version.values())

    def __bool__(self) -> bool:
        return self._any

    def __contains__(self, address: str) -> bool:
        """Return whether an address, as text and maybe with a %zone, is in one of the networks."""
        if not self._any:
            return False
        parsed = ipaddress.ip_address(address.partition("%")[0])
        number = int(parsed)
        return any(number >> shift in bits for shift, bits in self._by_version[parsed.version].items())


class AccessList:
    """Denied networks win over allowed ones; without allowed networks every other client is allowed."""

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def refusal(self, address: str) -> Refusal | None:
        """Return the Refusal of a client's address, or None if it may connect."""
        if address in self._deny:
            return DENIED
        if self._allow and address not in self._allow:
            return NOT_ALLOWED
        return None


class Closed:
    """The access list of a service that was removed, or whose listeners were."""

    def refusal(self, _address: str) -> Refusal:
        """Refuse every client."""
        return REMOVED


CLOSED = Closed()
