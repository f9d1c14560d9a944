# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes and numbers of others that are in the way of ours."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting, own_traffic
from ...document.model import MAX_U32, OWNERS, KernelObject, Rule
from ...netlink.route_query import RouteAnswer
from ...reconcile import host_state, placement
from ...reconcile.plan import Foreign, conflicts
from .. import rule_matching
from ..facts.model import Facts
from ..finding import Finding, fail, skip, warn
from ..rule_matching import Reply

MAIN = 254


def taken(facts: Facts) -> Iterator[Finding]:
    """The engine would refuse such a document; said here before anything is touched."""
    if facts.rules is None or facts.routes is None:
        yield skip("rules and routes cannot be listed without pyroute2")
        return
    ours = facts.protocols
    foreign = Foreign(
        tuple((one.value, one.protocol) for one in facts.rules if one.value and one.protocol not in ours),
        tuple((one.family, one.table, one.protocol, one.text) for one in facts.routes if one.protocol not in ours),
        tuple((one.value, one.protocol) for one in facts.addresses or () if one.protocol not in ours),
    )
    for document in facts.documents:
        for sentence in conflicts(host_state.wish(document), foreign):
            yield fail(
                document.owner,
                sentence,
                f"the document of {document.owner} cannot be applied beside it",
                "remove what is named here, then `l4proxy keep --once`",
            )


def own_traffic_taken(facts: Facts) -> Iterator[Finding]:
    """Rules that deliver to this host what it sends itself: those that are there, and those that a document wants."""
    if facts.rules is None or facts.routes is None:
        yield skip("rules and routes cannot be listed without pyroute2")
        return
    live = [one.value for one in facts.rules if one.value is not None]
    rules = dict.fromkeys([*live, *(rule for document in facts.documents for rule in document.rules)])
    routes = [one.value for one in facts.routes if one.value is not None]
    local = own_traffic.local_tables([*routes, *(route for one in facts.documents for route in one.routes)])
    for rule, reason in own_traffic.all_unbounded(rules, local):
        yield fail(formatting.rule(rule), f"`{formatting.rule(rule)}` {reason}", WHY_CUT_OFF, _removal(rule))
    for address, taking in own_traffic.by_address(own_traffic.from_own(rules, local, facts.own)):
        there = [rule for rule in taking if rule in live]
        first = (there or taking)[0]
        what = f"{address} is an address of this host itself and the source of `{formatting.rule(first)}`"
        remedy = f"take {address} out of the backends of this proxy and run `site` again, or take it off this host"
        if there:
            yield fail(address, what, WHY_CUT_OFF, f"{_removal(first)}, then {remedy}")
        else:
            yield fail(address, what, "the keeper leaves that rule out, and this proxy reaches no such backend", remedy)


WHY_CUT_OFF = "what this host sends is delivered to the host itself, so nobody reaches it any more"


def _removal(rule: Rule) -> str:
    parts = [("from", rule_matching.host_of(rule.src) or rule.src), ("iif", rule.iif), ("ipproto", rule.ip_proto)]
    selectors = " ".join(f"{word} {value}" for word, value in parts if value)
    command = f"{formatting.ip_command(rule.family)} rule del priority {rule.priority} {selectors}".rstrip()
    return f"`{command} table {rule.table}`"


def rule_before(facts: Facts) -> Iterator[Finding]:
    foreign = rule_matching.strangers(facts.rules or (), facts.protocols)
    if not foreign:
        return
    named: set[KernelObject] = set()
    for reply, answer in facts.replies.items():
        own = rule_matching.live_rule(reply, facts.rules)
        for found in rule_matching.before_ours(reply, facts.rules, foreign):
            if found not in named and _decides(facts, reply, found, answer):
                named.add(found)
                what = f"{_whose(found)} is asked before our rule at priority {own.priority} and takes {reply.text}"
                yield _before(facts, reply, found, what)


def _before(facts: Facts, reply: Reply, found: KernelObject, what: str) -> Finding:
    """What the engine and the keeper can mend by themselves, and what they cannot."""
    document = next(one for one in facts.documents if one.owner == reply.owner)
    there = placement.placed(document.rules, facts.rules or ()) if document.owner in OWNERS else placement.Placed()
    rule, why = rule_matching.seen(found), "the reply never gets to the table that would send it the right way"
    if found in there.before and there.moved:
        number = there.at(reply.rule).priority
        if facts.applied:
            fix = f"`l4proxy keep --once`, which puts our rule in front of it, at priority {number}; so does the keeper"
            return fail(rule_matching.words(found), what, why, fix)
        why = f"our rule will be put in front of it, at priority {number}, and stay there while that rule is here"
        return warn(
            rule_matching.words(found), what, why, "nothing, or give that rule a priority of its own above ours"
        )
    highest = max(one.priority for one in document.rules)
    remedy = (
        f"`{formatting.ip_command(rule.family)} rule del priority {rule.priority}`, and add that rule again with a "
        f"priority of its own above {highest}; a tool that names none gets the lowest (wg-quick: `Table = off`, and "
        "PostUp lines that name a priority)"
    )
    return fail(rule_matching.words(found), what, why, remedy)


def _decides(facts: Facts, reply: Reply, found: KernelObject, answer: RouteAnswer) -> bool:
    """Whether a foreign rule that is asked before ours sends the reply elsewhere."""
    rule = rule_matching.seen(found)
    if rule.action == "goto" and (rule.table or 0) <= rule_matching.live_rule(reply, facts.rules or ()).priority:
        return False
    if facts.applied and reply.is_well_sent(answer):
        return False
    if facts.applied and answer.table is not None and rule.action == "lookup":
        return answer.table == rule.table  # asked for the same reply, the kernel has told which table answered
    if found.partly:
        return False  # a selector that is not known here may leave the reply out
    if rule.action != "lookup":
        return True
    if rule.suppress_prefixlength is not None:
        return False  # made to leave the default route to the rules behind it
    if rule.table == MAIN:
        return not facts.peers or any(peer.unmarked and peer.unmarked.table == MAIN for peer in facts.peers)
    defaults = [one.value for one in facts.routes or () if one.table == rule.table and one.value]
    return any(one.dst == "default" and reply.via not in (one.via, one.type) for one in defaults)


def _whose(found: KernelObject) -> str:
    return f"`{rule_matching.words(found)}` ({formatting.owner_name(found.protocol)})"


def mark_shared(facts: Facts) -> Iterator[Finding]:
    """Another's rule selects by bits that ours are made of."""
    for document in facts.documents:
        marks = {(rule.fwmark, rule.fwmask) for rule in rule_matching.lookups(document) if rule.fwmark}
        for found in rule_matching.strangers(facts.rules or (), facts.protocols):
            rule = rule_matching.seen(found)
            for mark, mask in sorted(marks):
                if not found.inverted and rule_matching.marks_meet(rule, mark, mask):
                    yield warn(
                        rule_matching.words(found),
                        f"{_whose(found)} goes by a mark that has our bits ({mark:#x}/{mask:#x})",
                        "packets of the one may be routed as the other's",
                        f"let the other tool use bits outside {mask:#x}"
                        + rule_matching.other_bits(mask | (MAX_U32 if rule.fwmask is None else rule.fwmask)),
                    )
