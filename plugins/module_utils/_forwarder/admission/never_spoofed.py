# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client addresses that can never be the source of an upstream connection. Pure.

A backend's kernel drops packets from such a source as martians, or its replies never leave it. The service's
``source_fallback`` decides: the client is refused by RST, with the reason in the log, instead of hanging until its
deadline; or it is forwarded from the proxy's own address, which hides the client and is therefore not the default.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container

from .refusal import Refusal

OWN = Refusal("never_spoofed", "client address is the proxy's own")
BACKENDS_OWN = Refusal("never_spoofed", "client address is the backend's own")
BROADCAST = Refusal("never_spoofed", "client address is broadcast")
FOREIGN_FAMILY = Refusal("never_spoofed", "no backend has an address of the client's family")

_IPV4_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3: not a source; Linux drops such packets


def never_spoofed(address: str) -> Refusal | None:
    """Return the Refusal of an address (text, maybe with a %zone) that cannot be a source anywhere, else None."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    kinds = (
        (mapped is not None, "v4-mapped"),
        (parsed.is_loopback, "loopback"),
        (parsed.is_unspecified, "unspecified"),
        (parsed.version == 4 and parsed in _THIS_NETWORK, "in 0.0.0.0/8"),
        (parsed.is_multicast, "multicast"),
        (parsed.is_link_local, "link-local"),
    )
    for matches, kind in kinds:
        if matches:
            return Refusal("never_spoofed", f"client address is {kind}")
    return BROADCAST if parsed == _IPV4_BROADCAST else None


def refusal(address: str, own_addresses: Container[str]) -> Refusal | None:
    """Return the Refusal of a client whose address cannot be the source for any backend, else None.

    ``own_addresses`` are the proxy's addresses as text. A client with a backend's address can still use every other
    backend, so that is checked when the backend is chosen.
    """
    if address in own_addresses:
        return never_spoofed(address) or OWN
    return never_spoofed(address)
