# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Contested repairs and silent proxies in the keeper's state file."""

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import keeper
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Contest, Silent

LAST = {"owner": "return_path", "changes": ["add ip rule 1100"], "who": "firewalld"}


@pytest.mark.parametrize(("state", "expected"), [
    ({"undone": 2, "last_repair": LAST}, Contest(2, "return_path", ("add ip rule 1100",), "firewalld")),
    ({"undone": 2, "last_repair": None}, Contest(2)),
    ({"undone": 0, "last_repair": LAST}, None),
    ({}, None),
    ([], None),
])  # fmt: skip
def test_a_contest_is_read_and_an_unreadable_file_has_none(tmp_path, state, expected):
    file = tmp_path / "state.json"
    file.write_text(json.dumps(state))
    assert keeper.contest(str(file)) == expected
    file.write_text("{")
    assert keeper.contest(str(file)) is None
    assert keeper.contest(str(tmp_path / "none")) is None


@pytest.mark.parametrize(("state", "expected"), [
    ({"silent": [{"proxy": "a", "address": "198.18.0.11", "since": "2026"}]}, (Silent("a", "198.18.0.11", "2026"),)),
    ({}, ()),
    ({"silent": [{}]}, ()),
    ([], ()),
])  # fmt: skip
def test_proxies_that_do_not_answer_are_read(tmp_path, state, expected):
    file = tmp_path / "state.json"
    file.write_text(json.dumps(state))
    assert keeper.silent(str(file)) == expected
