# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of networks, asked about once a connection. Pure."""

from __future__ import annotations

import ipaddress

from .refusal import Refusal

DENIED = Refusal("denied", "client address is denied")
NOT_ALLOWED = Refusal("denied", "client address is not allowed")


class Networks:
    """Whether an address is in one of ``networks`` (text form); what it costs grows with the prefix lengths in use."""

    def __init__(self, networks):
        self._by_version: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}  # version -> {shift: {leading bits}}
        for network in map(ipaddress.ip_network, networks):
            shift = network.max_prefixlen - network.prefixlen
            bits = int(network.network_address) >> shift
            self._by_version[network.version].setdefault(shift, set()).add(bits)
        self._any = bool(networks)

    def __bool__(self):
        return self._any

    def __contains__(self, address):
        """``address`` is in text form, maybe with a %zone."""
        if not self._any:
            return False
        parsed = ipaddress.ip_address(address.partition("%")[0])
        number = int(parsed)
        return any(number >> shift in found for shift, found in self._by_version[parsed.version].items())


class AccessList:
    """``deny`` wins over ``allow``; an empty ``allow`` admits everybody else."""

    def __init__(self, allow, deny):
        self._allow = Networks(allow)
        self._deny = Networks(deny)

    def refusal(self, address):
        """Return the Refusal of ``address``, None when it is admitted."""
        if address in self._deny:
            return DENIED
        if self._allow and address not in self._allow:
            return NOT_ALLOWED
        return None
