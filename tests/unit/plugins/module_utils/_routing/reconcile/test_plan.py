# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan reaches the desired state from any other, in an order that interrupts nothing in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import (
    Address,
    Mark,
    Route,
    Rule,
    Setting,
    Sysctl,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import plan
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.conflicts import conflicts
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.difference import difference
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.state import Foreign, State
from hypothesis import given
from hypothesis import strategies as st

LOOKUP = Rule("ipv4", 1100, table=20111, fwmark=11, fwmask=255)
GUARD = Rule("ipv4", 1101, action="unreachable", fwmark=11, fwmask=255)
ROUTE = Route("ipv4", 20111, via="198.18.0.11", dev="eth0")
MARK = Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",))
ADDRESS = Address("ipv4", "198.18.0.121", "eth0")
REDIRECTS = Sysctl("net.ipv4.conf.all.accept_redirects", "0")
FRESH = State(sysctls=(Setting(REDIRECTS.name, "1"),))
WANT = State((LOOKUP, GUARD), (ROUTE,), (MARK,), (REDIRECTS,), addresses=(ADDRESS,))
HELD = State((LOOKUP, GUARD), (ROUTE,), (MARK,), (Setting(REDIRECTS.name, "0", True, "1"),),
             addresses=(ADDRESS,))  # fmt: skip


def sentences(want: State, have: State, purge: bool = True) -> list[str]:
    return [change.sentence for change in plan.find_changes(want, have, purge)]


def test_guards_are_added_first_and_marks_and_the_sysctls_that_they_load_last():
    timeout = Sysctl("net.netfilter.nf_conntrack_udp_timeout", "65")
    want = replace(WANT, sysctls=(timeout, *WANT.sysctls))
    have = replace(FRESH, sysctls=(Setting(timeout.name, ""), *FRESH.sysctls))
    assert sentences(want, have) == [
        "set sysctl net.ipv4.conf.all.accept_redirects: 1 -> 0",
        "add ip addr 198.18.0.121 dev eth0",
        "add ip rule 1101: from all fwmark 0xb/0xff unreachable",
        "add ip route default via 198.18.0.11 dev eth0 table 20111",
        "add ip rule 1100: from all fwmark 0xb/0xff lookup 20111",
        "add the nft table of marks: a (0xb)",
        "set sysctl net.netfilter.nf_conntrack_udp_timeout: absent -> 65",
    ]


def test_a_host_forwards_only_while_the_table_of_services_keeps_strangers_out():
    bypass = Rule("ipv4", 1099, table=254, fwmark=255, fwmask=255)
    switch, loose = Sysctl("net.ipv4.ip_forward", "1"), Sysctl("net.netfilter.nf_conntrack_tcp_loose", "1")
    want = State((bypass,), sysctls=(switch, loose, REDIRECTS), services=(WEB,))
    have = State(sysctls=(Setting(switch.name, "0"), Setting(loose.name, "0"), *FRESH.sysctls))
    assert sentences(want, have) == [
        "set sysctl net.ipv4.conf.all.accept_redirects: 1 -> 0",
        "add ip rule 1099: from all fwmark 0xff/0xff lookup 254",
        "forward 198.18.0.100:80/tcp to b, c",
        "set sysctl net.netfilter.nf_conntrack_tcp_loose: 0 -> 1",
        "set sysctl net.ipv4.ip_forward: 0 -> 1",
    ]
    after = plan.predict(have, plan.find_changes(want, have))
    assert sentences(want, after) == []
    assert sentences(State(), after) == [
        "restore sysctl net.ipv4.ip_forward: 1 -> 0",
        "stop forwarding 198.18.0.100:80/tcp to b, c",
        "remove ip rule 1099: from all fwmark 0xff/0xff lookup 254",
        "restore sysctl net.ipv4.conf.all.accept_redirects: 0 -> 1",
        "restore sysctl net.netfilter.nf_conntrack_tcp_loose: 1 -> 0",
    ]


