# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers the documents are made of: masks, tables, priorities, owners; docs/docsite/rst/architecture.rst says why.

Those that another tool may want as well are a variable, ``l4proxy_numbers``. They mean something on one host only, so
two hosts need not have the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import MAX_U32
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.schema import PRIORITIES, RESERVED_TABLES
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError

SCHEMA = 1
PROTOCOL_LOCAL_DELIVERY = 201
PROTOCOL_RETURN_PATH = 202

FAMILY = {4: "ipv4", 6: "ipv6"}

# Sources of the handshake probe, one a proxy: documentation ranges (RFC 5737, RFC 3849) that no client comes from.
PROBE_SOURCE = {4: "198.51.100.{0}", 6: "2001:db8:ffff::{0}"}

VARIABLE = "l4proxy_numbers"
LARGEST_ID = 255
# The ways back of the strategies have tables of their own, because while one takes over from another both are in
# force, and a table has one default route. Offsets from the base; a proxy's id is added.
BY_ADDRESS = 300
LAST_TABLE = BY_ADDRESS + LARGEST_ID


@dataclass(frozen=True)
class Numbers:
    """The numbers of one host.

    :ivar mark_mask: the bits of packet and connection marks that are ours: one run of them.
    :ivar table_base: the routing table of local delivery; those of the return path follow.
    :ivar priority: that of the rules that look tables up; the guards below them have the next one.
    """

    mark_mask: int = 0xFF
    table_base: int = 20100
    priority: int = 1100

    @property
    def priority_guard(self) -> int:
        return self.priority + 1

    @property
    def table_local_delivery(self) -> int:
        return self.table_base

    def table_by_mark(self, number: int) -> int:
        """Return the table of a proxy's way back with strategies mark and fwmark_accept."""
        return self.table_base + number

    def table_by_address(self, number: int) -> int:
        return self.table_base + BY_ADDRESS + number

    def mark(self, proxy: str, number: int) -> int:
        """Return the mark of a proxy: its id, in the bits of the mask.

        :raises DerivationError: it does not fit.
        """
        lowest = self.mark_mask & -self.mark_mask
        largest = self.mark_mask // lowest
        if number > largest:
            raise DerivationError(
                [
                    f"proxy {proxy} has id {number}, but {VARIABLE}.mark_mask {self.mark_mask:#x} has room for ids 1 "
                    f"to {largest}; set a smaller l4proxy_id in the host_vars of {proxy}, or a mask with more bits"
                ]
            )
        return number * lowest


def read(host: str, value: Any) -> Numbers:
    """Read ``l4proxy_numbers`` of a host.

    :raises DerivationError: with every fault of it.
    """
    if value is None:
        return Numbers()
    where = f"{VARIABLE} of {host}"
    known = tuple(Numbers.__dataclass_fields__)
    if not isinstance(value, Mapping):
        raise DerivationError([f"{where}: expected a dictionary with {', '.join(known)}, found {value!r}"])
    errors = [f"{where}: {key!r} is not known here; use {', '.join(known)}" for key in value if key not in known]
    found = {key: _number(value[key]) for key in known if value.get(key) is not None}
    errors += [f"{where}: {key} {value[key]!r} is not a whole number" for key, one in found.items() if one is None]
    numbers = Numbers(**{key: one for key, one in found.items() if one is not None})
    errors += [f"{where}: {sentence}" for sentence in _faults(numbers)]
    if errors:
        raise DerivationError(errors)
    return numbers


def _number(value: Any) -> int | None:
    """A whole number, also as text, with 0x or without."""
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", value):
        return int(value, 16 if value.startswith("0x") else 10)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _faults(numbers: Numbers) -> list[str]:
    found = []
    mask = numbers.mark_mask
    lowest = mask & -mask
    if not 0 < mask <= MAX_U32 or (mask // lowest) & (mask // lowest + 1):
        found.append(f"mark_mask {mask:#x} is not one run of bits in 0x1 to 0xffffffff, such as 0xff or 0xff0000")
    first, last = numbers.table_base, numbers.table_base + LAST_TABLE
    if first < 1 or last > MAX_U32 or any(first <= table <= last for table in RESERVED_TABLES):
        names = ", ".join(f"{table} ({name})" for table, name in RESERVED_TABLES.items())
        found.append(
            f"table_base {first} takes the routing tables {first} to {last}, which must leave out the kernel's own, "
            f"{names}; 256 to {MAX_U32 - LAST_TABLE} is possible"
        )
    low, high = PRIORITIES
    if not low <= numbers.priority < high:
        found.append(
            f"priority {numbers.priority} has no room for a lookup rule and the guard right below it between the rules "
            f"for local (0) and main (32766); use {low} to {high - 1}"
        )
    return found
