# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes, addresses, marks and sysctls of one owner, as desired or as read; and what others have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..document.announced import Announced
from ..document.documents import Document
from ..document.kernel_service import KernelService
from ..document.model import Address, KernelObject, Mark, Route, Rule
from ..marks import selection


@dataclass(frozen=True)
class State:
    """What one owner has on a host, or should have.

    ``sysctls`` is a tuple of Sysctl in a desired state, of Setting in one that was read. ``sound`` is False when the
    live marks differ from what ``marks`` renders to (someone changed them, or an empty table was left).
    ``engine`` holds the marks, or is to hold them; None while either engine may.
    """

    rules: tuple[Rule, ...] = ()
    routes: tuple[Route, ...] = ()
    marks: tuple[Mark, ...] = ()
    sysctls: tuple[Any, ...] = ()
    sound: bool = True
    addresses: tuple[Address, ...] = ()
    engine: str | None = None
    services: tuple[KernelService, ...] = ()
    # False when the live table of the services differs from what these render to, apart from the backends' states.
    services_sound: bool = True
    # False when it has other states of backends: then it is written, which is neither a change nor a repair.
    services_current: bool = field(default=True, compare=False)
    announce: tuple[Announced, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """What others have on the host, as far as it can conflict with ours."""

    # (rule, its protocol)
    rules: tuple[tuple[Rule, int], ...] = ()
    # (family, table, protocol, the route as text)
    routes: tuple[tuple[str, int, int, str], ...] = field(default=())
    # (address, protocol of another owner of ours, or 0)
    addresses: tuple[tuple[Address, int], ...] = ()
    # All rules but the owner's, including those that the model cannot express.
    listed: tuple[KernelObject, ...] = ()


def desired_state(document: Document) -> State:
    """The document as a state: next hops without their interfaces, proxies without their MACs."""
    engine = None if document.mark_engine == selection.AUTO else document.mark_engine
    sections = (document.rules, document.routes, document.marks, document.sysctls)
    state = State(*sections, addresses=document.addresses, engine=engine, services=document.services)
    return replace(state, announce=document.announce)
