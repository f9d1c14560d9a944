# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep objects that a document no longer lists while connections use them.

A ``retiring`` object stays on the host as it is, and is never added. Without ``retire_at`` it stays until the document
no longer lists it. With it, it is removed at that time (seconds since the epoch), or after the document's ``settle_at``
as soon as no connection carries its id: that of a mark, of a rule by its fwmark, and of a route by the rules that look
up its table. Before ``settle_at`` the other end may still open connections that need it. An object without an id (an
address, a rule by source, a sysctl), or with that of a mark that is not kept in conntrack, stays for the whole time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Optional

from ..document import documents
from ..document.documents import SECTIONS, Document
from ..document.model import Address, Mark, Route, Rule, Sysctl
from . import own_sources, placement, store
from .run import Run
from .state import State

# Nothing notifies us when the last connection ends: seconds until they are counted again.
COUNT_INTERVAL = 5.0

# (mark, mask) -> living connections, None where that is not known
Count = Callable[[int, int], Optional[int]]
Id = tuple[int, int]


def drain(run: Run) -> Run:
    """The run whose document and desired state contain what is still kept, and nothing whose time is over.

    What was held back is kept as well, if it is on the host.
    """
    if run.options.now is not None:
        run = _drained(run, run.options.now)
    return replace(run, want=_with_held_back(run.want, run.held_back))


def _drained(run: Run, now: float) -> Run:
    document, seconds = run.document, run.options.drain
    if seconds and run.options.purge:
        have = replace(run.have, rules=placement.as_documented(document.rules, run.have.rules))
        document = begin(document, have, store.stored_document(run), now + seconds, now + seconds / 2)
    document = without_expired(document, now, run.host.count_connections)
    want = with_retiring(run.want, document)
    # Retiring objects stay as they are, but not a rule that would cut the host off.
    want, _sentences = own_sources.without_own_sources(want, run.foreign_routes, run.own_addresses)
    return replace(run, document=document, want=want)


def begin(
    document: Document, have: State, stored: Document | None, deadline: float, settle_at: float | None = None
) -> Document:
    """The document, and as retiring objects all that the owner has on the host and the document does not list.

    What retires already by the ``stored`` document keeps its earlier time, and while nothing is added to it, that
    document's ``settle_at`` counts.
    """
    added: dict[str, Any] = {}
    more = False
    for section in SECTIONS:
        listed = {value.key for value in getattr(document, section)}
        times = {value.key: value.retire_at for value in getattr(stored, section, ()) if value.retire_at is not None}
        unlisted = [
            _retiring(value, times.get(value.key, int(deadline)))
            for value in _present(have, section)
            if value.key not in listed
        ]
        kept = tuple(value for value in unlisted if documents.storable(section, value))
        more = more or any(value.key not in times for value in kept)
        added[section] = getattr(document, section) + kept
    earlier = stored.settle_at if stored else None
    return replace(document, **added, settle_at=int(settle_at) if more and settle_at is not None else earlier)


def _present(have: State, section: str) -> list[Any]:
    """What the owner has on the host: of sysctls, those it holds."""
    if section != "sysctls":
        return list(getattr(have, section))
    return [Sysctl(setting.name, setting.value) for setting in have.sysctls if setting.held]


def _retiring(value: Any, retire_at: int) -> Any:
    # The live mark keeps its MAC. In the document it would collide with the id that has the MAC now.
    without_macs = {"macs": ()} if isinstance(value, Mark) else {}
    return replace(value, retiring=True, retire_at=retire_at, **without_macs)


def without_expired(document: Document, now: float, count: Count) -> Document:
    """The document without the retiring objects whose time is over, or that no connection uses any more."""
    counts: dict[Id, int | None] = {}
    # Connections without a mark in conntrack cannot be counted: what they need stays for the whole time.
    untracked = {(mark.id, mark.mask) for mark in document.marks if not mark.conntrack}

    def expired(value: Any) -> bool:
        if not value.retiring or value.retire_at is None:
            return False
        if value.retire_at <= now:
            return True
        if now < (document.settle_at or 0):
            return False
        ids = _ids(value, document)
        if ids & untracked:
            return False
        counts.update({id: count(*id) for id in ids - counts.keys()})
        return bool(ids) and all(counts[id] == 0 for id in ids)

    left: dict[str, Any] = {
        section: tuple(value for value in getattr(document, section) if not expired(value)) for section in SECTIONS
    }
    after = replace(document, **left)
    return after if retiring_until(after) else replace(after, settle_at=None)


def _ids(value: Any, document: Document) -> set[Id]:
    if isinstance(value, Mark):
        return {(value.id, value.mask)}
    if isinstance(value, Rule):
        return set() if value.fwmark is None or value.fwmask is None else {(value.fwmark, value.fwmask)}
    if isinstance(value, Route):
        lookups = [rule for rule in document.rules if (rule.family, rule.table) == (value.family, value.table)]
        return {id for rule in lookups for id in _ids(rule, document)}
    return set()


def retiring_until(document: Document) -> list[Any]:
    """The objects that retire with a ``retire_at``."""
    values = [value for section in SECTIONS for value in getattr(document, section)]
    return [value for value in values if value.retiring and value.retire_at is not None]


def next_due(document: Document, now: float) -> float | None:
    """Seconds until something may have expired; None when nothing retires."""
    times = [value.retire_at - now for value in retiring_until(document)]
    return max(0.0, min(COUNT_INTERVAL, *times)) if times else None


def with_retiring(want: State, document: Document) -> State:
    """The desired state with the retiring objects of this document instead of its own."""
    sections: dict[str, Any] = {
        section: (
            *(value for value in getattr(want, section) if not value.retiring),
            *(value for value in getattr(document, section) if value.retiring),
        )
        for section in SECTIONS
    }
    return replace(want, **sections)


def _with_held_back(want: State, held_back: tuple[Any, ...]) -> State:
    """The state with what is held back as retiring: kept if it is on the host, and not added."""
    kept = [replace(value, retiring=True) for value in held_back]
    return replace(
        want,
        rules=(*want.rules, *(value for value in kept if isinstance(value, Rule))),
        routes=(*want.routes, *(value for value in kept if isinstance(value, Route))),
        addresses=(*want.addresses, *(value for value in kept if isinstance(value, Address))),
    )
