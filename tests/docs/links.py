# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the links of a built site, and the links between Markdown files of this repository.

    python -m tests.docs.links site DIRECTORY        HTML files: pages, anchors, pictures, style sheets
    python -m tests.docs.links markdown DIRECTORY    *.md files: files and headings

Of links that leave the directory it checks only the form, so it needs no network. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes that name another resource, by tag.
LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src", "object": "data", "source": "src"}

#: Directories whose Markdown is not ours.
NOT_OURS = {".build", ".git", ".ansible", "node_modules", ".pytest_cache", ".ruff_cache"}

#: Schemes of external links: with a host, and without.
WITH_HOST, WITHOUT_HOST = {"http", "https"}, {"mailto", "data"}

FENCE = re.compile(r"^\s*(```|~~~)")
# The end of a link: its text may be a picture with another link.
MARKDOWN_LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
MARKDOWN_CODE = re.compile(r"(`+)(.+?)\1")


@dataclass
class Page:
    """The links of a file, as (line, target), and its anchors."""

    links: list[tuple[int, str]] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.page.anchors.update(
            value for key in ("id", "name") if (value := attributes.get(key)) and (key == "id" or tag == "a")
        )
        target = attributes.get(LINKS.get(tag, ""))
        if target is not None:
            self.page.links.append((self.getpos()[0], target))


def html_page(text: str) -> Page:
    """Read the links and anchors of an HTML page."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    return parser.page


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading: lower case, punctuation dropped, a hyphen for each space."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def markdown_page(text: str) -> Page:
    """Read the inline links and the headings of a Markdown page, except in code."""
    page, fenced = Page(), False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            if found := HEADING.match(line):
                page.anchors.add(slug(found[2]))
            page.links += [(number, target) for target in MARKDOWN_LINK.findall(MARKDOWN_CODE.sub("`code`", line))]
    return page


def malformed(target: str) -> str | None:
    """Return what is wrong with an external link; None if it is well formed or internal."""
    try:
        parts = urlsplit(target)
    except ValueError as error:
        return str(error)
    if re.search(r"\s", target):
        return "contains a space"
    if parts.scheme in WITH_HOST:
        return None if parts.hostname and "." in parts.hostname else "has no host"
    if parts.scheme and parts.scheme not in WITHOUT_HOST:
        return f"scheme {parts.scheme} is not http, https, mailto or data"
    return None


class Site:
    """The pages of one kind below a directory, read once each."""

    def __init__(self, root: Path, suffix: str) -> None:
        self.root, self.suffix = root.resolve(), suffix
        self.read = html_page if suffix == ".html" else markdown_page
        self._pages: dict[Path, Page] = {}

    def files(self) -> list[Path]:
        """Return the paths of the pages to check."""
        found = self.root.rglob(f"*{self.suffix}")
        return sorted(path for path in found if not NOT_OURS & set(path.relative_to(self.root).parts))

    def page(self, path: Path) -> Page:
        """Return one page."""
        if path not in self._pages:
            self._pages[path] = self.read(path.read_text(encoding="utf-8"))
        return self._pages[path]

    def faults(self) -> Iterator[str]:
        """Yield a line for each broken link: file, line, target, what is wrong."""
        for path in self.files():
            for line, target in self.page(path).links:
                wrong = malformed(target) or self._broken(path, target)
                if wrong:
                    yield f"{path.relative_to(self.root)}:{line}: {target}: {wrong}"

    def _broken(self, path: Path, target: str) -> str | None:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            return None
        there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not there.is_relative_to(self.root):
            return "leads out of the directory"
        if there.is_dir() and self.suffix == ".html":
            there /= "index.html"
        if not there.exists():
            return "no such file"
        anchor = unquote(parts.fragment)
        if anchor and there.suffix == self.suffix and anchor not in self.page(there).anchors:
            return f"{there.relative_to(self.root)} has no anchor {anchor}"
        return None


def main(arguments: list[str] | None = None) -> int:
    """Check one directory.

    :returns: 0, or 1 after printing every broken link; 1 as well where there is nothing to check.
    """
    parser = argparse.ArgumentParser(description="find broken links")
    parser.add_argument("kind", choices=["site", "markdown"])
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    site = Site(options.directory, ".html" if options.kind == "site" else ".md")
    files = site.files()
    faults = list(site.faults()) if files else [f"{options.directory} has no *{site.suffix}"]
    for fault in faults:
        print(fault, file=sys.stderr)
    links = sum(len(site.page(path).links) for path in files)
    print(f"{len(files)} files, {links} links, {len(faults)} broken")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
