# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turn the document into the desired state that this host can apply now.

Routes get their interface, marks the MAC or interface of their proxy, rules their place among the rules of others.
"""

from __future__ import annotations

from dataclasses import replace

from ..document.model import OWNERS, Rule
from ..errors import NotReady
from . import forwarding, next_hops, own_sources, placement, resolve_marks, resolve_routes
from .run import Run
from .state import desired_state


def resolve(run: Run) -> Run:
    """The run with ``want``, and with what cannot be applied yet.

    Raises Refused, and NotReady where something is missing; with ``partial``, what needs it is held back instead.
    """
    sysctls = forwarding.wanted(run.document, run.host.sysctls)
    run = replace(run, want=replace(desired_state(run.document), sysctls=sysctls))
    if run.kernel is None:
        return run
    if run.host.answers:
        routes = next_hops.choose(run.want.routes, run.have.routes, run.host.answers)
        run = replace(run, want=replace(run.want, routes=routes))
    run = own_sources.leave_out(run)
    run = _hold_back_unreachable(run)
    run = _place_rules(run)
    return resolve_marks.resolve(run)


def _hold_back_unreachable(run: Run) -> Run:
    want, held_back, missing = resolve_routes.applicable(run.kernel, run.want)
    if missing and not run.options.partial:
        raise NotReady(missing)
    run = replace(run, want=want, held_back=held_back, missing=(*run.missing, *missing))
    return own_sources.hold_back_unknown(run) if run.options.partial else run


def _place_rules(run: Run) -> Run:
    """Move our rules in front of foreign rules that would take their packets.

    The priorities of a document that an operator wrote stay.
    """
    if run.document.owner not in OWNERS:
        return run
    placed = placement.place(run.want.rules, run.foreign.listed)
    return replace(
        run,
        want=replace(run.want, rules=tuple(map(placed.at, run.want.rules))),
        held_back=tuple(placed.at(value) if isinstance(value, Rule) else value for value in run.held_back),
        warnings=(*run.warnings, *placement.warnings(placed, run.document.owner)),
    )