SERVERS = (Server("b", "198.18.0.21", 8080), Server("c", "198.18.0.22", 8080))
WEB = KernelService("web", "ipv4", "tcp", "198.18.0.100", 80, SERVERS)
ONLY_B = replace(WEB, servers=SERVERS[:1])
LEFT_C = replace(WEB, servers=SERVERS[1:], retiring=True, retire_at=9)


@pytest.mark.parametrize(("want", "have", "expected"), [
    ((WEB,), State(services=(WEB,)), []),
    ((replace(WEB, connections=5),), State(services=(WEB,)), ["forward 198.18.0.100:80/tcp to b, c"]),
    # A server that leaves retires beside the service.
    ((ONLY_B, LEFT_C), State(services=(WEB,)),
     ["forward 198.18.0.100:80/tcp to b; forward open connections of 198.18.0.100:80/tcp to c"]),
    ((ONLY_B, replace(LEFT_C, retire_at=5)), State(services=(ONLY_B, LEFT_C)), []),
    ((ONLY_B,), State(services=(ONLY_B, LEFT_C)),
     ["stop forwarding open connections of 198.18.0.100:80/tcp to c"]),
    ((replace(WEB, retiring=True),), State(services=(WEB,)),
     ["forward open connections of 198.18.0.100:80/tcp to b, c"]),
    ((ONLY_B, LEFT_C), State(services=(ONLY_B,)), []),
    ((WEB,), State(services=(WEB,), services_sound=False), ["restore the nft table of services"]),
    ((WEB,), State(services=(WEB,), services_current=False), []),
    ((), State(services_sound=False), ["remove the nft table of services"]),
])  # fmt: skip
def test_services_change_together(want, have, expected):
    assert sentences(State(services=want), have) == expected


def test_objects_are_removed_in_reverse_order():
    assert sentences(State(), HELD) == [
        "remove the nft table of marks: a (0xb)",
        "remove ip rule 1100: from all fwmark 0xb/0xff lookup 20111",
        "remove ip route default via 198.18.0.11 dev eth0 table 20111",
        "remove ip rule 1101: from all fwmark 0xb/0xff unreachable",
        "remove ip addr 198.18.0.121 dev eth0",
        "restore sysctl net.ipv4.conf.all.accept_redirects: 0 -> 1",
    ]


RETIRING = State(*(tuple(replace(value, retiring=True) for value in values) for values in
                   (WANT.rules, WANT.routes, WANT.marks)))  # fmt: skip
RETIRING_ADDRESS = State(addresses=(replace(ADDRESS, retiring=True),))

OTHER_TABLE, CHANGED = replace(LOOKUP, table=20999), replace(LOOKUP, table=7)
VIA_12, VIA_99 = (replace(ROUTE, via=f"198.18.0.{host}") for host in (12, 99))
OURS = State((LOOKUP, GUARD), (ROUTE,), (MARK,))
MOVED, MOVE = (
    State((OTHER_TABLE,), (replace(ROUTE, table=20999),)),
    ["add route", "add rule", "remove rule", "remove route"],
)

# name: (want, have, purge, steps)

