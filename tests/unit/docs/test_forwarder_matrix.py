# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page that says which test shows what of the forwarder: it names every test, and is right about families."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

KERNEL = Path(__file__).resolve().parents[2] / "kernel"
PAGE = (KERNEL / "FORWARDER.md").read_text(encoding="utf-8")
#: (file, test, whether it is marked as about IPv4 alone) of everything the page names.
NAMED = sorted(set(re.findall(r"`(\w+)::(\w+)`(¹?)", PAGE)))
#: Arguments that make a test run for each family.
BY_FAMILY = {"family", "ends", "ask"}
#: What a test, or what it calls, has in its text when it looks at IPv6 as well.
IPV6 = re.compile(r"ipv6|::1|FAMILIES|families")


def _path(name: str) -> Path:
    own = KERNEL / "forwarder" / f"test_{name}.py"
    return own if own.exists() else KERNEL / "return_path" / f"test_{name}.py"


@cache
def _definitions(path: Path) -> dict[str, tuple[ast.AST, str]]:
    """Functions and classes of a file with their text, decorators included."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name] = node, "\n".join(lines[first - 1 : node.end_lineno])
    return found


def _tests(path: Path) -> set[str]:
    return {name.removeprefix("test_") for name in _definitions(path) if name.startswith("test_")}


def test_every_test_it_names_exists():
    assert len(NAMED) > 100
    assert [f"{file}::{test}" for file, test, _mark in NAMED if test not in _tests(_path(file))] == []
    in_full = re.findall(r"`(\w+/test_\w+\.py)::(\w+)`", PAGE)
    assert [f"{file}::{test}" for file, test in in_full if test not in _definitions(KERNEL / file)] == []


def test_no_test_of_the_forwarder_is_missing():
    there = {
        f"{path.stem.removeprefix('test_')}::{test}"
        for path in KERNEL.glob("forwarder/test_*.py")
        for test in _tests(path)
    }
    assert there - {f"{file}::{test}" for file, test, _mark in NAMED} == set()


def test_a_test_is_marked_in_one_way():
    assert len({(file, test) for file, test, _mark in NAMED}) == len(NAMED)


@pytest.mark.parametrize(("file", "test"), [(file, test) for file, test, mark in NAMED if not mark])
def test_what_has_no_mark_is_shown_over_ipv6_as_well(file, test):
    definitions = _definitions(_path(file))
    node, text = definitions[f"test_{test}"]
    if {argument.arg for argument in node.args.args} & BY_FAMILY:
        return
    called = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    assert IPV6.search("\n".join([text, *(definitions[name][1] for name in called & set(definitions))]))
