# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as JSON for nft: rendering and reading back. tests/kernel tests them on a host."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import nft
from hypothesis import given

from .mark_data import MARKS, mark_sets

# What nft 1.0.6 and nft 1.1.3 both list (but for their version) after MARKS were written on kernel 6.18.
LISTING = json.loads(Path(__file__).with_name("nft_listing.json").read_text(encoding="utf-8"))
OWNER = "return_path"
# nft matches next hops, so its guards need no interface.
READ_BACK = tuple(replace(mark, oif=None) for mark in MARKS)


def rules_of(objects: list, chain: str) -> list:
    return [item["rule"] for item in objects if item.get("rule", {}).get("chain") == chain]


def test_the_recorded_listing_is_read_back_as_written():
    assert nft.observe(OWNER, LISTING) == nft.Observed(READ_BACK, True)


@given(mark_sets)
def test_rendered_marks_are_read_back_unchanged(marks):
    assert nft.observe(OWNER, {"nftables": nft.render(OWNER, marks)}) == nft.Observed(marks, bool(marks))


def test_a_transaction_replaces_the_table_at_once_and_adds_chains_before_their_rules():
    commands = nft.transaction(OWNER, MARKS)["nftables"]
    table = {"table": {"family": "inet", "name": "l4proxy_return_path"}}
    assert commands[:3] == [{"add": table}, {"delete": table}, {"add": table}]
    assert nft.transaction(OWNER, ())["nftables"] == [{"add": table}, {"delete": table}]
    kinds = [next(iter(item)) for item in nft.render(OWNER, MARKS)]
    assert kinds == sorted(kinds, key=["table", "chain", "rule"].index)


def test_only_bits_under_the_mask_are_set_and_a_mask_of_all_bits_is_omitted():
    (rule,) = rules_of(nft.render(OWNER, [Mark("x", 0x0300, 0xFF00, (), ("198.18.0.3",))]), "mark_768")
    value = {"|": [{"&": [{"meta": {"key": "mark"}}, 0xFFFF00FF]}, 0x0300]}
    assert rule["expr"][1:] == [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}]
    assert "&" not in json.dumps(nft.render(OWNER, [Mark("x", 3, 0xFFFFFFFF, ("02:00:00:00:00:11",))]))


def test_a_proxy_without_mac_marks_no_connections_but_restores_and_guards():
    objects = nft.render(OWNER, MARKS[1:2])
    assert rules_of(objects, "input") == rules_of(objects, "forward") == []
    for chain, count in (("accepted", 2), ("output", 3), ("prerouting", 1), ("guard_12", 1)):
        assert len(rules_of(objects, chain)) == count, chain


def test_forwarded_packets_are_marked_like_delivered_ones():
    objects = nft.render(OWNER, MARKS[:1])
    for one, number, other in (("input", 0, "forward"), ("output", 1, "prerouting")):
        assert rules_of(objects, one)[number]["expr"] == rules_of(objects, other)[0]["expr"]


@pytest.mark.parametrize("mark", MARKS[4:], ids=lambda mark: mark.name)
def test_without_conntrack_no_rule_uses_it(mark):
    """A rule that does makes the kernel track connections."""
    assert '"ct"' not in json.dumps(nft.render(OWNER, [mark]))


def test_the_mark_is_saved_once_and_in_the_original_direction():
    rule, *_others = rules_of(nft.render(OWNER, MARKS[:3]), "input")
    left = [statement["match"]["left"] for statement in rule["expr"][:2]]
    assert left == [{"ct": {"key": "direction"}}, {"&": [{"ct": {"key": "mark"}}, 255]}]


def without(data: dict, kind: str, **what: object) -> None:
    data["nftables"] = [
        item for item in data["nftables"] if not all(item.get(kind, {}).get(k) == v for k, v in what.items())
    ]


def first(data: dict, chain: str) -> dict:
    return rules_of(data["nftables"], chain)[0]


def put_value(data: dict, chain: str, old: str, new: str) -> None:
    rule = first(data, chain)
    rule["expr"] = json.loads(json.dumps(rule["expr"]).replace(old, new))


