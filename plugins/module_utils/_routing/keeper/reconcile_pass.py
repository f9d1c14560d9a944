# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One reconcile pass: apply (or only compare) every stored document, and collect the results.

A document that is invalid or cannot be applied yet does not prevent the others from being applied.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from ..datapath.model import NAME
from ..document import model, store
from ..document.documents import Document
from ..document.model import MAIN, OWNERS
from ..document.service_schema import OWNER
from ..errors import ApplyError, MissingPackage, NotReady, Refused, RoutingError
from ..marks import iptables, nft
from ..reconcile import engine, forwarding
from ..reconcile.engine import Host, Outcome
from ..reconcile.state import State
from .monitor import Interest


@dataclass
class PassResult:
    """The result of one pass; its lists have sentences that begin with the owner or the file.

    ``blocked``: why a document cannot be applied yet. ``waiting``: what a document was applied without for now.
    ``faults``: what an operator must correct. ``left_out``: rules left out because their source is an address of this
    host. ``failed``: a document was applied in part and rolled back. ``watched``: what ``interest`` is made of.
    """

    documents: dict[str, Document] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: bool = False
    # The document of kernel services, with all that the table has.
    served: Document | None = None
    watched: Interest = field(default_factory=Interest)

    @property
    def is_incomplete(self) -> bool:
        """Whether something is missing that may appear by itself."""
        return bool(self.blocked or self.waiting)

    @property
    def problems(self) -> list[str]:
        return [*self.blocked, *self.waiting, *self.left_out, *self.faults]

    @property
    def changed(self) -> bool:
        return any(outcome.changed for outcome in self.outcomes.values())

    @property
    def is_stable(self) -> bool:
        """Nothing is missing, invalid or retiring: as long as the host does not change, another pass is the same."""
        return not self.problems and self.next_due is None

    @property
    def interest(self) -> Interest:
        """The objects of the host whose changes matter to the documents."""
        return self.watched | Interest(anything=self.is_incomplete)

    @property
    def next_due(self) -> float | None:
        """Seconds until a retiring object must be removed, or None."""
        dates = [outcome.next_due for outcome in self.outcomes.values()]
        return min((date for date in dates if date is not None), default=None)


class Documents:
    """The stored documents of a directory, read again only after a file has changed."""

    def __init__(self, directory: str):
        self._directory = directory
        self._loaded: tuple[Any, ...] | None = None
        self._stored: list[store.Stored] = []

    def load(self) -> list[store.Stored]:
        if self.changed:
            # Taken before the files are read, so that a write in between counts as a change.
            self._loaded = self._file_states()
            self._stored = store.load_all(self._directory)
        return self._stored

    @property
    def changed(self) -> bool:
        return self._file_states() != self._loaded

    def _file_states(self) -> tuple[Any, ...]:
        """What changes when a file is written: names, inodes, times and sizes."""
        try:
            with os.scandir(self._directory) as entries:
                stats = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".json")]
        except OSError:
            return ()
        return tuple(sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats))


def reconcile_all(documents: Documents, host: Host, check: bool = False, now: float | None = None) -> PassResult:
    """Read the documents and apply (with ``check``: only compare) each, as of ``now`` (seconds of the epoch).

    Without a time, no drain ends.

    The documents are read under the lock, because a run that is changing the host stores its document last.
    """
    result = PassResult()
    try:
        with engine.locked(host, unless=check):
            for stored in documents.load():
                if stored.document is None:
                    result.faults += [f"{stored.path}: {error}" for error in stored.errors]
                else:
                    _apply(stored.document, host, check, now, result)
    except (RoutingError, OSError) as error:
        result.blocked.append(str(error))
    return result


def _apply(document: Document, host: Host, check: bool, now: float | None, result: PassResult) -> None:
    owner = document.owner
    result.documents[owner] = document
    result.watched |= _interest(document)
    try:
        # Storing an empty document needed a confirmation; the keeper does not need another one.
        options = engine.Options(check=check, allow_empty=True, now=now, lock_held=True, partial=True)
        outcome = engine.reconcile(document, host, options)
    except NotReady as error:
        result.blocked += [f"{owner}: {sentence}" for sentence in error.errors]
    except (Refused, MissingPackage) as error:
        result.faults.append(f"{owner}: {error}")
    except (ApplyError, RoutingError, OSError) as error:
        # Perhaps a link went away meanwhile, so the document is tried again.
        result.blocked.append(f"{owner}: {error}")
        result.failed = True
    else:
        result.watched |= _used_links(outcome)
        if outcome.after.services:
            result.served = replace(document, services=outcome.after.services)
        # The listing is not needed any more, and with thousands of rules it is large.
        result.outcomes[owner] = replace(outcome, after=State(), diff=())
        result.blocked += [f"{owner}: {sentence}" for sentence in outcome.missing]
        result.waiting += [f"{owner}: {sentence}" for sentence in outcome.waiting]
        result.left_out += [f"{owner}: {sentence}" for sentence in outcome.left_out]


def settings_differ(result: PassResult, host: Host) -> bool:
    """Whether a setting differs from its document. The kernel sends no notification of this; a few files are read."""
    # In an incomplete document the setting itself may be what is missing.
    complete = [result.documents[owner] for owner, outcome in result.outcomes.items() if not outcome.missing]
    try:
        listed = [setting for document in complete for setting in forwarding.wanted(document, host.sysctls)]
        wanted = [setting for setting in listed if not setting.retiring]
        return any(host.sysctls.value(setting.name) != setting.value for setting in wanted)
    except (RoutingError, OSError):
        return True  # the pass reports the error


def _interest(document: Document) -> Interest:
    rules, routes = document.rules, document.routes
    tables = {rule.table for rule in rules if rule.table not in (None, MAIN)} | {route.table for route in routes}
    hops = {via for mark in document.marks for via in mark.via} | {route.via for route in routes if route.via}
    links = {route.dev for route in routes if route.dev}
    links |= {address.dev for address in document.addresses if address.dev}
    tables_of_services = [NAME] if document.owner == OWNER else []
    return Interest(
        protocols=frozenset({document.protocol}),
        tables=frozenset(tables),
        addresses=frozenset(hops),
        links=frozenset(links),
        # The chains of iptables-nft are in nftables' notifications, too.
        nft_names=frozenset({nft.table_name(document.owner), iptables.prefix(document.owner), *tables_of_services}),
        # When this host gets such an address, the rule must go; when it loses the address, the rule must return.
        # An announced address must be on no link.
        sources=frozenset(
            {rule.src for rule in rules if rule.src} | {model.prefix(each.address) for each in document.announce}
        ),
        # Ours may have to be moved in front of a foreign rule.
        before=max((rule.priority for rule in rules), default=0) if document.owner in OWNERS else 0,
    )


def _used_links(outcome: Outcome) -> Interest:
    """The links that the applied routes use: a document need not name the interface of a next hop."""
    return Interest(links=frozenset(route.dev for route in outcome.after.routes if route.dev))
