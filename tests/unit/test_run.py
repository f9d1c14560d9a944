# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/run.sh, which runs the stages of ``make test`` and of ``make test-all``."""

from __future__ import annotations

import os
import shutil
import subprocess
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