PORT_22 = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}
DAMAGE = {
    "a rule gone": lambda data: without(data, "rule", chain="save_11"),
    "a rule more": lambda data: data["nftables"].append(copy.deepcopy({"rule": first(data, "mark_11")})),
    "a chain gone": lambda data: without(data, "chain", name="save_12"),
    "a chain more": lambda data: data["nftables"].append({"chain": {"name": "other"}}),
    "another hook": lambda data: data["nftables"][2]["chain"].update(hook="forward"),
    "another policy": lambda data: data["nftables"][2]["chain"].update(policy="drop"),
    "another mark": lambda data: put_value(data, "mark_11", "11", "12"),
    "another verdict": lambda data: put_value(data, "guard_11", '"drop"', '"accept"'),
    "another sender": lambda data: put_value(data, "input", "00:11", "00:aa"),
    "another next hop": lambda data: put_value(data, "guard_11", "198.18.0.11", "198.18.0.1"),
    "a sender without its chain": lambda data: put_value(data, "input", "save_11", "save_12"),
    "replies not restored": lambda data: without(data, "rule", chain="output"),
    "forwarded replies not restored": lambda data: without(data, "rule", chain="prerouting"),
    "the condition of a guard turned round": lambda data: put_value(data, "guard_11", "!=", "=="),
    "the other direction": lambda data: put_value(data, "prerouting", "reply", "original"),
    "a condition more": lambda data: first(data, "save_11")["expr"].insert(0, PORT_22),
    "the packet's mark for the connection's": lambda data: put_value(data, "save_11", '"ct"', '"meta"'),
    "rules in another order": lambda data: data["nftables"].sort(
        key=lambda item: -item.get("rule", {}).get("handle", 0)
    ),
    "everything gone": lambda data: without(data, "rule", family="inet"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_changed_table_is_not_sound(damage):
    data = copy.deepcopy(LISTING)
    damage(data)
    assert nft.observe(OWNER, data) != nft.Observed(READ_BACK, True)


SAME = {
    "counters and handles": {'"packets": 0': '"packets": 7', '"handle": ': '"handle": 1'},
    "a protocol by number, as without /etc/protocols": {'"right": "udp"': '"right": 17'},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_equivalent_listings_are_sound(changes):
    text = json.dumps(LISTING)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    assert nft.observe(OWNER, json.loads(text)) == nft.Observed(READ_BACK, True)


class Commands:
    """A runner with prepared answers by argument."""

    def __init__(self, **answers: Completed):
        self.answers, self.calls = answers, []

    def __call__(self, argv, stdin=None):
        self.calls.append((list(argv), stdin))
        return self.answers[argv[3] if "list" in argv else "write"]


CHAINS = Completed(0, json.dumps({"nftables": [{"metainfo": {}}, LISTING["nftables"][2]]}), "")


NO_TABLE = Completed(1, "", "Error: No such file or directory")


def test_reading_lists_the_table_of_the_owner():
    run = Commands(table=Completed(0, json.dumps(LISTING), ""))
    assert nft.Nft(run).read(OWNER).marks == READ_BACK
    assert [argv for argv, _stdin in run.calls] == [["nft", "-j", "list", "table", "inet", "l4proxy_return_path"]]


@pytest.mark.parametrize("output", ["", '{"nftables": [{"metainfo": {}}]}'])
def test_without_a_table_there_are_no_marks(output):
    commands = Commands(table=NO_TABLE, chains=Completed(0, output, ""))
    assert nft.Nft(commands).read(OWNER) == nft.Observed((), True)


def test_a_table_that_cannot_be_listed_does_not_count_as_missing():
    with pytest.raises(RoutingError, match="No such file"):
        nft.Nft(Commands(table=NO_TABLE, chains=CHAINS)).read(OWNER)


def test_a_listing_interrupted_by_another_transaction_is_repeated():
    class Changing(Commands):
        def __call__(self, argv, stdin=None):
            answer = super().__call__(argv, stdin)
            self.answers["table"] = Completed(0, json.dumps(LISTING), "")
            return answer

    run = Changing(table=Completed(1, "", "Error: Interrupted system call"), chains=CHAINS)
    assert nft.Nft(run).read(OWNER).marks == READ_BACK


def test_writing_is_one_command_whose_failure_is_reported():
    run = Commands(write=Completed(0, "", ""))
    nft.Nft(run).write(OWNER, MARKS)
    ((argv, stdin),) = run.calls
    assert argv == ["nft", "-j", "-f", "-"]
    assert json.loads(stdin) == nft.transaction(OWNER, MARKS)
    with pytest.raises(RoutingError, match=r"nft -j -f -: Error: no"):
        nft.Nft(Commands(write=Completed(1, "", "Error: no\n"))).write(OWNER, MARKS)


def test_one_id_can_exist_with_and_without_conntrack():
    """During a change from one to the other."""
    tracked = Mark("a", 11, 255, (), ("198.18.0.11",))
    each = Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",), conntrack=False)
    chains = {item["chain"]["name"] for item in nft.render(OWNER, (tracked, each)) if "chain" in item}
    assert {"mark_11", "each_11", "guard_11", "guard_each_11"} <= chains
    seen = nft.observe(OWNER, {"nftables": nft.render(OWNER, (tracked, each))})
    assert (set(seen.marks), seen.sound) == ({tracked, each}, True)
