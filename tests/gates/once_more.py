# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests of a kernel stage; those that fail run once more, one after the other, with nothing beside them.

    python -m tests.gates.once_more ARGUMENTS    the arguments of pytest

Kernel tests wait for a real kernel and real programs, so a busy machine can fail one. A test that passes the second
time does not fail the stage. Its name is printed, and appended to the file $L4PROXY_TEST_UNSTABLE, which tests/run.sh
reads.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: If more tests fail, the change is to blame and not the machine.
MOST = 5


class Failures:
    """A plugin of pytest: the ids of the tests that failed, each once."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names[report.nodeid] = None


def main(arguments: list[str]) -> int:
    """Return the exit status of pytest; 0 if all tests that failed pass now."""
    failures = Failures()
    status = pytest.main(arguments, plugins=[failures])
    names = list(failures.names)
    if status != pytest.ExitCode.TESTS_FAILED or not 0 < len(names) <= MOST:
        return int(status)
    print("\n=== once more, alone:", *names, sep="\n", flush=True)
    status = subprocess.run([sys.executable, "-m", "pytest", "-q", *names], check=False).returncode
    if status == 0:
        lines = [f"unstable: {name}\n" for name in names]
        print(*lines, sep="", end="", flush=True)
        with open(os.environ.get("L4PROXY_TEST_UNSTABLE", os.devnull), "a", encoding="utf-8") as file:
            file.writelines(lines)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
