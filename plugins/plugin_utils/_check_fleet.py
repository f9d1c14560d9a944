# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Derive everything of a run once, only to find its faults. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._announce import announce
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, collect
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._kernel_datapath import kernel_datapath
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import refuse_duplicate_ids
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import virtual_ips


def check_fleet(views: Iterable[tuple[Fleet, Mapping[str, Any]]]) -> None:
    """Derive everything for the hosts of a run.

    :param views: for each host the fleet as seen from it, and the options of its roles (None: the role is absent):
        ``forwarder`` (``config``: settings of the config; ``local_delivery``: options of that derivation),
        ``return_path`` (options of that derivation), ``virtual_ip`` and ``announce`` (none).
    :raises DerivationError: with every fault of every host, each once.
    """
    errors: list[str] = []
    ids: dict[str, int] = {}
    for fleet, roles in views:
        name = fleet.name
        forwarder = roles.get("forwarder")
        if forwarder is not None and name in fleet.proxies:
            data = collect(errors, forwarder_config, fleet, name, forwarder.get("config", {}))
            ids.update({name: data["proxy_id"]} if data else {})
            collect(errors, kernel_datapath, fleet, name)
            collect(errors, local_delivery, fleet, name, **forwarder.get("local_delivery", {}))
        if roles.get("virtual_ip") is not None and name in fleet.proxies:
            collect(errors, virtual_ips, fleet, name)
        if roles.get("announce") is not None and name in fleet.proxies:
            collect(errors, announce, fleet, name)
        if roles.get("return_path") is not None and name in fleet.backends:
            collect(errors, return_path, fleet, name, **roles["return_path"])
    collect(errors, refuse_duplicate_ids, ids)
    if errors:
        raise DerivationError(errors)
