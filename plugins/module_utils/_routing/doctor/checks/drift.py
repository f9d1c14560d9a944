# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the host differs from its documents, and whether the kernel routes sample replies as they say."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting
from ...document.model import ip_protocol_name
from ...netlink.route_query import RouteAnswer
from ...reconcile.change import Change
from ..facts.model import Facts
from ..facts.unread import require
from ..finding import Finding, fail

REPAIR = "`l4proxy keep --once`"


def waiting(facts: Facts) -> Iterator[Finding]:
    for drift in facts.drift:
        for obstacle in drift.blocked:
            yield fail(
                drift.owner,
                f"{drift.owner}: {obstacle}",
                "until this is corrected, no part of the document can be applied",
                f"correct this, then {REPAIR}",
            )


def _drifted(facts: Facts, kind: str, why: str) -> Iterator[Finding]:
    for drift in facts.drift:
        for change in drift.changes:
            if change.kind == kind:
                what = f"{drift.owner}: the kernel differs from the document; missing change: {_sentence(change)}"
                yield fail(drift.owner, what, why, REPAIR)


def _sentence(change: Change) -> str:
    replaced = change.kind in ("rule", "route") and change.verb == "replace"
    return f"{change.sentence} (now: {formatting.describe(change.before)})" if replaced else change.sentence


def settings(facts: Facts) -> Iterator[Finding]:
    return _drifted(facts, "sysctl", "the path needs this setting, and something has changed it")


def routes(facts: Facts) -> Iterator[Finding]:
    return _drifted(facts, "route", "replies that use this table find no route, or a wrong one")


def rules(facts: Facts) -> Iterator[Finding]:
    why = "without its lookup rule a reply bypasses the proxy; without its guard it does so when the table is empty"
    return _drifted(facts, "rule", why)


def marks(facts: Facts) -> Iterator[Finding]:
    require(facts.ruleset)  # if the packet filters could not be listed, reconcile did not see our table either
    why = "packets from a proxy get no mark, or their replies do not get it back; a firewall reload often causes this"
    return _drifted(facts, "marks", why)


def kernel_services(facts: Facts) -> Iterator[Finding]:
    why = (
        "clients of these services reach nobody, or their replies do not come back; a firewall reload often causes this"
    )
    return _drifted(facts, "services", why)


def addresses(facts: Facts) -> Iterator[Finding]:
    why = "the proxy connects to this address, and replies must come from it"
    yield from _drifted(facts, "address", why)
    given = {address.address for document in facts.documents for address in document.addresses}
    routes = [route for document in facts.documents for route in document.routes]
    sources = {route.src for route in routes if route.src and not route.retiring}
    for address in sorted(sources - facts.own - given):
        yield fail(address, f"{address} is not an address of this host", why, f"`ip addr add {address} dev LINK`")


def lookup(facts: Facts) -> Iterator[Finding]:
    """The symptom of most other findings: where the kernel would send a sample reply. One finding per owner, family
    and answer."""
    reported = set()
    for reply, answer in facts.replies.items():
        key = (reply.owner, reply.family, _answer(answer))
        if not reply.is_well_sent(answer) and key not in reported:
            reported.add(key)
            expected = "deliver it locally" if reply.via == "local" else f"send it via {reply.via}"
            yield fail(
                reply.src,
                f"the kernel's route for {reply.text} ({ip_protocol_name(reply.ip_proto)}) is {_answer(answer)}; it "
                f"should {expected}",
                "that client's handshake never completes: it times out without an error",
                f"{REPAIR}; if that does not help, look in `ip rule` for what precedes priority {reply.rule.priority}",
            )


def _answer(answer: RouteAnswer) -> str:
    shown = [("via", answer.via), ("dev", answer.dev), ("table", answer.table), ("error", answer.error)]
    return " ".join([answer.type, *(f"{word} {value}" for word, value in shown if value)])
