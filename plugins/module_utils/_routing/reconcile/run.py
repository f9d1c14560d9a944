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
    """How to reconcile."""

    # Change nothing, and report what would be changed.
    check: bool = False
    # Remove what the owner has on the host and the document does not list.
    purge: bool = True
    # Accept a document without objects, which removes all that the owner has.
    allow_empty: bool = False
    # Where the document is stored; None stores nothing.
    directory: str | None = None
    # Seconds for which unlisted objects are kept at most, while connections need them; math.inf: no limit, 0: remove
    # them at once. Needs ``now``. See ``drain``.
    drain: float = 0
    # The time in seconds since the epoch. Without it, no drain begins or ends.
    now: float | None = None
    # The caller holds the host's lock, because it read the document under it.
    lock_held: bool = False
    # Apply what needs none of the links and addresses that are missing, and hold back the rest. At boot they appear one
    # by one, and replies have to be blocked until then.
    partial: bool = False


DEFAULTS = Options()


@dataclass(frozen=True)
class FileChange:
    """The content of the document's file before and after; None if there is no file."""

    path: str
    before: str | None
    after: str | None
    # The file only forgets retiring objects that are gone: it is written, but that is no change to report.
    silent: bool = False

    @property
    def sentence(self) -> str:
        return f"{'remove' if self.after is None else 'write'} {self.path}"


@dataclass(frozen=True)
class Cut:
    """Connections that still need an object, named by its text, when its drain ends."""

    name: str
    connections: int

    @property
    def sentence(self) -> str:
        return f"drain of {self.name} ended: {self.connections} connection{'s' * (self.connections != 1)} cut"


@dataclass(frozen=True)
class Run:
    """One reconciliation. Each step fills in the fields below its name."""

    document: Document
    host: Host
    options: Options = DEFAULTS
    # Remove all that the owner has, and the file of its document.
    removing: bool = False
    # A missing package is only a warning: the owner is assumed to have nothing on this host.
    lenient: bool = False
    # None until it is opened, and if a package is missing.
    kernel: Any = None
    # The owner's stored document, if it can be read; after ``drain`` without the retiring objects that are gone.
    stored: Document | None = None

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
    # What is still unknown and applied later, such as the MAC of a silent proxy.
    waiting: tuple[str, ...] = ()
    # MACs that the proxies answered from, by address.
    answered: dict[str, tuple[str, ...]] = field(default_factory=dict)

    # drain
    cut: tuple[Cut, ...] = ()

    # plan
    changes: tuple[Change, ...] = ()
    after: State = field(default_factory=State)
    file_change: FileChange | None = None

    warnings: tuple[str, ...] = ()
