# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The option targets of handshake_probe and source_proof: its argument spec, and what Ansible does not validate."""

from __future__ import annotations

import ipaddress
from typing import Any

SPEC: dict[str, dict[str, Any]] = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "source": {"type": "str", "required": True},
    "name": {"type": "str", "default": ""},
}


def errors_of(target: dict[str, Any], path: str) -> list[str]:
    """What is wrong with the addresses and the port of a target, a sentence each. ``path``: ``targets[0]``."""
    errors = []
    versions = set()
    for key in ("address", "source"):
        try:
            versions.add(ipaddress.ip_address(str(target.get(key))).version)
        except ValueError:
            errors.append(f"{path}.{key}: {target.get(key)!r} is not an IP address")
    if len(versions) > 1:
        errors.append(f"{path}: {target['address']} and {target['source']} are of different families")
    if not isinstance(target.get("port"), int) or not 1 <= target["port"] <= 65535:
        errors.append(f"{path}.port: {target.get('port')!r} is not a port (1-65535)")
    return errors
