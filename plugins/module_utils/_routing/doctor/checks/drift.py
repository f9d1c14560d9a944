# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the host is as its documents say, and whether the kernel does with a reply what they want."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting
from ...document.model import ip_protocol_name
from ...netlink.route_query import RouteAnswer
from ...reconcile.plan import Change
from ..facts.model import Facts
from ..facts.unread import require
from ..finding import Finding, fail

KEEP = "`l4proxy keep --once`"


def waiting(facts: Facts) -> Iterator[Finding]:
    for drift in facts.drift:
        for sentence in drift.blocked:
            yield fail(
                drift.owner,
                f"{drift.owner}: {sentence}",
                "until then nothing of the document can be applied",
                f"mend that, then {KEEP}",
            )


def _drifted(facts: Facts, kind: str, why: str) -> Iterator[Finding]:
    for drift in facts.drift:
        for change in drift.changes:
            if change.kind == kind:
                what = f"{drift.owner}: the kernel is not as the document says; it takes: {_sentence(change)}"
                yield fail(drift.owner, what, why, KEEP)


def _sentence(change: Change) -> str:
    replaced = change.kind in ("rule", "route") and change.verb == "replace"
    return f"{change.sentence} (there is: {formatting.describe(change.before)})" if replaced else change.sentence


def settings(facts: Facts) -> Iterator[Finding]:
    return _drifted(facts, "sysctl", "someone has changed a setting that the path needs")


def routes(facts: Facts) -> Iterator[Finding]:
    return _drifted(facts, "route", "replies find no way back in that table, or a wrong one")


def rules(facts: Facts) -> Iterator[Finding]:
    why = "without the lookup rule replies go the ordinary way; without the guard they leak when the table is empty"
    return _drifted(facts, "rule", why)


def marks(facts: Facts) -> Iterator[Finding]:
    require(facts.ruleset)  # where that could not be listed, the engine did not see our table either
    why = "packets of a proxy get no mark, or their replies do not get it back; many a firewall's reload does that"
    return _drifted(facts, "marks", why)


def addresses(facts: Facts) -> Iterator[Finding]:
    why = "the document's replies come from it, and the proxy connects to it"
    yield from _drifted(facts, "address", why)
    given = {one.address for document in facts.documents for one in document.addresses}
    sources = {route.src for one in facts.documents for route in one.routes if route.src and not route.retiring}
    for address in sorted(sources - facts.own - given):
        yield fail(address, f"{address} is not an address of this host", why, f"`ip addr add {address} dev LINK`")


def lookup(facts: Facts) -> Iterator[Finding]:
    """The symptom: what the kernel says it would do, one finding an end and a family."""
    named = set()
    for reply, answer in facts.replies.items():
        told = _answer(answer)
        if not reply.is_well_sent(answer) and (reply.owner, reply.family, told) not in named:
            named.add((reply.owner, reply.family, told))
            wanted = "taken in (local)" if reply.via == "local" else f"sent via {reply.via}"
            yield fail(
                reply.src,
                f"the kernel's own lookup for {reply.text} ({ip_protocol_name(reply.ip_proto)}) says {told}; it should "
                f"be {wanted}",
                "the handshake of that client never completes: a silent timeout",
                f"{KEEP}; if it stays so, look at `ip rule` for what comes before priority {reply.rule.priority}",
            )


def _answer(answer: RouteAnswer) -> str:
    shown = [("via", answer.via), ("dev", answer.dev), ("table", answer.table), ("error", answer.error)]
    return " ".join([answer.type, *(f"{word} {value}" for word, value in shown if value)])
