# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who holds an owner's marks: nftables or iptables. One model, and each engine gives back what it was given.

``auto`` is nftables where nft works, else iptables; but what already holds the owner's marks keeps them, because a
package that appears is no reason to touch a live host. When the engine is changed by name, the new one has the marks
before the old one loses them.
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


def read(run: Runner, owner: str, wanted: str = AUTO, needed: bool = True) -> Observed:
    """The owner's live marks, with the engine that holds them; without any, with the engine that would.

    Two engines at once are not sound. Raises MissingPackage or RoutingError when the ``wanted`` engine, or with
    ``auto`` either, is not to be had and marks are ``needed``.
    """
    found, failed = _survey(run, owner)
    if needed and wanted in failed:
        raise failed[wanted]
    if needed and not found:
        raise failed[MARK_ENGINES[0]]
    live = [name for name, observed in found.items() if observed != Observed()]
    usable = [name for name in found if wanted in (AUTO, name)]
    # Where both hold something, the wanted one is the one to go by.
    engine = next((name for name in (*(set(live) & {wanted}), *live, *usable)), None)
    if engine is None:
        return Observed()
    return replace(found[engine], engine=engine, sound=found[engine].sound and len(live) < 2)


def _survey(run: Runner, owner: str, without: str | None = None) -> tuple[dict[str, Observed], dict[str, RoutingError]]:
    """What each engine that works shows, and why the others do not."""
    found: dict[str, Observed] = {}
    failed: dict[str, RoutingError] = {}
    for name, make in MAKERS.items():
        if name == without:
            continue
        try:
            found[name] = make(run).read(owner)
        except RoutingError as error:  # MissingPackage is one, too
            failed[name] = error
    return found, failed


def write(run: Runner, owner: str, engine: str | None, marks: Iterable[Mark], before: Iterable[Mark] = ()) -> None:
    """Give all marks to one engine, then take them from the other; all or nothing. Without marks, none has any.

    ``before`` is what the engine has: it gets that back when the other cannot be made to give up its own.
    """
    if engine:
        MAKERS[engine](run).write(owner, marks)
    try:
        found, _failed = _survey(run, owner, engine)
        for name in (name for name, observed in found.items() if observed != Observed()):
            MAKERS[name](run).write(owner, ())
    except RoutingError:
        if engine:
            MAKERS[engine](run).write(owner, before)
        raise


def limits(marks: Iterable[Mark], engine: str | None) -> list[str]:
    """Warnings about what this engine cannot enforce."""
    guarded = [mark for mark in marks if mark.via and not mark.retiring]
    if engine != "iptables" or not guarded:
        return []
    names = ", ".join(mark.name for mark in guarded)
    links = " or ".join(sorted({mark.oif or "any interface" for mark in guarded}))
    return [
        f"iptables cannot match a next hop: if the policy rules of {names} are missing, replies that leave by {links} "
        "are not dropped; nftables would drop them"
    ]
