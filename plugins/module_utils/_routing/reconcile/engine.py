# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a host to a document, or remove all that an owner has there: the steps in order.

    outcome = reconcile(documents.load(data), Host(), Options(directory="/etc/l4proxy/routing.d"))
    outcome = remove("return_path", Host(), directory="/etc/l4proxy/routing.d")

Both hold the host's lock while they change anything, the document's file included.
"""

from __future__ import annotations

from dataclasses import replace

from ..document.documents import Document
from ..errors import Refused
from . import apply, conflicts, drain, plan, read, resolve, store
from .host import Host, locked
from .outcome import Outcome, outcome_of
from .run import DEFAULTS, Options, Run

__all__ = ["Host", "Options", "Outcome", "compare", "locked", "reconcile", "remove"]


def reconcile(document: Document, host: Host, options: Options = DEFAULTS) -> Outcome:
    """Make the owner's set what the document lists, and store the document.

    Raises Refused and NotReady before anything is changed, MissingPackage (in check mode only a warning), ApplyError
    after everything was undone.
    """
    if document.is_empty and not options.allow_empty:
        sentence = f"the document of {document.owner} is empty and would remove all that this owner has on the host"
        raise Refused([f"{sentence}; use state absent for that, or set allow_empty"])
    run = Run(document, host, options, lenient=options.check)
    with locked(host, unless=options.check or options.lock_held):
        store.refuse_shared_protocol(run)
        return _perform(run)


def remove(
    owner: str, host: Host, *, protocol: int | None = None, check: bool = False, directory: str | None = None
) -> Outcome:
    """Remove all that an owner has: rules, routes, addresses, marks, its document; and restore its sysctls.

    The protocol number is the given one, else that of the stored document, else that of a known owner.
    """
    with locked(host, unless=check):
        document = Document(owner, protocol or store.protocol_of(owner, directory))
        # A host on which the owner never had anything may lack the packages as well.
        lenient = check or not store.has_traces(owner, host, directory)
        return _perform(Run(document, host, Options(check=check, directory=directory), removing=True, lenient=lenient))


def _perform(run: Run) -> Outcome:
    run = replace(run, stored=store.stored_document(run))
    with read.open_kernel(run, read.NOTHING_OWNED) as run:
        run = read.read(run)
        run = drain.keep_unlisted(run)
        run = resolve.resolve(run)
        run = drain.drain(run)
        conflicts.refuse(run)
        run = plan.plan(run)
        apply.apply(run, read.owned_again)
        store.remember_macs(run)
    return outcome_of(run)


def compare(document: Document, host: Host) -> Run:
    """The actual and the desired state (``have``, ``want``) for a document; nothing is changed or locked.

    Raises Refused, NotReady and MissingPackage.
    """
    with read.open_kernel(Run(document, host), read.NOTHING_OWNED) as run:
        return resolve.resolve(read.read(run))
