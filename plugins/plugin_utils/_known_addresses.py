# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of peers that an earlier run stored on a host, in its documents. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.backend_names import host_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import HostAddress


def known_addresses(documents: Mapping[str, Any]) -> dict[str, list[HostAddress]]:
    """Return the addresses of peers, by host.

    :param documents: ``return_path`` and ``forwarder``, each the parsed document or None.
    """
    known: dict[str, list[HostAddress]] = {}
    for mark in (documents.get("return_path") or {}).get("marks", ()):
        known[mark.get("name", "")] = [HostAddress(ip_address(str(via))) for via in mark.get("via", ())]
    services = (documents.get("forwarder") or {}).get("services", ())
    backends = [backend for service in services for backend in service.get("backends", ())]
    # The whole name comes before the host in it: 2001:db8::1:80 may be a host, or port 80 of 2001:db8::1.
    for name_of in (str, host_of):
        for backend in backends:
            values = [backend.get(family) for family in ("ipv4", "ipv6")]
            addresses = [HostAddress(ip_address(str(value))) for value in values if value]
            known.setdefault(name_of(backend["name"]), addresses)
    return known
