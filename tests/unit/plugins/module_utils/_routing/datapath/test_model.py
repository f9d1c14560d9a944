# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in the live table, and what is not touched. tests/kernel/datapath loads it into the kernel."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import (
    Chain,
    Late,
    Live,
    Table,
    steps,
    transaction,
)

NAT = ("nat", "prerouting", -100)
HERE = "inet l4proxy_datapath"


def live(table):
    """The live table after ``table`` was written."""
    chains = {name: (chain.hook, tuple(chain.digests)) for name, chain in table.chains.items()}
    return Live(True, False, frozenset(table.counters), frozenset(table.sets), chains)


def table(**changes):
    chains = {"dispatch": Chain(NAT, ["goto web"]), "web": Chain(None, ["counter name new", "accept"])}
    return Table({"new"}, {"clients": "type ipv4_addr;"}, {**chains, **changes})


def commands(before, after):
    return [line.partition(" comment")[0].replace(HERE, "").split() for line in transaction(before, after).splitlines()]


def test_what_is_the_same_is_not_touched():
    assert transaction(live(table()), table()) == ""
    assert commands(live(table()), table(web=Chain(None, ["accept"]))) == [
        ["add", "table"],
        ["flush", "chain", "web"],
        ["add", "rule", "web", "accept"],
    ]


def test_a_chain_is_added_before_rules_go_to_it_and_deleted_after_them():
    found = commands(live(table()), Table({"old", "new"}, {}, {"dispatch": Chain(NAT, ["goto x"]), "x": Chain()}))
    assert found == [
        ["add", "table"],
        ["flush", "chain", "dispatch"],
        ["flush", "chain", "web"],
        ["add", "counter", "old"],
        ["add", "chain", "x"],
        ["add", "rule", "dispatch", "goto", "x"],
        ["delete", "chain", "web"],
        ["delete", "set", "clients"],
    ]


def test_a_hook_that_somebody_has_changed_is_put_back():
    changed = Live(**{**vars(live(table())), "chains": {**live(table()).chains, "dispatch": (None, ())}})
    found = commands(changed, table())
    assert [words[:3] for words in found[1:4]] == [
        ["flush", "chain", "dispatch"],
        ["delete", "chain", "dispatch"],
        ["add", "chain", "dispatch"],
    ]


def test_no_services_no_table():
    assert transaction(Live(), Table()) == ""
    assert transaction(live(table()), Table()) == f"delete table {HERE}\n"
    assert transaction(Live(True, True), table()).startswith(f"add table {HERE}\n")


def test_an_expensive_rule_is_made_only_to_be_written():
    made = []
    late = Late("key", lambda: made.append(1) or "accept")
    before = table(web=Chain(None, [late]))
    assert transaction(live(before), before) == ""
    assert not made
    assert "accept" in transaction(Live(), before)
    assert made


def test_many_expensive_chains_are_written_after_what_open_connections_need():
    def with_late(count, key, **more):
        late = {f"late{number}": Chain(None, [Late(f"{key}{number}", lambda: "accept")]) for number in range(count)}
        return table(**late, **more)

    assert len(steps(Live(), with_late(4, "a"))) == 1
    first, *others = steps(Live(), with_late(9, "a"))
    assert f"add rule {HERE} late0 drop" in first
    assert "goto web" in first
    assert "late0 accept" not in first
    assert [part.count("flush chain") for part in others] == [4, 4, 1]
    # Later only these chains change; but one that may go to a chain that is deleted changes at once.
    assert [part.count("flush chain") for part in steps(live(with_late(9, "a")), with_late(9, "b"))] == [4, 4, 1]
    assert len(steps(live(with_late(9, "a", old=Chain())), with_late(9, "b"))) == 1
