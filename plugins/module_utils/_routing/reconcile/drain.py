# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep objects that a document no longer lists while connections need them.

A ``retiring`` object stays on the host as it is, and is never added. Without ``retire_at`` it stays until the document
no longer lists it. With it, it is removed as soon as no connection needs it any more (``needs`` and ``connections``),
but not before the document's ``settle_at``: until then the other end may still open connections that need it. At
``retire_at`` (seconds since the epoch) it is removed in any case, and the connections that this cuts are reported.

Only a run that stores a document writes it; the keeper does not. So the stored document may list retiring objects
that have left the host since; it is compared without them (``Run.stored``), for they have no effect.

An operator need not set such a cap. ``retire_at`` is then UNLIMITED seconds after the drain began, so that version
0.1.0 can read the document. An object whose connections cannot be counted stays until the cap, without one for a DAY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..document import documents, formatting
from ..document.documents import SECTIONS, Document
from ..document.kernel_service import KernelService
from ..document.model import Address, Mark, Route, Rule, Sysctl
from . import forwarding, needs, own_sources, placement, resolve_marks, service_drain
from .connections import COUNT_INTERVAL, Counts
from .needs import Marked, Need
from .run import Cut, Run
from .state import State

DAY = 86400
# Ten years. Half of that is further away than any cap.
UNLIMITED = 3650 * DAY
# Nothing is removed in this time, in seconds, because proxies may switch that much later than backends; and nothing in
# the first half of a shorter cap.
SETTLE = 600.0
# Counting costs CPU time, so old objects are counted every LONGEST_INTERVAL seconds.
LONGEST_INTERVAL = 60.0

# needs, and whether the exact numbers are wanted
Count = Callable[[frozenset[Need], bool], Counts]
# The objects that a report about cut connections names first.
TELLING = (KernelService, Mark, Address, Rule, Route, Sysctl)


def keep_unlisted(run: Run) -> Run:
    """The run whose document has the services that the owner has and no document lists, if nothing is to be purged."""
    if run.options.purge or not run.have.services:
        return run
    document = service_drain.superset(run.document, run.have, run.stored)
    wanted = {sysctl.name for sysctl in forwarding.wanted(document, run.host.sysctls)}
    more = tuple(Sysctl(each.name, each.value) for each in run.have.sysctls if each.held and each.name not in wanted)
    document = replace(document, sysctls=(*document.sysctls, *more))
    settings = forwarding.read(document, run.host.sysctls)
    return replace(run, document=document, have=replace(run.have, sysctls=settings))


def drain(run: Run) -> Run:
    """The run whose document and desired state contain what is still kept, and nothing whose time is over.

    What was held back is kept as well, if it is on the host.
    """
    # What forwarding needs is no object of the document.
    listed = {sysctl.name for sysctl in forwarding.wanted(run.document, run.host.sysctls)}
    listed -= {sysctl.name for sysctl in run.document.sysctls}
    settings = tuple(setting for setting in run.have.sysctls if setting.name not in listed)
    have = replace(run.have, rules=placement.as_documented(run.document.rules, run.have.rules), sysctls=settings)
    if run.kernel is not None:
        stored = run.stored and _without_removed(run.stored, have)
        run = replace(run, document=_without_removed(run.document, have), stored=stored)
    if run.options.now is not None:
        run = _drained(run, have, run.options.now)
    return replace(run, want=_with_held_back(run.want, run.held_back))


def _without_removed(document: Document, have: State) -> Document:
    """The document without the retiring objects that are gone."""
    left: dict[str, Any] = {}
    for section in SECTIONS:
        there = {value.key for value in _present(have, section)}
        values = getattr(document, section)
        left[section] = tuple(value for value in values if value.key in there or not _is_timed(value))
    return _settled(replace(document, **left))


def _settled(document: Document) -> Document:
    """The document without ``settle_at`` if nothing retires any more."""
    return document if retiring_until(document) else replace(document, settle_at=None)


def _is_timed(value: Any) -> bool:
    return bool(value.retiring and value.retire_at is not None)


