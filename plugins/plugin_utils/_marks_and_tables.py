# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of the state documents: marks, routing tables, rule priorities, protocols. Pure.

Those that another tool on a host may use too can be changed there by the variable ``l4proxy_numbers``. Each is local to
its host. The reasons: docs/docsite/rst/architecture.rst.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import MAX_U32, OWNERS
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.schema import PRIORITIES, RESERVED_TABLES
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError

SCHEMA = 1
PROTOCOL_LOCAL_DELIVERY = OWNERS["local_delivery"]
PROTOCOL_RETURN_PATH = OWNERS["return_path"]
PROTOCOL_KERNEL_DATAPATH = OWNERS["kernel_datapath"]

FAMILY = {4: "ipv4", 6: "ipv6"}

VARIABLE = "l4proxy_numbers"
LARGEST_ID = 255
# Strategy address has tables of its own: while a backend changes its strategy, both return paths exist, and a table has
# one default route. This offset and the proxy's id are added to the base.
BY_ADDRESS = 300
# So have the ports of services whose connections outlive a proxy: the routes there change while it is dead.
BY_LAST_SENDER = 600
LAST_TABLE = BY_LAST_SENDER + LARGEST_ID


@dataclass(frozen=True)
class Numbers:
    """The numbers of one host.

    :ivar mark_mask: the bits of packet and connection marks that we use, all in a row.
    :ivar table_base: the routing table of local delivery; those of the return path follow.
    :ivar priority: of the lookup rules; their guard rules have the next one, and what comes before them the one above.
    """

    mark_mask: int = 0xFF
    table_base: int = 20100
    priority: int = 1100

    @property
    def priority_first(self) -> int:
        """The priority of rules that come before the lookup rules: those of services that the kernel forwards."""
        return self.priority - 1

    @property
    def priority_guard(self) -> int:
        return self.priority + 1

    @property
    def table_local_delivery(self) -> int:
        return self.table_base

    def table_by_mark(self, number: int) -> int:
        """Return the table of the return path to a proxy with strategy mark or fwmark_accept."""
        return self.table_base + number

    def table_by_address(self, number: int) -> int:
        """Return the table of the return path to a proxy with strategy address."""
        return self.table_base + BY_ADDRESS + number

    def table_by_last_sender(self, number: int) -> int:
        """Return the table of the return path to a proxy for services that the kernel forwards."""
        return self.table_base + BY_LAST_SENDER + number

    def mark(self, proxy: str, number: int) -> int:
        """Return the mark of a proxy: its id, shifted into the bits of the mask.

        :raises DerivationError: the id does not fit.
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
    errors = [f"{where}: {key!r} is not a known key; use {', '.join(known)}" for key in value if key not in known]
    values = {key: _number(value[key]) for key in known if value.get(key) is not None}
    errors += [f"{where}: {key} {value[key]!r} is not a whole number" for key, one in values.items() if one is None]
    numbers = Numbers(**{key: one for key, one in values.items() if one is not None})
    errors += [f"{where}: {sentence}" for sentence in _faults(numbers)]
    if errors:
        raise DerivationError(errors)
    return numbers


def _number(value: Any) -> int | None:
    """Return a whole number, also from text, decimal or with 0x; else None."""
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]+|[0-9]+", value):
        return int(value, 16 if value.startswith("0x") else 10)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _faults(numbers: Numbers) -> list[str]:
    faults = []
    mask = numbers.mark_mask
    lowest = mask & -mask
    if not 0 < mask <= MAX_U32 or (mask // lowest) & (mask // lowest + 1):
        faults.append(
            f"mark_mask {mask:#x} is not one run of bits within 0x1 to 0xffffffff; use for example 0xff or 0xff0000"
        )
    first, last = numbers.table_base, numbers.table_base + LAST_TABLE
    if first < 1 or last > MAX_U32 or any(first <= table <= last for table in RESERVED_TABLES):
        names = ", ".join(f"{table} ({name})" for table, name in RESERVED_TABLES.items())
        faults.append(
            f"table_base {first} uses the routing tables {first} to {last}, which must not include the kernel's own, "
            f"{names}; use 256 to {MAX_U32 - LAST_TABLE}"
        )
    low, high = PRIORITIES
    if not low <= numbers.priority < high:
        faults.append(
            f"priority {numbers.priority} leaves no room for a lookup rule and its guard rule between the rules "
            f"for local (0) and main (32766); use {low} to {high - 1}"
        )
    return faults
