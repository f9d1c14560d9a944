# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every kernel test of the forwarder covers IPv6 too, unless it has the mark ``ipv4_only``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FORWARDER = Path(__file__).resolve().parents[1] / "kernel" / "forwarder"
FILES = sorted(FORWARDER.glob("test_*.py"))
#: Fixtures that run a test once for each family.
BY_FAMILY = {"family", "ends", "ask", "many"}
#: What the text of a test, or of a function it calls, contains when it uses IPv6 as well.
IPV6 = re.compile(r'ipv6|"::"|::1|FAMILIES|families')


def _definitions(path: Path) -> dict[str, tuple[ast.AST, str]]:
    """Functions and classes of a file with their text, decorators included."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    definitions = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            definitions[node.name] = node, "\n".join(lines[first - 1 : node.end_lineno])
    return definitions


def _covers_ipv6(node: ast.AST, text: str, definitions: dict[str, tuple[ast.AST, str]]) -> bool:
    if {argument.arg for argument in node.args.args} & BY_FAMILY:
        return True
    called = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} & set(definitions)
    return bool(IPV6.search("\n".join([text, *(definitions[name][1] for name in called)])))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_test_of_the_forwarder_covers_ipv6_or_is_marked_ipv4_only(path):
    definitions = _definitions(path)
    tests = {name: found for name, found in definitions.items() if name.startswith("test_")}
    unmarked = {name: found for name, found in tests.items() if "@pytest.mark.ipv4_only" not in found[1]}
    assert tests
    assert [name for name, found in unmarked.items() if not _covers_ipv6(*found, definitions)] == []
