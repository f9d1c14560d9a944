# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which engine holds an owner's marks: nftables or iptables. Both read back exactly the marks that were written.

``auto`` keeps the engine that holds the owner's marks, because a newly installed package is no reason to change a live
host; without marks, it is nftables if nft works, else iptables. When another engine is requested, it gets the marks
before they are removed from the old one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..document.model import MARK_ENGINES, Mark, Observed
from ..errors import RoutingError
from ..host.runner import Runner
from .iptables import IpTables
from .nft import Nft

AUTO = "auto"
MAKERS: dict[str, type[Nft] | type[IpTables]] = dict(zip(MARK_ENGINES, (Nft, IpTables)))


def read(run: Runner, owner: str, requested: str = AUTO, needed: bool = True) -> Observed:
    """The owner's live marks and the engine that holds them; without marks, the engine that would hold them.

    Marks in both engines are not sound. If marks are ``needed``, raises MissingPackage or RoutingError when the
    ``requested`` engine fails, or with ``auto`` both.
    """
    working, failed = _survey(run, owner)
    if needed and requested in failed:
        raise failed[requested]
    if needed and not working:
        raise failed[MARK_ENGINES[0]]
    live = [name for name, observed in working.items() if observed != Observed()]
    usable = [name for name in working if requested in (AUTO, name)]
    # If both hold marks, the requested engine counts.
    engine = next((name for name in (*(set(live) & {requested}), *live, *usable)), None)
    if engine is None:
        return Observed()
    return replace(working[engine], engine=engine, sound=working[engine].sound and len(live) < 2)


def _survey(run: Runner, owner: str, without: str | None = None) -> tuple[dict[str, Observed], dict[str, RoutingError]]:
    """What each working engine holds, and why the others fail."""
    working: dict[str, Observed] = {}
    failed: dict[str, RoutingError] = {}
    for name, make in MAKERS.items():
        if name == without:
            continue
        try:
            working[name] = make(run).read(owner)
        except RoutingError as error:  # includes MissingPackage
            failed[name] = error
    return working, failed


def write(run: Runner, owner: str, engine: str | None, marks: Iterable[Mark], before: Iterable[Mark] = ()) -> None:
    """Write all marks to one engine, then remove them from the other; without marks, remove them from both.

    If the removal fails, ``before``, which are the marks that the engine had, is written back.
    """
    if engine:
        MAKERS[engine](run).write(owner, marks)
    try:
        others, _failed = _survey(run, owner, engine)
        for name in (name for name, observed in others.items() if observed != Observed()):
            MAKERS[name](run).write(owner, ())
    except RoutingError:
        if engine:
            MAKERS[engine](run).write(owner, before)
        raise


def limits(marks: Iterable[Mark], engine: str | None) -> list[str]:
    """Warnings about what the engine cannot enforce."""
    guarded = [mark for mark in marks if mark.via and not mark.retiring]
    if engine != "iptables" or not guarded:
        return []
    names = ", ".join(mark.name for mark in guarded)
    links = " or ".join(sorted({mark.oif or "any interface" for mark in guarded}))
    return [
        f"iptables cannot match a next hop: if the policy rules of {names} are missing, replies that leave through "
        f"{links} are not dropped; nftables drops them"
    ]
