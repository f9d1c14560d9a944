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
MAKEFILE = "good:\n\t@true\nbad:\n\t@false\nother:\n\t@echo other was here\n"


def run(directory, keep_going):
    (directory / "tests").mkdir()
    shutil.copy(TESTS / "run.sh", directory / "tests")
    (directory / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "KEEP_GOING")}
    command = ["bash", "tests/run.sh", "good", "bad", "other"]
    return subprocess.run(
        command, cwd=directory, env={**environment, **keep_going}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("keep_going", "last", "goes_on"),
    [({}, "1 passed, 1 failed: bad", False), ({"KEEP_GOING": "1"}, "2 passed, 1 failed: bad", True)],
)
def test_the_first_failure_ends_the_run_unless_told_to_go_on(tmp_path, keep_going, last, goes_on):
    done = run(tmp_path, keep_going)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == last
    assert ("other was here" in done.stdout) == goes_on
