# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which client addresses may be used as the source of an upstream connection.

Pure. Some addresses cannot work as a source on the wire: the backend's kernel drops such packets as
martians, or the replies never leave it. What happens to a client with such an address is the service's
``source_fallback``: it is refused with RST and the reason in the log, since the connection would otherwise hang until
its deadline; or it is forwarded from the proxy's own address, which hides the client and is therefore never done
unasked.
"""

from __future__ import annotations

import ipaddress

from .refusal import Refusal

OWN = Refusal("never_spoofed", "client address is the proxy's own")
BACKENDS_OWN = Refusal("never_spoofed", "client address is the backend's own")
BROADCAST = Refusal("never_spoofed", "client address is broadcast")
FOREIGN_FAMILY = Refusal("never_spoofed", "no backend has an address of the client's family")

_IPV4_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122, 3.2.1.3: no source, and Linux drops such packets


def never_spoofed(address):
    """Return the Refusal of ``address`` (text, maybe with %zone) as a source, None when it may be one."""
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
    for wrong, kind in kinds:
        if wrong:
            return Refusal("never_spoofed", f"client address is {kind}")
    return BROADCAST if parsed == _IPV4_BROADCAST else None


def refusal(address, own_addresses):
    """Return why no backend can be given this client's address as the source, a Refusal; None when one can.

    ``own_addresses`` holds the proxy's addresses in text form. A backend's own address is asked about when the backend
    is chosen: any other backend takes it.
    """
    if address in own_addresses:
        return never_spoofed(address) or OWN
    return never_spoofed(address)
