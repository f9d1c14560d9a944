# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two address families, and the addresses of hosts in them."""

from __future__ import annotations

import socket
from typing import Any

FAMILIES = ("ipv4", "ipv6")
AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
BITS = {"ipv4": 32, "ipv6": 128}


def address_of(host: Any, family: str) -> str:
    """The address of a host, or of one of its interfaces, in a family."""
    return getattr(host, family)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