PLANS = {
    "nothing to do": (WANT, HELD, True, []),
    "a new next hop replaces the route": (State(routes=(VIA_12,)), State(routes=(ROUTE,)), True, ["replace route"]),
    "a rule with a new table is added before the old one": (MOVED, State((LOOKUP,), (ROUTE,)), True, MOVE),
    "only replaced objects go without purge": (State((OTHER_TABLE,)), OURS, False, ["add rule", "remove rule"]),
    "retiring objects are kept": (RETIRING, replace(HELD, sysctls=(), addresses=()), True, []),
    "they are kept unchanged": (RETIRING, State((CHANGED,), (VIA_99,), (replace(MARK, via=()),)), True, []),
    "they are never added": (RETIRING, State(), True, []),
    "a retiring address is kept": (RETIRING_ADDRESS, State(addresses=(ADDRESS,)), True, []),
    "a retiring address is never added": (RETIRING_ADDRESS, State(), True, []),
    "changed marks are replaced": (State(marks=(MARK,)), State(marks=(MARK,), sound=False), True, ["replace marks"]),
    "an unknown table is replaced": (State(marks=(MARK,)), State(sound=False), True, ["replace marks"]),
    "a missing MAC is added": (State(marks=(MARK,)), State(marks=(replace(MARK, macs=()),)), True, ["replace marks"]),
    "an empty leftover table is removed": (State(), State(sound=False), True, ["remove marks"]),
    "marks do not move between engines without marks": (State(engine="nftables"), State(engine="iptables"), True, []),
}


@pytest.mark.parametrize(("want", "have", "purge", "steps"), PLANS.values(), ids=PLANS)
def test_planned_steps(want, have, purge, steps):
    assert [f"{change.verb} {change.kind}" for change in plan.find_changes(want, have, purge)] == steps


def test_an_address_that_moves_is_added_before_it_is_removed():
    want = State(addresses=(replace(ADDRESS, dev="eth1"),))
    expected = ["add ip addr 198.18.0.121 dev eth1", "remove ip addr 198.18.0.121 dev eth0"]
    assert sentences(want, State(addresses=(ADDRESS,))) == expected


NEW, UPLINK = Mark("a2", 12, 255, ("02:00:00:00:00:12",)), Mark("up", 12, 255, iif="eth1")
# name: (desired marks besides the retiring one, live mark, marks afterwards)

MARK_12, UPLINK_13 = replace(MARK, id=12), replace(UPLINK, id=13)
RETIRING_MARKS = {
    "it stays next to a new mark": (NEW, MARK, (MARK, NEW)),
    "it loses its MAC to another id": (MARK_12, MARK, (replace(MARK, macs=()), MARK_12)),
    "it loses its interface to another id": (UPLINK_13, UPLINK, (replace(UPLINK, iif=None), UPLINK_13)),
}


@pytest.mark.parametrize(("new", "live", "expected"), RETIRING_MARKS.values(), ids=RETIRING_MARKS)
def test_a_retiring_mark(new, live, expected):
    (change,) = plan.find_changes(State(marks=(replace(live, retiring=True), new)), State(marks=(live,)))
    assert change.after == expected


@pytest.mark.parametrize(("held", "wanted", "sentences"), [
    ("nftables", "nftables", []),
    ("nftables", None, []),
    ("nftables", "iptables", ["replace the iptables chains of marks: a (0xb)"]),
    ("iptables", "nftables", ["replace the nft table of marks: a (0xb)"]),
])  # fmt: skip
def test_marks_move_to_the_requested_engine(held, wanted, sentences):
    have, want = State(marks=(MARK,), engine=held), State(marks=(MARK,), engine=wanted)
    changes = plan.find_changes(want, have)
    assert [change.sentence for change in changes] == sentences
    after = plan.predict(have, changes)
    assert after.engine == (wanted or held)
    assert bool(difference(have, after)) == bool(sentences)


# (desired value, setting of the host, sentence)
@pytest.mark.parametrize(("value", "found", "expected"), [
    ("0", Setting("a.b", "1"), "set sysctl a.b: 1 -> 0"),
    ("0", Setting("a.b", "0"), "hold sysctl a.b at 0"),
    ("0", Setting("a.b", "1", True), "set sysctl a.b: 1 -> 0"),
    ("0", Setting("a.b", "0", True), None),
    (None, Setting("a.b", "0", True, "1"), "restore sysctl a.b: 0 -> 1"),
    (None, Setting("a.b", "0", True, "0"), "release sysctl a.b (stays 0)"),
    (None, Setting("a.b", "0", True, None), "release sysctl a.b (stays 0)"),
    (None, Setting("a.b", "0"), None),
])  # fmt: skip
def test_a_desired_sysctl_is_set_and_held_and_a_released_one_restored_if_it_is_still_ours(value, found, expected):
    want, have = State(sysctls=(Sysctl("a.b", value),) if value else ()), State(sysctls=(found,))
    assert sentences(want, have) == ([expected] if expected else [])
    assert value or sentences(want, have, purge=False) == []


