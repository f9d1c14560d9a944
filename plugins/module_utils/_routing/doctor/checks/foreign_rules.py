# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, routes and marks of other owners that conflict with ours, and rules that capture this host's own traffic."""

from __future__ import annotations

from collections.abc import Iterator

from ...document import formatting, own_traffic
from ...document.model import MAX_U32, OWNERS, KernelObject, Rule
from ...netlink.route_query import RouteAnswer
from ...reconcile import placement
from ...reconcile.conflicts import conflicts
from ...reconcile.state import Foreign, desired_state
from .. import rule_matching
from ..facts.model import Facts
from ..finding import Finding, fail, skip, warn
from ..rule_matching import Reply

MAIN = 254
NO_LISTS = "rules and routes cannot be listed without pyroute2"
WHY_CUT_OFF = "what this host sends to others is delivered to the host itself, so it is cut off from the network"
WHY_BYPASSED = "the reply never reaches the table that would route it correctly"


def taken(facts: Facts) -> Iterator[Finding]:
    """Reconcile would refuse such a document; here it is reported before anything is changed."""
    if facts.rules is None or facts.routes is None:
        yield skip(NO_LISTS)
        return
    ours = facts.protocols
    foreign = Foreign(
        tuple((found.value, found.protocol) for found in facts.rules if found.value and found.protocol not in ours),
        tuple(
            (found.family, found.table, found.protocol, found.text)
            for found in facts.routes
            if found.protocol not in ours
        ),
        tuple((found.value, found.protocol) for found in facts.addresses or () if found.protocol not in ours),
    )
    for document in facts.documents:
        for conflict in conflicts(desired_state(document), foreign):
            yield fail(
                document.owner,
                conflict,
                f"the document of {document.owner} cannot be applied while that exists",
                "remove the object named here, then `l4proxy keep --once`",
            )


def own_traffic_taken(facts: Facts) -> Iterator[Finding]:
    """Rules, present or wanted by a document, that deliver to this host what the host itself sends."""
    if facts.rules is None or facts.routes is None:
        yield skip(NO_LISTS)
        return
    present = [found.value for found in facts.rules if found.value is not None]
    rules = dict.fromkeys([*present, *(rule for document in facts.documents for rule in document.rules)])
    routes = [found.value for found in facts.routes if found.value is not None]
    routes += [route for document in facts.documents for route in document.routes]
    local = own_traffic.local_tables(routes)
    for rule, reason in own_traffic.all_unbounded(rules, local):
        yield fail(formatting.rule(rule), f"`{formatting.rule(rule)}` {reason}", WHY_CUT_OFF, _delete_command(rule))
    for address, capturing in own_traffic.by_address(own_traffic.from_own(rules, local, facts.own)):
        active = [rule for rule in capturing if rule in present]
        rule = (active or capturing)[0]
        what = f"`{formatting.rule(rule)}` has {address} as its source, which is this host's own address"
        remedy = (
            f"remove {address} from this proxy's backends and run `site` again, or remove that address from this host"
        )
        if active:
            yield fail(address, what, WHY_CUT_OFF, f"{_delete_command(rule)}, then {remedy}")
        else:
            yield fail(
                address, what, "the keeper does not add such a rule, so this proxy cannot use that backend", remedy
            )


def _delete_command(rule: Rule) -> str:
    parts = [("from", rule_matching.host_of(rule.src) or rule.src), ("iif", rule.iif), ("ipproto", rule.ip_proto)]
    selectors = " ".join(f"{word} {value}" for word, value in parts if value)
    command = f"{formatting.ip_command(rule.family)} rule del priority {rule.priority} {selectors}".rstrip()
    return f"`{command} table {rule.table}`"


