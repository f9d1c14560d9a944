# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long conntrack on a backend remembers UDP sessions: as long as the forwarder does. Pure.

With strategy ``mark`` conntrack alone knows which proxy a UDP session came through. An answer after its timeout would
leave past the proxy, while the forwarder still waits for it.
"""

from __future__ import annotations

import math
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import UDP_IDLE_TIMEOUT
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet

# The kernel's defaults in seconds (nf_conntrack-sysctl): for a session without an answer or younger than two seconds,
# and for any other.
DEFAULTS = {"net.netfilter.nf_conntrack_udp_timeout": 30, "net.netfilter.nf_conntrack_udp_timeout_stream": 120}
# Seconds that conntrack waits longer: the two ends do not see a datagram at the same moment.
MARGIN = 5


def sysctls(fleet: Fleet, backend: str) -> list[dict[str, str]]:
    """Return the timeouts of conntrack that are too short for the UDP services of a backend, with their new values.

    Where a host has a longer one it is left alone. One that an earlier run has set is judged by the kernel's default,
    as nothing tells what it was.
    """
    idle = [_idle_timeout(one.options) for one in fleet.services_of_backend(backend) if one.protocol == "udp"]
    if not idle:
        return []
    needed = math.ceil(max(idle)) + MARGIN
    held = {str(one.get("name")) for one in (fleet.known.get("return_path") or {}).get("sysctls") or ()}
    return [
        {"name": name, "value": str(needed)}
        for name, default in DEFAULTS.items()
        if needed > (default if name in held else _seconds(fleet.settings.get(name), default))
    ]


def _idle_timeout(options: Any) -> float:
    """Return the seconds; the forwarder's config says what is wrong with a value that is no number."""
    value = options.get("idle_timeout")
    return float(value) if isinstance(value, (int, float)) and value >= 0 else UDP_IDLE_TIMEOUT.default


def _seconds(value: str | None, default: int) -> int:
    return int(value) if value and value.isdigit() else default
