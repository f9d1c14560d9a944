# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A ban of an operator: how it is stored, compared and shown. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..admin import runtime_file
from ..admission import deny_table
from ..admission.deny_table import FOREVER

MOST_BANS = 20_000  # of operators; they are written to the state file with each change
SHAPES = [[str, str, end, str, int] for end in (int, type(None))]  # of a record

Key = tuple[str, str, int, int]  # service ("": all), family, first address, prefix length


def key_of(service: str | None, network: str) -> Key:
    """Return the key of a ban; raise ValueError, half a sentence about the network."""
    return (service or "", *deny_table.parse(network))


def checked_key(network: str, service: str | None) -> Key:
    """Return key_of(); raise ValueError, a sentence."""
    try:
        return key_of(service, network)
    except ValueError as error:
        raise ValueError(f"{network[:60]!a} {error}") from None


def shown(ban: Ban | None) -> Any:
    """Return a ban as answers show it, None for none."""
    if ban is None:
        return None
    return {"expires": None if ban.expires == FOREVER else runtime_file.timestamp(ban.expires), "reason": ban.reason}


def overlap(one: Any, other: Any) -> bool:
    return bool(one.version == other.version and one.overlaps(other))


class Ban(NamedTuple):
    """A ban of an operator; ``expires`` is a second of the epoch, or FOREVER."""

    expires: int
    reason: str
    since: int


def check_records(records: Any):
    """Raise ValueError if the bans in a state file are not what records() returns."""
    if not isinstance(records, list) or len(records) > MOST_BANS:
        raise ValueError("denied: is not a list")
    for record in records:
        if not isinstance(record, list) or [type(one) for one in record] not in SHAPES:
            raise ValueError("denied: is not [service, network, end, reason, since]")
        if not all(0 <= (number or 0) < FOREVER for number in (record[2], record[4])):
            raise ValueError("denied: an end is no second of the epoch")
        try:
            deny_table.parse(record[1])
        except ValueError as error:
            raise ValueError(f"denied: {record[1][:60]!a} {error}") from None
