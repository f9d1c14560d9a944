# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the table has counted, by service and backend.

    {"web": {"refused": {"denied": 0, "limited": 0, "no_backend": 0, "flood": 0},
             "backends": {"b": {"connections": 0, "bytes_in": 0, "bytes_out": 0, "packets_in": 0, "packets_out": 0}}}}

``in`` is from clients to the backend; bytes are those of IP packets. ``connections`` are all since the counter exists.
A counter exists as long as its backend is in a document, and begins again when somebody else has removed the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..document.kernel_service import KernelService
from ..document.model import FAMILIES
from ..errors import RoutingError
from ..netlink.messages import Netlink, attribute, attributes
from .render import CAUSES, counter_name
from .table import GETOBJ, GETTABLE, NETLINK_NETFILTER, NFT_OBJECT_COUNTER, dump, text

# nf_tables.h
NFTA_TABLE_HANDLE, NFTA_OBJ_HANDLE = 4, 6
NFTA_OBJ_NAME, NFTA_OBJ_TYPE, NFTA_OBJ_DATA, NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS = 2, 3, 4, 1, 2
# Of all services: packets that are dropped.
COMMON = (
    *("flood", "unasked"),
    *(f"{cause}_{family}" for cause in ("invalid", "strangers") for family in FAMILIES),
)
Counts = Mapping[str, tuple[int, int]]


class Reading(NamedTuple):
    """The values of a counter. Two that were made at different times have different identities."""

    packets: int
    size: int
    identity: str = ""


def read() -> dict[str, tuple[int, int]]:
    """{name of a counter: (packets, bytes)}. RoutingError if they cannot be read; without a table there are none."""
    return {name: (reading.packets, reading.size) for name, reading in readings().items()}


def readings() -> dict[str, Reading]:
    """The same with the identities of the counters."""
    kind = attribute(NFTA_OBJ_TYPE, struct.pack(">I", NFT_OBJECT_COUNTER))
    found: dict[str, Reading] = {}
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            tables = "".join(table.get(NFTA_TABLE_HANDLE, b"").hex() for table in dump(netlink, GETTABLE))
            for one in dump(netlink, GETOBJ, kind):
                identity = f"{tables}.{one.get(NFTA_OBJ_HANDLE, b'').hex()}"
                found[text(one[NFTA_OBJ_NAME])] = Reading(*_values(one[NFTA_OBJ_DATA]), identity)
    except OSError as error:
        raise RoutingError(f"cannot read the counters of nftables: {error}") from error
    return found


def _values(data: bytes) -> tuple[int, int]:
    found = dict(attributes(data))
    packets, size = (int.from_bytes(found[kind], "big") for kind in (NFTA_COUNTER_PACKETS, NFTA_COUNTER_BYTES))
    return packets, size


def by_service(services: Iterable[KernelService], counts: Counts) -> dict[str, Any]:
    """The counts of each service name, summed over its addresses, ports and protocols."""
    result: dict[str, Any] = {}
    for service in services:
        found = result.setdefault(service.name, {"refused": dict.fromkeys(CAUSES, 0), "backends": {}})
        for cause in CAUSES:
            found["refused"][cause] += counts.get(counter_name(cause, service), (0, 0))[0]
        for server in service.servers:
            values = [counts.get(counter_name(kind, service, server), (0, 0)) for kind in ("new", "in", "out")]
            (connections, _bytes), (packets_in, bytes_in), (packets_out, bytes_out) = values
            names = ("connections", "bytes_in", "bytes_out", "packets_in", "packets_out")
            sums = found["backends"].setdefault(server.name, dict.fromkeys(names, 0))
            for name, value in zip(names, (connections, bytes_in, bytes_out, packets_in, packets_out)):
                sums[name] += value
    return result


def dropped(counts: Counts) -> dict[str, int]:
    """Packets that belong to no connection of a service and were dropped, by cause (COMMON)."""
    return {name: counts[name][0] for name in COMMON if name in counts}
