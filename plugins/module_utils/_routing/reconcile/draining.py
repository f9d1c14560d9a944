# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Objects that leave a host only when nothing needs them any more. Pure: the time and the counts are passed in.

A ``retiring`` object stays on the host as it is, and is never added. Without ``retire_at`` it stays until the document
no longer names it. With it, it leaves at that time (seconds since the epoch), or after the document's ``settle_at`` as
soon as no connection carries its id: that of a mark, of a rule by its fwmark, and of a route by the rules that look its
table up. Before, the other end may still make new connections that need it. An object without an id (an address, a rule
by source, a setting), or with that of a mark that is not kept in conntrack, stays for the whole time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Optional

from ..document import documents
from ..document.documents import SECTIONS, Document
from ..document.model import Mark, Route, Rule, Sysctl
from .plan import State

# Nobody tells when the last connection ends: seconds until another look is worth while.
LOOK_AGAIN = 5.0

# (mark, mask) → living connections, None where that is not known
Count = Callable[[int, int], Optional[int]]
Id = tuple[int, int]


def begin(
    document: Document, have: State, stored: Document | None, deadline: float, settle_at: float | None = None
) -> Document:
    """The document, and with it, retiring, all that the owner has on the host and the document does not name.

    What retires already by the ``stored`` document keeps its earlier time, and while nothing is added to it, that
    document's ``settle_at`` counts.
    """
    added, more = {}, False
    for section in SECTIONS:
        named = {value.key for value in getattr(document, section)}
        times = {value.key: value.retire_at for value in getattr(stored, section, ()) if value.retire_at is not None}
        lacking = [
            _retiring(value, times.get(value.key, int(deadline)))
            for value in _present(have, section)
            if value.key not in named
        ]
        kept = tuple(value for value in lacking if documents.storable(section, value))
        more = more or any(value.key not in times for value in kept)
        added[section] = getattr(document, section) + kept
    earlier = stored.settle_at if stored else None
    return replace(document, **added, settle_at=int(settle_at) if more and settle_at is not None else earlier)


def _present(have: State, section: str) -> list[Any]:
    """What the owner has on the host: of settings, those it holds."""
    if section != "sysctls":
        return list(getattr(have, section))
    return [Sysctl(setting.name, setting.value) for setting in have.sysctls if setting.held]


def _retiring(value: Any, retire_at: int) -> Any:
    # A mark stays as the live table has it; its MAC may by now be that of another id, and would collide.
    unnamed = {"macs": ()} if isinstance(value, Mark) else {}
    return replace(value, retiring=True, retire_at=retire_at, **unnamed)


def due(document: Document, now: float, count: Count) -> Document:
    """The document without what is over."""
    counts: dict[Id, int | None] = {}
    # Connections that carry no mark in conntrack cannot be counted: what they need stays for the whole time.
    untracked = {(mark.id, mark.mask) for mark in document.marks if not mark.conntrack}

    def over(value: Any) -> bool:
        if not value.retiring or value.retire_at is None:
            return False
        if value.retire_at <= now:
            return True
        if now < (document.settle_at or 0):
            return False
        ids = _ids(value, document)
        if ids & untracked:
            return False
        counts.update({one: count(*one) for one in ids - counts.keys()})
        return bool(ids) and all(counts[one] == 0 for one in ids)

    left: dict[str, Any] = {
        section: tuple(value for value in getattr(document, section) if not over(value)) for section in SECTIONS
    }
    after = replace(document, **left)
    return after if leaving(after) else replace(after, settle_at=None)


def _ids(value: Any, document: Document) -> set[Id]:
    if isinstance(value, Mark):
        return {(value.id, value.mask)}
    if isinstance(value, Rule):
        return set() if value.fwmark is None or value.fwmask is None else {(value.fwmark, value.fwmask)}
    if isinstance(value, Route):
        lookups = [rule for rule in document.rules if (rule.family, rule.table) == (value.family, value.table)]
        return {one for rule in lookups for one in _ids(rule, document)}
    return set()


def leaving(document: Document) -> list[Any]:
    """What retires with a time."""
    values = [value for section in SECTIONS for value in getattr(document, section)]
    return [value for value in values if value.retiring and value.retire_at is not None]


def next_look(document: Document, now: float) -> float | None:
    """Seconds until something may be over; None when nothing retires."""
    times = [value.retire_at - now for value in leaving(document)]
    return max(0.0, min(LOOK_AGAIN, *times)) if times else None


def wanted(want: State, document: Document) -> State:
    """The wanted state with what retires in the document, in place of what retired in the one it was made of."""
    sections: dict[str, Any] = {
        section: (
            *(value for value in getattr(want, section) if not value.retiring),
            *(value for value in getattr(document, section) if value.retiring),
        )
        for section in SECTIONS
    }
    return replace(want, **sections)
