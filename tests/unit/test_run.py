# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/run.sh, which runs the stages of ``make test`` and ``make test-all``; the second run of failed kernel tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MAKEFILE = """
good:
\t@true
bad:
\t@false
other:
\t@echo other was here
left right: # each waits for the other
\t@echo $@ begins
\t@touch $@ && while [ ! -e left ] || [ ! -e right ]; do sleep 0.01; done
\t@echo $@ ends
package:
\t@true
packaged:
\t@[ "$$L4PROXY_TEST_PACKAGE" = built ]
unstable:
\t@echo 'unstable: test_of_$@' >>"$$L4PROXY_TEST_UNSTABLE"
slow: # until another stage has failed
\t@until grep -q FAILED .build/stages/results; do sleep 0.01; done
"""


@pytest.fixture
def run(tmp_path):
    """Run stages of the Makefile above; it returns the exit status and the lines of the output."""
    (tmp_path / "tests").mkdir()
    shutil.copy(TESTS / "run.sh", tmp_path / "tests")
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")

    def run(stages, **variables):
        inherited = ("MAKEFLAGS", "KEEP_GOING", "L4PROXY_TEST_PACKAGE")
        environment = {key: value for key, value in os.environ.items() if key not in inherited}
        command = ["bash", "tests/run.sh", *stages.split()]
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.parametrize(("stages", "variables", "last", "goes_on"), [
    ("good bad other", {}, "1 passed, 1 failed: bad", False),
    ("good bad other", {"KEEP_GOING": "1"}, "2 passed, 1 failed: bad", True),
    ("good [ slow other / bad ] good", {}, "2 passed, 1 failed: bad", False),
    ("good [ slow other / bad ] good", {"KEEP_GOING": "1"}, "4 passed, 1 failed: bad", True),
])  # fmt: skip
def test_no_stage_starts_after_a_failure_unless_told_to_go_on(run, stages, variables, last, goes_on):
    status, lines = run(stages, **variables)
    assert status == 1
    assert lines[-1] == last
    assert ("other was here" in lines) == goes_on


def test_lanes_run_at_the_same_time_and_print_the_output_of_each_stage_in_one_piece(run):
    status, lines = run("[ left / right ] other")
    assert (status, lines[-1]) == (0, "3 passed, 0 failed")
    for stage in ("left", "right"):
        start = lines.index(f"=== {stage}")
        assert lines[start + 1 : start + 3] == [f"{stage} begins", f"{stage} ends"]


def test_all_stages_use_the_package_that_was_built_first(run):
    assert run("package [ packaged / packaged ] packaged")[1][-1] == "4 passed, 0 failed"


def test_unstable_tests_are_named_above_the_closing_line_and_forgotten_at_the_next_run(run):
    assert run("[ unstable / unstable ] good")[1][-3:] == ["unstable: test_of_unstable", "", "3 passed, 0 failed"]
    assert "unstable: test_of_unstable" not in run("good")[1]


MARKED = """
import pytest
@pytest.mark.parametrize("number", range({failing} + 1))
def test_x(number, worker_id):
    first = worker_id != "master"
    assert number == {failing} or (not first and {passes_alone})
"""


@pytest.mark.parametrize(("failing", "passes_alone", "status", "runs_again"), [
    (5, True, 0, True),
    (5, False, 1, True),
    (6, True, 1, False),
])  # fmt: skip
def test_up_to_five_failed_kernel_tests_run_once_more_and_alone(tmp_path, failing, passes_alone, status, runs_again):
    (tmp_path / "test_x.py").write_text(MARKED.format(failing=failing, passes_alone=passes_alone), encoding="utf-8")
    note = tmp_path / "note"
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "L4PROXY_TEST_UNSTABLE": str(note)}
    command = [sys.executable, "-m", "tests.gates.once_more", "-q", "--numprocesses", "1", "test_x.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout
    assert ("once more, alone" in done.stdout) == runs_again, done.stdout
    named = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    assert named == [f"unstable: test_x.py::test_x[{number}]" for number in range(failing)] * (
        runs_again and not status
    )
