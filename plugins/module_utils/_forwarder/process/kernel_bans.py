# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file in which the supervisor says who is banned at kernel services. The keeper (root) reads and applies it.

{"schema": 1, "lists": [{"source": "bans", "service": "" (all), "family": "ipv4",
                         "ranges": [["192.0.2.0", "192.0.2.255", second of the epoch at which it ends, or 0]]}]}

Protected networks are not in it. The list of the files is left out if it has more than MOST_RANGES; so are bans beyond.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..admission.deny_table import BITS, FOREVER, Table
from ..backends import published_states

SCHEMA = 1
NAME = "denied.json"  # in the runtime directory
MOST_RANGES = 65_536  # of one table: nft needs 1.7 s of CPU time to load so many
_AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def document(tables: dict[str, Table], protected: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the document for these tables, and the names of those that are too long for it."""
    holes: dict[str, list[tuple[int, int]]] = {family: [] for family in BITS}
    for network in map(ipaddress.ip_network, protected):
        holes[f"ipv{network.version}"].append((int(network.network_address), int(network.broadcast_address)))
    lists, too_long = [], []
    for source, table in tables.items():
        if len(table) > MOST_RANGES:
            too_long.append(source)
            continue
        for (service, family), found in table.scopes.items():
            ranges = [
                [*(_text(family, one) for one in span), end % FOREVER]
                for *span, end in _without(found, sorted(holes[family]))
            ]
            lists.append({"source": source, "service": service, "family": family, "ranges": ranges})
    return {"schema": SCHEMA, "lists": lists}, too_long


def _text(family: str, address: int) -> str:
    return socket.inet_ntop(_AF[family], address.to_bytes(BITS[family] // 8, "big"))


def _without(found: Iterable[tuple[int, int, int]], holes: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield intervals without the addresses in ``holes``, which are sorted."""
    for first, last, end in found:
        start = first
        for low, high in holes:
            if high < start or low > last:
                continue
            if low > start:
                yield start, low - 1, end
            start = high + 1
        if start <= last:
            yield start, last, end


def write(path: str, found: dict[str, Any]) -> None:
    """Replace the file by a document(); an empty one removes it. Raise OSError."""
    if found:
        published_states.write(path, found)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