def rule_before(facts: Facts) -> Iterator[Finding]:
    foreign = rule_matching.foreign_rules(facts.rules or (), facts.protocols)
    if not foreign:
        return
    reported: set[KernelObject] = set()
    for reply, answer in facts.replies.items():
        own = rule_matching.live_rule(reply, facts.rules or ())
        for found in rule_matching.preceding(reply, facts.rules or (), foreign):
            if found not in reported and _decides(facts, reply, found, answer):
                reported.add(found)
                what = f"{_with_owner(found)} precedes our rule at priority {own.priority} and matches {reply.text}"
                yield _preceding_rule(facts, reply, found, what)


def _preceding_rule(facts: Facts, reply: Reply, found: KernelObject, what: str) -> Finding:
    """The remedy depends on whether the keeper can place our rule in front of the foreign one."""
    subject = rule_matching.format_found(found)
    document = next(document for document in facts.documents if document.owner == reply.owner)
    there = placement.place(document.rules, facts.rules or ()) if document.owner in OWNERS else placement.Placement()
    if found in there.before and there.moved:
        number = there.at(reply.rule).priority
        if facts.applied:
            fix = f"`l4proxy keep --once`: it moves our rule in front, to priority {number}; so does the keeper"
            return fail(subject, what, WHY_BYPASSED, fix)
        why = f"our rule goes in front of it, at priority {number}, for as long as that rule exists"
        fix = "nothing needs to be done; to avoid the move, give that rule a fixed priority above ours"
        return warn(subject, what, why, fix)
    rule = rule_matching.modelled(found)
    highest = max(rule.priority for rule in document.rules)
    remedy = (
        f"`{formatting.ip_command(rule.family)} rule del priority {rule.priority}`, and add that rule again with a "
        f"fixed priority above {highest}; a tool that sets none gets the lowest number (wg-quick: `Table = off`, and "
        "PostUp lines with a priority)"
    )
    return fail(subject, what, WHY_BYPASSED, remedy)


def _decides(facts: Facts, reply: Reply, found: KernelObject, answer: RouteAnswer) -> bool:
    """Whether a foreign rule that precedes ours sends the reply elsewhere."""
    rule = rule_matching.modelled(found)
    if rule.action == "goto" and (rule.table or 0) <= rule_matching.live_rule(reply, facts.rules or ()).priority:
        return False
    if facts.applied and reply.is_well_sent(answer):
        return False
    if facts.applied and answer.table is not None and rule.action == "lookup":
        return answer.table == rule.table  # the kernel's answer names the table that routed the same reply
    if found.partly:
        return False  # a selector that the model lacks may exclude the reply
    if rule.action != "lookup":
        return True
    if rule.suppress_prefixlength is not None:
        return False  # such a rule ignores the default route of its table, so the reply passes on
    if rule.table == MAIN:
        return not facts.peers or any(peer.unmarked and peer.unmarked.table == MAIN for peer in facts.peers)
    routes = [found.value for found in facts.routes or () if found.table == rule.table and found.value]
    return any(route.dst == "default" and reply.via not in (route.via, route.type) for route in routes)


def _with_owner(found: KernelObject) -> str:
    return f"`{rule_matching.format_found(found)}` ({formatting.owner_name(found.protocol)})"


def mark_shared(facts: Facts) -> Iterator[Finding]:
    for document in facts.documents:
        marks = {(rule.fwmark, rule.fwmask) for rule in rule_matching.lookups(document) if rule.fwmark and rule.fwmask}
        for found in rule_matching.foreign_rules(facts.rules or (), facts.protocols):
            rule = rule_matching.modelled(found)
            for mark, mask in sorted(marks):
                if not found.inverted and rule_matching.marks_overlap(rule, mark, mask):
                    yield warn(
                        rule_matching.format_found(found),
                        f"{_with_owner(found)} matches a mark that uses our bits ({mark:#x}/{mask:#x})",
                        "packets that one tool marks may be routed by the other tool's rules",
                        f"configure the other tool to use bits outside {mask:#x}"
                        + rule_matching.other_bits(mask | (MAX_U32 if rule.fwmask is None else rule.fwmask)),
                    )
