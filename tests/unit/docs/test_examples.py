# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/docs/examples.py notices examples that fail, change something twice, or are not tasks."""

from __future__ import annotations

import pytest

from tests.docs import examples

TASKS = [{"name": "Set it", "trueip.l4proxy.thing": {}}, {"name": "Go on", "ansible.builtin.debug": {}}]
CHANGES = {"doc": {"attributes": {"diff_mode": {"support": "full"}}}}
READ_ONLY = {"doc": {"attributes": {"diff_mode": {"support": "N/A"}}}}
GOOD = {"check: Set it": "changed", "run: Set it": "changed", "again: Set it": "ok", "run: Go on": "ok"}


def output(became):
    parts = [f"TASK [{name}] {'*' * 9}\n{word}: [a]\n\n" for name, word in became.items() if word]
    return "PLAY [x] ***\n\n" + "".join(parts) + "PLAY RECAP ****\na : ok=1 changed=1\n"


FAULTY = [
    (CHANGES, {}, []),
    (CHANGES, {"again: Set it": "changed"}, ["Set it: changed in its second run, expected ok"]),
    (CHANGES, {"check: Set it": "ok"}, ["Set it: check mode says ok, the run changed"]),
    (CHANGES, {"run: Go on": "skipping"}, ["Go on: skipping, expected it to run"]),
    (CHANGES, {"run: Go on": None}, ["Go on: None, expected it to run"]),
    (CHANGES, {"run: Set it": "ok"},
     ["Set it: ok in its first run, expected changed", "Set it: check mode says changed, the run ok"]),
    (READ_ONLY, {"check: Set it": "skipping", "run: Set it": "ok"}, []),
    (READ_ONLY, {}, ["Set it: changed in its first run, expected ok"]),
]  # fmt: skip


@pytest.mark.parametrize(("documentation", "change", "expected"), FAULTY)
def test_what_the_three_runs_show_to_be_wrong_is_reported(documentation, change, expected):
    assert examples.faults("thing", documentation, TASKS, output({**GOOD, **change})) == expected


def test_state_absent_may_change_nothing_in_its_first_run():
    tasks = [{"name": "Set it", "trueip.l4proxy.thing": {"state": "absent"}}]
    never = {"check: Set it": "ok", "run: Set it": "ok", "again: Set it": "ok"}
    assert examples.faults("thing", CHANGES, tasks, output(never)) == []
    assert examples.faults("thing", CHANGES, tasks, output(GOOD)) == []


def test_the_result_of_a_loop_is_that_of_its_worst_item():
    text = "TASK [run: x] ****\nok: [a] => (item=1)\nchanged: [a] => (item=2)\nok: [a] => (item=3)\n\nTASK [y] ***\n"
    assert examples.outcomes(text) == {"run: x": "changed", "y": "nothing"}


def test_a_plugin_without_an_example_is_reported():
    (found,) = examples.faults("other", CHANGES, TASKS[1:], output({"run: Go on": "ok"}))
    assert found == "no example uses trueip.l4proxy.other"


def test_only_tasks_of_the_plugin_itself_run_three_times():
    (play,) = examples.play("thing", "a", TASKS)
    assert [task["name"] for task in play["tasks"]] == ["check: Set it", "run: Set it", "again: Set it", "run: Go on"]
    assert [task.get("check_mode") for task in play["tasks"]] == [True, None, None, None]


@pytest.mark.parametrize("text", ["", "a: b", "- a: b", "- {name: x, a: b}\n- {name: x, c: d}"])
def test_examples_that_are_not_a_list_of_named_tasks_are_refused(text):
    with pytest.raises(ValueError, match=r"EXAMPLES must be a list of tasks|two examples have the same name"):
        examples.tasks({"examples": text})