def test_the_difference_is_in_the_syntax_of_ip():
    shown = difference(FRESH, plan.predict(FRESH, plan.find_changes(WANT, FRESH)))
    assert shown["before"] == "sysctl net.ipv4.conf.all.accept_redirects = 1\n"
    assert shown["after"].splitlines() == [
        "ip addr 198.18.0.121 dev eth0",
        "ip rule 1100: from all fwmark 0xb/0xff lookup 20111",
        "ip rule 1101: from all fwmark 0xb/0xff unreachable",
        "ip route default via 198.18.0.11 dev eth0 table 20111",
        "nft mark a 0xb/0xff from 02:00:00:00:00:11 via 198.18.0.11",
        "sysctl net.ipv4.conf.all.accept_redirects = 0",
    ]


FOREIGN_ROUTE = ("ipv4", 20111, 4, "ip route 10.0.0.0/8 via 198.18.0.1 table 20111")
CONFLICTS = [
    (Foreign(((LOOKUP, 150),)), ["rule priority 1100 already has these selectors for another owner (proto 150)"]),
    (Foreign(((replace(LOOKUP, table=5), 201),)), ["rule priority 1100 already has these selectors for another owner "
                                                   "(owner local_delivery (proto 201))"]),
    (Foreign(((replace(LOOKUP, priority=1099), 150),)), []),
    (Foreign(((replace(LOOKUP, fwmask=0xFF0F), 150),)), []),
    (Foreign((), (FOREIGN_ROUTE, FOREIGN_ROUTE)), ["table 20111 already holds routes of another owner (proto static)"]),
    (Foreign(addresses=((ADDRESS, 0),)), ["address 198.18.0.121 is already on this host and not ours (dev eth0, "
                                          "set by another tool)"]),
    (Foreign(addresses=((replace(ADDRESS, dev="eth1"), 201),)), ["address 198.18.0.121 is already on this host and not "
                                                                 "ours (dev eth1, owner local_delivery"]),
    (Foreign(addresses=((Address("ipv4", "198.18.0.122", "eth0"), 0),)), []),
    (Foreign((), (("ipv6", *FOREIGN_ROUTE[1:]),)), []),
]  # fmt: skip


@pytest.mark.parametrize(("foreign", "expected"), CONFLICTS)
def test_objects_of_others_conflict_with_desired_ones(foreign, expected):
    errors = conflicts(WANT, foreign)
    assert len(errors) == len(expected)
    assert all(error.startswith(start) for error, start in zip(errors, expected))


def test_retiring_objects_do_not_conflict():
    assert conflicts(RETIRING, Foreign(((LOOKUP, 150),), (FOREIGN_ROUTE,))) == []


# --- for any two sets


families = st.sampled_from(["ipv4", "ipv6"])
small = st.integers(1, 3)


@st.composite
def rules(draw):
    action = draw(st.sampled_from(["lookup", "unreachable"]))
    table = draw(small) if action == "lookup" else None
    mark = draw(st.none() | small)
    retiring = draw(st.booleans())
    iif = draw(st.sampled_from([None, "lo"]))
    return Rule(draw(families), draw(small), action, table, iif=iif, fwmark=mark, fwmask=mark and 7, retiring=retiring)


@st.composite
def routes(draw):
    family = draw(families)
    via = draw(st.sampled_from(["::1", "::2"] if family == "ipv6" else ["10.0.0.1", "10.0.0.2"]))
    kind = draw(st.sampled_from(["unicast", "local", "unreachable"]))
    return Route(family, draw(small), type=kind, via=via if kind == "unicast" else None, retiring=draw(st.booleans()))


