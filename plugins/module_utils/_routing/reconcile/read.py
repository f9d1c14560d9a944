# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read what the owner has on the host, and what others have there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..document import announced
from ..document.announced import Announced
from ..document.documents import Document
from ..document.model import MAIN, KernelObject
from ..errors import MissingPackage
from ..marks import selection
from . import forwarding, live_services
from .host import Host
from .run import Run
from .state import Foreign, State


@contextlib.contextmanager
def open_kernel(run: Run, assumption: str) -> Iterator[Run]:
    """The run with an open kernel. Without pyroute2, it has none if it is ``lenient``, and MissingPackage otherwise.

    A warning then tells which ``assumption`` is made instead.
    """
    try:
        kernel = run.host.make_kernel()
    except MissingPackage as missing:
        if not run.lenient:
            raise
        yield _without_kernel(run, missing, assumption)
        return
    with kernel as opened:
        yield replace(run, kernel=opened)


def _without_kernel(run: Run, missing: MissingPackage, assumption: str) -> Run:
    return replace(run, kernel=None, warnings=(*run.warnings, f"{missing}; {assumption}"))


NOTHING_OWNED = "compared with an empty owned set"


def read(run: Run) -> Run:
    """The run with ``have`` and ``foreign``. MissingPackage as in ``open_kernel``; NotReady and Refused for sysctls."""
    if run.options.partial:
        run = _without_absent_sysctls(run)
    if run.kernel is None:
        return _only_sysctls(run)
    try:
        have, foreign = owned_state(run.kernel, run.host, run.document, run.stored)
    except MissingPackage as missing:  # nft
        if not run.lenient:
            raise
        return _only_sysctls(_without_kernel(run, missing, NOTHING_OWNED))
    return replace(run, have=have, foreign=foreign)


def _only_sysctls(run: Run) -> Run:
    """Without our packages nothing of ours can be on the host but sysctls, which need none."""
    return replace(run, have=State(sysctls=forwarding.read(run.document, run.host.sysctls)))


def _without_absent_sysctls(run: Run) -> Run:
    """The run without the sysctls of what does not exist yet; ``missing`` names them."""
    absent = run.host.sysctls.absent(run.document.sysctls)
    there = tuple(sysctl for sysctl in run.document.sysctls if sysctl.name not in absent)
    return replace(run, document=replace(run.document, sysctls=there), missing=tuple(absent.values()))


def owned_state(kernel: Any, host: Host, document: Document, stored: Document | None = None) -> tuple[State, Foreign]:
    """What the owner of a document has on the host, with the sysctls that the document lists; and what others have.

    ``stored`` is the document that may have been applied before.
    """
    protocol = document.protocol
    rules, foreign_rules = _by_owner(kernel.rules(), protocol)
    routes, _none = _by_owner(kernel.routes(protocol), protocol)
    tables = sorted({route.table for route in document.routes})
    in_tables = [route for table in tables for route in kernel.routes(table=table)]
    _ours, foreign_routes = _by_owner(in_tables, protocol)
    addresses, foreign_addresses = _by_owner(kernel.addresses(), protocol)
    settings = forwarding.read(document, host.sysctls)
    services = live_services.read(host, [document, *([stored] if stored else [])])
    live = selection.read(host.runner, document.owner, document.mark_engine, bool(document.marks))
    foreign = Foreign(
        tuple((rule.value, rule.protocol) for rule in foreign_rules if rule.value is not None),
        tuple((route.family, route.table, route.protocol, route.text) for route in foreign_routes),
        tuple((address.value, address.protocol) for address in foreign_addresses),
        tuple(foreign_rules),
    )
    marks = (live.sound, addresses, live.engine)
    table = (services.services, services.sound, services.current)
    announce = _announced(kernel, document) if protocol == announced.PROTOCOL else ()
    return State(rules, routes, live.marks, settings, *marks, *table, announce=announce), foreign


def _announced(kernel: Any, document: Document) -> tuple[Announced, ...]:
    """The addresses that are on lo, and those with only a token; a token of a listed address belongs to the keeper."""
    local, tokens = (
        {announced.from_route(each.value) for each in kernel.routes(announced.PROTOCOL, table) if each.value}
        for table in (announced.LOCAL, MAIN)
    )
    return tuple(local | (tokens - set(document.announce)))


def owned_again(run: Run) -> State:
    """What the owner has on the host now."""
    return owned_state(run.kernel, run.host, run.document)[0]


def _by_owner(listed: Iterable[KernelObject], protocol: int) -> tuple[tuple[Any, ...], list[KernelObject]]:
    """The values of an owner's objects, as far as the model can express them; and the objects of others."""
    listed = list(listed)
    ours = tuple(each.value for each in listed if each.protocol == protocol and each.value is not None)
    return ours, [each for each in listed if each.protocol != protocol]
