# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract code blocks, inline code and tables from the pages in Markdown and RST."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

FENCED = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^\.\. code-block:: (?P<language>\w+)\n\n(?P<text>(?:(?:   .*)?\n)+)", re.MULTILINE)
ROW = re.compile(r"^   \* - ``(\w+)``\n     -(?: (.*))?$", re.MULTILINE)
LITERAL_ROW = re.compile(r"^   \* - (.+)\n     - ``(.+)``$", re.MULTILINE)
LITERAL = re.compile(r"(`{1,2})(?P<text>[^`\n]+)\1")


@dataclass(frozen=True)
class Block:
    """A code block: its file, line, language and text."""

    path: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def pages() -> list[Path]:
    """Return the pages for users and contributors, except generated ones."""
    top = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/README.md"]
    found = [REPOSITORY / name for name in top]
    return [*found, *sorted(REPOSITORY.glob("roles/*/README.md")), *sorted(REPOSITORY.glob("docs/docsite/rst/*.rst"))]


def blocks(path: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(REPOSITORY))
    pattern = DIRECTIVE if path.suffix == ".rst" else FENCED
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found["language"], textwrap.dedent(found["text"]))
        for found in pattern.finditer(text)
    ]


def code(path: Path) -> Iterator[str]:
    """Yield all code of a page, inline and in blocks, line by line."""
    text = path.read_text(encoding="utf-8")
    for block in blocks(path):
        yield from block.text.splitlines()
    for found in LITERAL.finditer(FENCED.sub("", text)):
        yield found["text"]


def table(path: Path, section: str) -> dict[str, str]:
    """Return the table of keys in a section of an RST page: each key with the first line of the next cell."""
    return dict(ROW.findall(section_of(path, section)))


def literals(path: Path, section: str) -> dict[str, str]:
    """Return the rows of a table whose second cell is code: the first cell, with that code."""
    return dict(LITERAL_ROW.findall(section_of(path, section)))


def section_of(path: Path, section: str) -> str:
    """Return the text of a section of an RST page."""
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(section)}\n-+\n(.*?)(?=^[^\n]+\n---+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{path} has no section {section!r}")
    return found[1]
