# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fingerprint of the host, to see that nothing changed since a pass: milliseconds, where a pass takes up to 100.

The keeper compares fingerprints by the clock, in case notifications were lost. The kernel's listings of the documents'
rules, routes, addresses, neighbours, settings and of nftables are hashed, mostly without parsing. A different
fingerprint only means that a pass is needed. It does not cover iptables-legacy: where that is used, the keeper always
runs a pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator

from ..document.model import FAMILIES
from ..errors import RoutingError
from ..netlink import route_messages, rule_messages
from ..netlink.messages import Netlink, attributes
from ..reconcile import forwarding
from ..reconcile.host import Host
from .monitor import NETLINK_NETFILTER, Interest
from .reconcile_pass import PassResult

# NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN and NFTA_GEN_ID of linux/netfilter/nf_tables.h
GETGEN, GEN_ID = 10 << 8 | 16, 1
# struct nfgenmsg: family, version, resource
NFGENMSG = struct.pack("=BBH", 0, 0, 0)


def compute(result: PassResult, host: Host) -> bytes | None:
    """The fingerprint of everything that another pass over the same documents would read; None if that fails."""
    digest = hashlib.sha256()
    interest = result.interest
    try:
        with Netlink(strict=True) as netlink:
            for listing in _listings(netlink, interest):
                digest.update(b"".join(listing))
        with host.make_kernel() as kernel:
            links = kernel.links()
            macs = [kernel.neighbour(hop, 0) for hop in sorted(interest.addresses)]
            # Addresses are parsed, because the message of a leased one has a lifetime that counts down.
            parsed = (kernel.addresses(), macs, [links.get(name) for name in sorted(interest.links)])
            digest.update(repr(parsed).encode())
        settings = [forwarding.read(document, host.sysctls) for document in result.documents.values()]
    except (RoutingError, OSError):
        return None  # the pass reports the error
    digest.update(repr((settings, generation())).encode())
    return digest.digest()


def _listings(netlink: Netlink, interest: Interest) -> Iterator[list[bytes]]:
    for family in FAMILIES:
        yield netlink.dump(rule_messages.RTM_GETRULE, rule_messages.listing(family))
        ours = [route_messages.listing(family, protocol=number) for number in sorted(interest.protocols)]
        tables = [route_messages.listing(family, table=number) for number in sorted(interest.tables)]
        for request in (*ours, *tables):
            with contextlib.suppress(FileNotFoundError):  # no such table
                yield netlink.dump(route_messages.RTM_GETROUTE, request)


def generation() -> bytes:
    """The number of nftables' last transaction; empty if the kernel has no nftables."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return dict(attributes(netlink.get(GETGEN, NFGENMSG)[len(NFGENMSG) :])).get(GEN_ID, b"")
    except OSError:
        return b""
