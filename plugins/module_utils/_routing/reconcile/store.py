# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run keeps on disk: the owner's document in its directory, and the MACs that proxies answered from.

Writing the document is one of the changes that ``apply`` makes, so that it is undone together with them.
"""

from __future__ import annotations

import contextlib
import os

from ..document import store as document_store
from ..document.documents import Document
from ..document.model import OWNERS
from ..errors import Refused, RoutingError
from ..host import files
from .host import Host
from .run import FileChange, Run


def stored_document(run: Run) -> Document | None:
    """The owner's stored document, if it can be read."""
    return _load(run.document.owner, run.options.directory)


def _load(owner: str, directory: str | None) -> Document | None:
    with contextlib.suppress(RoutingError, OSError):
        if directory:
            return document_store.load(document_store.path_of(directory, owner))
    return None


def protocol_of(owner: str, directory: str | None) -> int:
    """The protocol number of an owner that is known, or has a stored document. Refused without either."""
    if owner in OWNERS:
        return OWNERS[owner]
    stored = _load(owner, directory)
    if stored:
        return stored.protocol
    raise Refused([f"owner {owner}: its protocol number is not known on this host; give its document"])


def has_traces(owner: str, host: Host, directory: str | None) -> bool:
    """Whether an owner has a document or holds a sysctl: if not, it never had anything on this host."""
    stored = directory is not None and os.path.exists(document_store.path_of(directory, owner))
    return stored or bool(host.sysctls.held_by(owner))


def refuse_shared_protocol(run: Run) -> None:
    """Refused when another owner's document has the protocol number of this one."""
    for stored in document_store.load_all(run.options.directory) if run.options.directory else []:
        other = stored.document
        if other and other.owner != run.document.owner and other.protocol == run.document.protocol:
            raise Refused([f"protocol: {other.protocol} already belongs to owner {other.owner} ({stored.path})"])


def file_change(run: Run) -> FileChange | None:
    """How the document's file has to change; None when it is not stored, or is right already."""
    if run.options.directory is None:
        return None
    path = document_store.path_of(run.options.directory, run.document.owner)
    before, after = files.read(path), None if run.removing else document_store.content_of(run.document)
    silent = run.stored is not None and document_store.content_of(run.stored) == after
    return None if before == after else FileChange(path, before, after, silent)


def remember_macs(run: Run) -> None:
    """Cache the MACs that the proxies answered from, and forget those of proxies that the document does not list."""
    if not (run.options.check or run.removing):
        listed = (via for mark in run.document.marks for via in mark.via)
        run.host.macs.learn(run.document.owner, run.answered, listed)
