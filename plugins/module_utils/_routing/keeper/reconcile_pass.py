# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One look at everything: each stored document is applied (or only compared), and what came of it is kept apart.

A document that is wrong, or waits for something, does not keep the others from being applied.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace

from ..document import store
from ..document.documents import Document
from ..document.model import OWNERS
from ..errors import ApplyError, MissingPackage, NotReady, Refused, RoutingError
from ..marks import iptables, nft
from ..reconcile import engine
from ..reconcile.engine import Host, Outcome
from ..reconcile.state import State
from .monitor import Interest


@dataclass
class Look:
    """What one look came to. Sentences, each beginning with the owner or the file; ``watched`` is for ``interest``.

    ``blocked`` cannot be applied yet, ``waiting`` is applied without for now, ``faults`` need a human. ``left_out`` is
    left out while the source of a rule is an address of this host.
    ``failed`` when a document was applied in part and that was undone.
    """

    documents: dict[str, Document] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: bool = False
    watched: Interest = field(default_factory=Interest)

    @property
    def missing(self) -> bool:
        """Something is missing that may come by itself."""
        return bool(self.blocked or self.waiting)

    @property
    def problems(self) -> list[str]:
        return [*self.blocked, *self.waiting, *self.left_out, *self.faults]

    @property
    def changed(self) -> bool:
        return any(outcome.changed for outcome in self.outcomes.values())

    @property
    def is_lasting(self) -> bool:
        """Nothing is missing, wrong or retiring: while the host stays as it is, another look will find the same."""
        return not self.problems and self.next_due is None

    @property
    def interest(self) -> Interest:
        """What of the host the documents are about."""
        return self.watched | Interest(anything=self.missing)

    @property
    def next_due(self) -> float | None:
        """Seconds until something is to be taken away though nothing happens (an object that retires)."""
        dates = [outcome.next_due for outcome in self.outcomes.values()]
        return min((date for date in dates if date is not None), default=None)


class Documents:
    """The stored documents of a directory, read anew only when a file has changed."""

    def __init__(self, directory: str):
        self._directory = directory
        self._seen: tuple | None = None
        self._stored: list[store.Stored] = []

    def load(self) -> list[store.Stored]:
        if self.changed:
            # Before the files: what is written meanwhile is another change.
            self._seen = self._signs()
            self._stored = store.load_all(self._directory)
        return self._stored

    @property
    def changed(self) -> bool:
        return self._signs() != self._seen

    def _signs(self) -> tuple:
        """What tells that a file was written, without reading it."""
        try:
            with os.scandir(self._directory) as entries:
                stats = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".json")]
        except OSError:
            return ()
        return tuple(sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


def look(documents: Documents, host: Host, check: bool = False, now: float | None = None) -> Look:
    """Read the documents and apply (with ``check``: compare) each, as of ``now`` (seconds of the epoch).

    The documents are read under the lock: a run that is changing the host has not stored its document yet.
    """
    found, now = Look(), time.time() if now is None else now
    try:
        with engine.locked(host, unless=check):
            for stored in documents.load():
                if stored.document is None:
                    found.faults += [f"{stored.path}: {error}" for error in stored.errors]
                else:
                    _apply(stored.document, host, check, now, found)
    except (RoutingError, OSError) as error:
        found.blocked.append(str(error))
    return found


def _apply(document: Document, host: Host, check: bool, now: float, found: Look) -> None:
    owner = document.owner
    found.documents[owner] = document
    found.watched |= _interest(document)
    try:
        # An empty document was stored by someone who said so; there is nobody to ask at boot.
        options = engine.Options(check=check, allow_empty=True, now=now, lock_held=True, partial=True)
        outcome = engine.reconcile(document, host, options)
    except NotReady as error:
        found.blocked += [f"{owner}: {sentence}" for sentence in error.errors]
    except (Refused, MissingPackage) as error:
        found.faults.append(f"{owner}: {error}")
    except (ApplyError, RoutingError, OSError) as error:
        # Perhaps a link went away in the middle of it: worth another try.
        found.blocked.append(f"{owner}: {error}")
        found.failed = True
    else:
        found.watched |= _where(outcome)
        # Of thousands of rules the listing would be much to keep, and nobody asks for it.
        found.outcomes[owner] = replace(outcome, after=State(), diff=())
        found.blocked += [f"{owner}: {sentence}" for sentence in outcome.missing]
        found.waiting += [f"{owner}: {sentence}" for sentence in outcome.waiting]
        found.left_out += [f"{owner}: {sentence}" for sentence in outcome.left_out]


def settings_differ(found: Look, host: Host) -> bool:
    """Whether a setting is no longer as its document says, of which there is no news. Reads a few files only."""
    # Where something is missing it may be the setting itself, which is waited for.
    whole = [found.documents[owner] for owner, outcome in found.outcomes.items() if not outcome.missing]
    wanted = [setting for document in whole for setting in document.sysctls if not setting.retiring]
    try:
        return any(host.sysctls.value(setting.name) != setting.value for setting in wanted)
    except OSError:
        return True  # what is wrong with it, the look will say


def _interest(document: Document) -> Interest:
    tables = {value.table for value in (*document.rules, *document.routes) if value.table is not None}
    hops = {via for mark in document.marks for via in mark.via} | {route.via for route in document.routes if route.via}
    links = {value.dev for value in (*document.routes, *document.addresses) if value.dev}
    # Where iptables is a front of nftables, its chains have news, too.
    names = {nft.table_name(document.owner), iptables.prefix(document.owner)}
    sets = (frozenset(values) for values in ({document.protocol}, tables, hops, links, names))
    # One that comes to be an address of this host ends its rule, and one that leaves brings the rule back.
    sources = frozenset(rule.src for rule in document.rules if rule.src)
    # Ours may have to stand in front of a rule that others put before them.
    before = max((rule.priority for rule in document.rules), default=0) if document.owner in OWNERS else 0
    return Interest(*sets, sources=sources, before=before)


def _where(outcome: Outcome) -> Interest:
    """The links that its routes have come to use: a next hop's interface is not in the document."""
    return Interest(links=frozenset(route.dev for route in outcome.after.routes if route.dev))
