# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxies that a backend reaches through an interface without MAC addresses, such as WireGuard or TUN. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import Host
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import shared_subnets

# Six octets; the "MAC" that facts have of a GRE or IPIP interface is its IP address.
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def proxies_behind(backend: Host, facts: Mapping[str, Any], proxies: Iterable[Host]) -> dict[str, list[str]]:
    """Return the names of the proxies behind each interface of a backend that has no MAC addresses.

    :param facts: ``ansible_facts`` of the backend; if they are empty, no such interface is known.
    """
    bare = {
        str(one["device"])
        for one in facts.values()
        if isinstance(one, Mapping) and "device" in one and not MAC.fullmatch(str(one.get("macaddress") or ""))
    }
    by_device: dict[str, list[str]] = {}
    for proxy in proxies:
        devices = {subnet.backend.device for subnet in shared_subnets(proxy, backend).values()}
        for device in sorted(device for device in devices if device in bare):
            by_device.setdefault(device, []).append(proxy.name)
    return by_device


def indistinct(by_device: Mapping[str, list[str]]) -> list[str]:
    """Return a sentence for each interface behind which several proxies cannot be told apart."""
    return [
        f"{' and '.join(proxies)} are both behind {device}, which has no MAC addresses to tell them apart"
        if len(proxies) == 2
        else f"{', '.join(proxies)} are all behind {device}, which has no MAC addresses to tell them apart"
        for device, proxies in sorted(by_device.items())
        if len(proxies) > 1
    ]
