# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The conntrack timeouts of UDP on a backend: at least as long as the forwarder keeps a session. Pure.

With strategy ``mark`` conntrack alone knows which proxy a UDP session came through. A reply after conntrack's timeout
would bypass the proxy while the forwarder still waits for it.
"""

from __future__ import annotations

import math
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import UDP_IDLE_TIMEOUT
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet

# The kernel's defaults in seconds (nf_conntrack-sysctl): for a session without a reply or younger than two seconds, and
# for any other.
DEFAULTS = {"net.netfilter.nf_conntrack_udp_timeout": 30, "net.netfilter.nf_conntrack_udp_timeout_stream": 120}
# Seconds on top of the forwarder's timeout: the two ends do not see a datagram at the same moment.
MARGIN = 5


def sysctls(fleet: Fleet, backend: str) -> list[dict[str, str]]:
    """Return the conntrack timeouts that are too short for the UDP services of a backend, with their new values.

    A longer one is not changed. One that an earlier run has set is compared by the kernel's default, because its
    original value is not known.
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
    """Return the idle timeout in seconds; a value that is not a number is refused by the forwarder's config."""
    value = options.get("idle_timeout")
    return float(value) if isinstance(value, (int, float)) and value >= 0 else UDP_IDLE_TIMEOUT.default


def _seconds(value: str | None, default: int) -> int:
    return int(value) if value and value.isdigit() else default
