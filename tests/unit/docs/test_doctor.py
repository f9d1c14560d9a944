# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The doctor's page and the page of kernel tests name each check, and only checks and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.registry import CHECKS

ROOT = Path(__file__).resolve().parents[3]
DOCTOR = (ROOT / "docs" / "docsite" / "rst" / "doctor.rst").read_text(encoding="utf-8")
HEADING = r"^(\w+)\n~+\n"
KERNEL = (ROOT / "tests" / "kernel" / "README.md").read_text(encoding="utf-8")
ENDS = {"any": "Any host", "backend": "Backends", "proxy": "Proxies", "kernel": "Proxies with kernel services"}


def test_the_doctors_page_describes_each_check_in_order_with_where_it_runs_and_a_fix():
    assert re.findall(HEADING, DOCTOR, re.MULTILINE) == [check.id for check in CHECKS]
    described = re.findall(rf"{HEADING}\n\*([^*]+)\.\*", DOCTOR, re.MULTILINE)
    early = {True: ", also before the first change", False: ""}
    assert described == [(check.id, ENDS[check.runs_on] + early[check.preflight]) for check in CHECKS]
    sections = re.split(HEADING, DOCTOR, flags=re.MULTILINE)[2::2]
    assert [section for section in sections if "Fix: " not in " ".join(section.split())] == []
    assert len(sections) == len(CHECKS)


def _column(number: int) -> str:
    """Return a column of the table of failures as text."""
    rows = KERNEL[KERNEL.index("| failure |") :].splitlines()[2:]
    return "\n".join(row.split("|")[number] for row in rows)


def test_the_page_of_kernel_tests_names_each_check_and_only_files_that_exist():
    assert set(re.findall(r"`(\w+)`", _column(2))) == {check.id for check in CHECKS}
    files = set(re.findall(r"`(\w+/test_\w+\.py)", _column(3)))
    assert len(files) > 15
    assert [name for name in sorted(files) if not (ROOT / "tests" / "kernel" / name).exists()] == []