marks = st.builds(
    lambda number, mac, retiring: Mark(f"p{number}", number, 7, (f"02:00:00:00:00:0{mac}",), retiring=retiring),
    small, small, st.booleans(),
)  # fmt: skip


def unique(strategy):
    return st.lists(strategy, max_size=6, unique_by=lambda value: value.key).map(tuple)


NAMES = ("a.b", "a.c", "a.d")
values = st.sampled_from(["0", "1", "2"])
wanted_sysctls = st.dictionaries(st.sampled_from(NAMES), values).map(
    lambda found: tuple(Sysctl(name, value) for name, value in found.items())
)
# What a host shows: every setting has a value; only a held one can be restored.
found_settings = st.tuples(*(
    st.tuples(values, st.booleans(), st.none() | values).map(
        lambda found, name=name: Setting(name, found[0], found[1], found[2] if found[1] else None)
    )
    for name in NAMES
))  # fmt: skip
addresses = st.builds(
    lambda number, dev, retiring: Address("ipv4", f"198.18.0.{number}", dev, retiring=retiring),
    small, st.sampled_from(["eth0", "eth1"]), st.booleans(),
)  # fmt: skip
wanted = st.builds(
    State, unique(rules()), unique(routes()), unique(marks), wanted_sysctls, st.just(True), unique(addresses)
)
held = st.builds(
    State, unique(rules()), unique(routes()), unique(marks), found_settings, st.booleans(), unique(addresses)
)


def active(objects: tuple) -> dict:
    return {value.key: value for value in objects if not value.retiring}


@given(wanted, held, st.booleans())
def test_the_planned_changes_reach_the_desired_state_and_the_next_plan_is_empty(want, have, purge):
    after = plan.predict(have, plan.find_changes(want, have, purge))
    for section in ("rules", "routes", "marks", "addresses"):
        wanted_objects, before, found = getattr(want, section), getattr(have, section), getattr(after, section)
        retiring = {value.key for value in wanted_objects if value.retiring}
        kept = {v.key: v for v in before if v.key not in active(wanted_objects) and (v.key in retiring or not purge)}
        if section == "marks":
            taken = {mac for mark in active(wanted_objects).values() for mac in mark.macs}
            kept = {key: replace(mark, macs=tuple(set(mark.macs) - taken)) for key, mark in kept.items()}
        assert {value.key: value for value in found} == {**kept, **active(wanted_objects)}
        assert len(found) == len({value.key for value in found}), "no duplicates"
    values_now = {setting.name: setting.value for setting in after.sysctls}
    assert all(values_now[sysctl.name] == sysctl.value for sysctl in want.sysctls)
    assert after.sound
    assert plan.find_changes(want, after, purge) == ()


@given(wanted, held, st.booleans())
def test_no_kept_rule_or_route_is_missing_between_two_changes_and_only_owned_objects_change(want, have, purge):
    """What exists before and is desired after is never missing in between. Foreign objects cannot be named."""
    changes, owned = plan.find_changes(want, have, purge), {*have.rules, *have.routes, *have.addresses}
    stays = {route.key for route in have.routes} & set(active(want.routes))
    through = {rule for rule in have.rules if rule in active(want.rules).values()}
    state = have
    for change in changes:
        if change.kind in ("rule", "route", "address") and change.before is not None:
            assert change.before in owned
        state = plan.predict(state, [change])
        assert stays <= {route.key for route in state.routes}
        assert through <= set(state.rules)
    adds = [i for i, change in enumerate(changes) if change.verb != "remove" and change.kind in ("rule", "route")]
    removals = [i for i, change in enumerate(changes) if change.verb == "remove" and change.kind in ("rule", "route")]
    assert not adds or not removals or max(adds) < min(removals)
