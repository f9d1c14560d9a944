# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which listeners of a new config another program of this host has already: known before the config is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.config import Config
from ..config.defaults import KERNEL
from ..loop import sockets

_WILDCARDS = ("0.0.0.0", "::")


def taken(status: Mapping[str, Any] | None, new: Config) -> dict[str, str]:
    """Return {"PROTOCOL:ADDRESS:PORT": reason} of the listeners of ``new`` that cannot be bound here.

    ``status`` is the running forwarder's status document, None if there is none. What it serves is not taken, nor is an
    address that overlaps with that.
    """
    ours = _served(status) if status else set()
    found = {}
    for service in new.services:
        for listener in () if service.in_kernel else service.listen:
            key = service.protocol, listener.port
            served = {address for protocol, address, port in ours if (protocol, port) == key}
            if any(_overlap(listener.address, address) for address in served):
                continue
            try:
                sockets.refuse_taken(listener.address, listener.port, service.protocol == "udp")
            except OSError as error:
                found[f"{service.protocol}:{listener}"] = sockets.describe(error)
    return found


def _served(status):
    """Return {(protocol, address, port)} of the listeners that a forwarder has bound."""
    return {
        (service["protocol"], address.strip("[]"), int(port))
        for service in status["services"]
        for address, _colon, port in (one.rpartition(":") for one in service["listen"])
        # Version 0.1.0 has neither key.
        if service.get("datapath") != KERNEL and f"{address}:{port}" not in service.get("failed", {})
    }


def _overlap(one, other):
    """Whether two addresses of listeners are the same, or one of them includes the other."""
    same_family = (":" in one) == (":" in other)
    return one == other or (same_family and (one in _WILDCARDS or other in _WILDCARDS))
