# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two address families: their names in documents and messages, and the family of an address."""

from __future__ import annotations

import socket

FAMILIES = IPV4, IPV6 = "ipv4", "ipv6"
SPELLED = {IPV4: "IPv4", IPV6: "IPv6"}


def family_of(address: str) -> str:
    """Return "ipv4" or "ipv6" for an address in text form; it is not validated."""
    return IPV6 if ":" in address else IPV4


def socket_family_of(address: str) -> socket.AddressFamily:
    """Return AF_INET or AF_INET6 for an address in text form; it is not validated."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
