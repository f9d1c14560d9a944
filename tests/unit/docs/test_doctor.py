# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pages that name the doctor's checks, and tests: what they name exists, and nothing is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.registry import CHECKS

ROOT = Path(__file__).resolve().parents[3]
DOCTOR = (ROOT / "docs" / "docsite" / "rst" / "doctor.rst").read_text(encoding="utf-8")
HEADING = r"^(\w+)\n~+\n"
KERNEL = (ROOT / "tests" / "kernel" / "README.md").read_text(encoding="utf-8")
ENDS = {"any": "Any host", "backend": "Backends", "proxy": "Proxies"}


def test_the_doctors_page_has_every_check_in_order():
    assert re.findall(HEADING, DOCTOR, re.MULTILINE) == [check.id for check in CHECKS]


def test_it_says_where_and_when_each_runs():
    described = re.findall(rf"{HEADING}\n\*([^*]+)\.\*", DOCTOR, re.MULTILINE)
    early = {True: ", also before the first change", False: ""}
    assert described == [(check.id, ENDS[check.end] + early[check.early]) for check in CHECKS]


def test_it_gives_every_remedy():
    sections = re.split(HEADING, DOCTOR, flags=re.MULTILINE)[2::2]
    assert [section for section in sections if "Fix: " not in " ".join(section.split())] == []
    assert len(sections) == len(CHECKS)


def test_the_kernel_tests_page_has_every_check_and_no_other():
    assert set(re.findall(r"doctor `(\w+)`", KERNEL)) == {check.id for check in CHECKS}


def _tests(name: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / "kernel" / name).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_it_names_exists():
    named = set(re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", KERNEL))
    assert len(named) > 50
    assert [f"{file}::{test}" for file, test in sorted(named) if test not in _tests(file)] == []


def test_every_id_of_a_parameter_it_names_exists():
    guard = (ROOT / "tests" / "kernel" / "return_path" / "test_guard.py").read_text(encoding="utf-8")
    for words in re.findall(r"\[([a-z +…]+)\](?!\()", KERNEL):
        for part in words.strip("…").split("+"):
            assert f'"{part}"' in guard, part
