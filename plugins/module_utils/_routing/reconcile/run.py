# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One reconciliation: the value that each step receives, completes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..document.documents import Document
from ..document.model import Route
from .change import Change
from .host import Host
from .state import Foreign, State


@dataclass(frozen=True)
class Options:
    """How to reconcile.

    ``check`` changes nothing and tells what would be changed. ``purge`` removes what the owner has and the document
    does not list. ``allow_empty`` accepts a document without objects, which removes all that the owner has.
    ``directory`` is where the document is stored; None stores nothing.

    ``now`` (seconds since the epoch) removes the objects whose drain has ended; without it none is removed. With
    ``drain`` as well, objects that the document no longer lists are kept for at most that many seconds; see ``drain``.

    ``lock_held``: the caller holds the host's lock, because it read the document under it. ``partial``: at boot, links
    and addresses appear one by one; apply at once what needs none of those that are missing, so that replies are
    blocked until the rest can follow.
    """

    check: bool = False
    purge: bool = True
    allow_empty: bool = False
    directory: str | None = None
    drain: float = 0
    now: float | None = None
    lock_held: bool = False
    partial: bool = False


DEFAULTS = Options()


@dataclass(frozen=True)
class FileChange:
    """The document's file before and after; None where there is no file."""

    path: str
    before: str | None
    after: str | None

    @property
    def sentence(self) -> str:
        return f"{'remove' if self.after is None else 'write'} {self.path}"


@dataclass(frozen=True)
class Run:
    document: Document
    host: Host
    options: Options = DEFAULTS
    # The document's file goes as well.
    removing: bool = False
    # A missing package is a warning, and the owner is taken to have nothing on this host.
    lenient: bool = False
    # None while it is closed, and where a package is missing.
    kernel: Any = None

    # read
    have: State = field(default_factory=State)
    foreign: Foreign = field(default_factory=Foreign)

    # resolve: the desired state as this host can apply it now
    want: State = field(default_factory=State)
    own_addresses: frozenset[str] = frozenset()
    # Routes of others in tables that our rules look up.
    foreign_routes: tuple[Route, ...] = ()
    # Objects that cannot be applied yet, and why (``partial`` only).
    held_back: tuple[Any, ...] = ()
    missing: tuple[str, ...] = ()
    # Why rules are left out: their source is an address of this host.
    left_out: tuple[str, ...] = ()
    # What is applied without for now, such as the MAC of a silent proxy.
    waiting: tuple[str, ...] = ()
    # MACs that the proxies answered from, by address.
    answered: dict[str, tuple[str, ...]] = field(default_factory=dict)

    # plan
    changes: tuple[Change, ...] = ()
    after: State = field(default_factory=State)
    file_change: FileChange | None = None

    warnings: tuple[str, ...] = ()
