# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which virtual addresses of the config this host has now; logs when one arrives or leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..loop import own_addresses
from ..loop.route_query import Kernel
from .supervisor_loop import SupervisorLoop

INTERVAL = 1.0  # seconds between two looks


class VirtualAddresses:
    """``here`` is {name: {address: whether this host has it}}; ``serving()`` as of local_delivery.LocalDelivery."""

    def __init__(self, loop: SupervisorLoop, serving: Callable[[], tuple[int, Any]]):
        self._loop = loop
        self._serving = serving
        self.here: dict[str, dict[str, bool]] = {}
        loop.call_later(INTERVAL, self._watch)

    def _watch(self):
        self._loop.call_later(INTERVAL, self._watch)
        self.look()

    def look(self) -> dict[str, dict[str, bool]]:
        """Look now; return ``here``."""
        config = self._serving()[1]
        wanted = (config.virtual_addresses if config else None) or {}
        try:
            own = own_addresses.own_addresses() if wanted else ()
        except OSError:  # out of descriptors: nothing is known
            return self.here
        before = self.here
        self.here = {name: {one: one in own or _has_local_route(one) for one in wanted[name]} for name in wanted}
        for name, addresses in self.here.items():
            for address, here in addresses.items():
                if here != before.get(name, {}).get(address, here):
                    self._loop.log.event("address arrived" if here else "address left", name=name, address=address)
        return self.here


def _has_local_route(address):
    """Whether this host takes packets to an address for its own, as to announced ones, which no link has."""
    try:
        with contextlib.closing(Kernel()) as kernel:
            return kernel.is_local(address)
    except OSError:  # no netlink; this one is wrong with net.ipv4.ip_nonlocal_bind
        return own_addresses.is_local(address)