def _drained(run: Run, have: State, now: float) -> Run:
    document, seconds = run.document, run.options.drain
    if seconds and run.options.purge:
        limit, settle = min(seconds, UNLIMITED), min(seconds / 2, SETTLE)
        document = begin(document, have, run.stored, now + limit, now + settle)
    own, connections = run.own_addresses, run.host.connections
    document, cut = without_expired(document, now, lambda wanted, exact: connections.count(wanted, own, exact))
    want = resolve_marks.with_last_senders(with_retiring(run.want, document), have)
    # Retiring objects stay as they are, but not a rule that would cut the host off.
    want, _sentences = own_sources.without_own_sources(want, run.foreign_routes, run.own_addresses)
    return replace(run, document=document, want=want, cut=cut)


def begin(
    document: Document, have: State, stored: Document | None, deadline: float, settle_at: float | None = None
) -> Document:
    """The document, and as retiring objects all that the owner has on the host and the document does not list.

    What retires already by the ``stored`` document keeps its time if that is earlier, and while nothing is added to it,
    that document's ``settle_at`` counts.
    """
    added: dict[str, Any] = {}
    retired = service_drain.begin(document, have.services, stored, deadline)
    added["services"] = document.services + retired.services
    more = retired.begins
    for section in SECTIONS:
        if section == "services":
            continue
        listed = {value.key for value in getattr(document, section)}
        times = {value.key: value.retire_at for value in getattr(stored, section, ()) if value.retire_at is not None}
        moving = {route.key: route for route in getattr(stored, section, ()) if getattr(route, "fallback", ())}
        unlisted = [
            _retiring(moving.get(value.key, value), min(int(deadline), times.get(value.key, int(deadline))))
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


def without_expired(document: Document, now: float, count: Count) -> tuple[Document, tuple[Cut, ...]]:
    """The document without the retiring objects whose time is over, or that no connection needs any more.

    And the connections that still need an object whose time is over.
    """
    timed = retiring_until(document)
    is_settled = now >= (document.settle_at or 0)
    if not is_settled and all(value.retire_at > now for value in timed):
        return _settled(document), ()
    used = {id(value): needs.of(value, document) for value in timed}
    over = [value for value in timed if value.retire_at <= now]
    gone = {id(value) for value in over}
    wanted = frozenset(need for each in used.values() for need in each)
    counts = count(wanted, bool(over)) if wanted else {}
    if is_settled:
        # A sysctl may matter to whatever else is still there.
        others = [value for value in timed if not isinstance(value, Sysctl)]
        gone |= {id(value) for value in others if _is_unused(_number(used[id(value)], counts), value.retire_at, now)}
        if all(id(value) in gone for value in others):
            gone |= {id(value) for value in timed}
    left: dict[str, Any] = {
        section: tuple(value for value in getattr(document, section) if id(value) not in gone) for section in SECTIONS
    }
    return _settled(replace(document, **left)), tuple(_cut(over, used, counts))


def _is_unused(number: int | None, retire_at: int, now: float) -> bool:
    if number is None:
        unlimited = retire_at - now > UNLIMITED / 2
        return unlimited and now >= retire_at - UNLIMITED + DAY
    return number == 0


def _number(used: Iterable[Need], counts: Counts) -> int | None:
    """The number of connections of these needs; None if it cannot be known, and none is known."""
    numbers = [counts[need] for need in used]
    return sum(filter(None, numbers)) or (None if None in numbers else 0)


def _cut(over: list[Any], used: dict[int, frozenset[Need]], counts: Counts) -> Iterable[Cut]:
    """One for each group of objects that the same connections need."""
    told: set[Any] = set()
    for value in sorted(over, key=lambda each: TELLING.index(type(each))):
        groups = {(need.mark, need.mask) if isinstance(need, Marked) else need for need in used[id(value)]}
        number = _number(used[id(value)], counts)
        if number and not groups & told:
            told |= groups
            yield Cut(formatting.describe(value).replace("forward open connections of ", ""), number)


def retiring_until(document: Document) -> list[Any]:
    """The objects that retire with a ``retire_at``."""
    values = [value for section in SECTIONS for value in getattr(document, section)]
    return [value for value in values if _is_timed(value)]


def next_due(document: Document, now: float) -> float | None:
    """Seconds until something may have expired; None when nothing retires."""
    times = [value.retire_at - now for value in retiring_until(document)]
    settled_for = now - (document.settle_at or now)
    interval = -settled_for if settled_for < 0 else min(max(COUNT_INTERVAL, settled_for / 10), LONGEST_INTERVAL)
    return max(0.0, min(interval, *times)) if times else None


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
