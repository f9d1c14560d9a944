# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_auto import (
    Situation,
    applied_strategy,
    choose,
)

from tests.unit.tables import rows

FACTS = [
    ("one address, a default route", Situation(), "mark"),
    ("addresses for the proxies", Situation(dedicated=True), "address"),
    ("addresses, and no default route", Situation(dedicated=True, without_default=("IPv4",), udp=True), "address"),
    ("no default route, TCP", Situation(without_default=("IPv6",)), "fwmark_accept"),
    ("sticky, though there are addresses now", Situation(applied="mark", dedicated=True), "mark"),
    ("sticky, though the default route is gone", Situation(applied="mark", without_default=("IPv4",), udp=True),
     "mark"),
    ("sticky, though there is a default route now", Situation(applied="fwmark_accept"), "fwmark_accept"),
]  # fmt: skip


@pytest.mark.parametrize(("situation", "expected"), **rows(FACTS))
def test_auto_chooses_by_the_situation(situation, expected):
    assert choose("b", "auto", situation).strategy == expected


@pytest.mark.parametrize("wanted", ["mark", "address", "fwmark_accept"])
def test_a_strategy_that_is_set_replaces_the_applied_one(wanted):
    choice = choose("b", wanted, Situation(applied="mark"))
    assert (choice.strategy, choice.reason) == (wanted, "return_path_strategy sets it")


@pytest.mark.parametrize(("wanted", "situation", "sentence"), [
    ("auto", Situation(without_default=("IPv4",), udp=True),
     "without an IPv4 default route the UDP replies of mark are lost"),
    ("tunnel", Situation(), "'tunnel' is not a strategy of this version; use mark, address"),
])  # fmt: skip
def test_a_choice_that_does_not_work_and_an_unknown_strategy_are_refused(wanted, situation, sentence):
    with pytest.raises(DerivationError, match=sentence):
        choose("b", wanted, situation)


BY_ADDRESS = {"rules": [{"src": "198.18.0.121"}], "marks": []}
BY_MARK = {"rules": [{"fwmark": 11}], "marks": [{"id": 11}]}
BY_SOCKET = {"rules": [{"fwmark": 11}], "marks": [{"id": 11, "conntrack": False}]}
OLD = {key: [{**one, "retiring": True} for one in objects] for key, objects in BY_ADDRESS.items()}
APPLIED = [
    ("nothing", None, None),
    ("an empty document", {}, None),
    ("addresses", BY_ADDRESS, "address"),
    ("marks", BY_MARK, "mark"),
    ("marks without conntrack", BY_SOCKET, "fwmark_accept"),
    ("marks, with addresses that are retiring", {key: OLD[key] + BY_MARK[key] for key in BY_MARK}, "mark"),
    ("nothing but what is retiring", OLD, None),
]


@pytest.mark.parametrize(("document", "expected"), **rows(APPLIED))
def test_the_applied_strategy_is_read_from_the_document(document, expected):
    assert applied_strategy(document) == expected
