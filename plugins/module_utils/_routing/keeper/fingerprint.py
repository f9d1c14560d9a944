# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the host is as a look left it, told without reading it: milliseconds, where a look takes up to a hundred.

The keeper glances by the clock, in case that news were lost. What the kernel says of the documents' rules, routes,
addresses, neighbours, settings and of nftables goes into one digest as it comes, nothing is parsed that need not be.
Another digest is a reason to look, and no more than that. (iptables-legacy is not in it: where it is used, the keeper
looks.)
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
from ..reconcile.host import Host
from .monitor import NETLINK_NETFILTER, Interest
from .reconcile_pass import Look

# NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN and NFTA_GEN_ID of linux/netfilter/nf_tables.h
GETGEN, GEN_ID = 10 << 8 | 16, 1
# struct nfgenmsg: family, version, resource
NFGENMSG = struct.pack("=BBH", 0, 0, 0)


def digest(found: Look, host: Host) -> bytes | None:
    """Of all that another look at the same documents would read; None when it cannot be read."""
    seen = hashlib.sha256()
    interest = found.interest
    try:
        with Netlink(strict=True) as netlink:
            for listing in _listings(netlink, interest):
                seen.update(b"".join(listing))
        with host.make_kernel() as kernel:
            links = kernel.links()
            macs = [kernel.neighbour(hop, 0) for hop in sorted(interest.addresses)]
            # The lifetime of a leased address counts down in its message: it is read.
            seen.update(repr((kernel.addresses(), macs, [links.get(name) for name in sorted(interest.links)])).encode())
        settings = [host.sysctls.read(document.owner, document.sysctls) for document in found.documents.values()]
    except (RoutingError, OSError):
        return None  # what is wrong with it, the look will say
    seen.update(repr((settings, generation())).encode())
    return seen.digest()


def _listings(netlink: Netlink, interest: Interest) -> Iterator[list[bytes]]:
    for family in FAMILIES:
        yield netlink.dump(rule_messages.RTM_GETRULE, rule_messages.listing(family))
        ours = [route_messages.listing(family, protocol=number) for number in sorted(interest.protocols)]
        tables = [route_messages.listing(family, table=number) for number in sorted(interest.tables)]
        for question in (*ours, *tables):
            with contextlib.suppress(FileNotFoundError):  # no such table
                yield netlink.dump(route_messages.RTM_GETROUTE, question)


def generation() -> bytes:
    """What nftables counts its transactions by; empty where the kernel has no nftables."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return dict(attributes(netlink.get(GETGEN, NFGENMSG)[len(NFGENMSG) :])).get(GEN_ID, b"")
    except OSError:
        return b""
