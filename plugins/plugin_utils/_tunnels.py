# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxies that a backend reaches by an interface without MAC addresses, as those of WireGuard and TUN are. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host, meet

# Six octets; what the facts call the MAC of a GRE or IPIP interface is its IP address.
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def behind(backend: Host, facts: Mapping[str, Any], proxies: Iterable[Host]) -> dict[str, list[str]]:
    """Return the names of the proxies behind each such interface of a backend.

    :param facts: ``ansible_facts`` of the backend; without them nothing is known.
    """
    bare = {
        str(one["device"])
        for one in facts.values()
        if isinstance(one, Mapping) and "device" in one and not MAC.fullmatch(str(one.get("macaddress") or ""))
    }
    found: dict[str, list[str]] = {}
    for proxy in proxies:
        meetings = [meet(proxy, backend, version) for version in (4, 6)]
        for device in sorted({one.backend.device for one in meetings if one and one.backend.device in bare}):
            found.setdefault(device, []).append(proxy.name)
    return found


def indistinct(found: Mapping[str, list[str]]) -> list[str]:
    """Say where the interface cannot tell the proxies apart; the sentence has no subject yet."""
    return [
        f"{' and '.join(proxies)} are both behind {device}, which has no MAC addresses to tell them apart by"
        if len(proxies) == 2
        else f"{', '.join(proxies)} are all behind {device}, which has no MAC addresses to tell them apart by"
        for device, proxies in sorted(found.items())
        if len(proxies) > 1
    ]
