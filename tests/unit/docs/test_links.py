# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The link checker reports broken links and no others."""

from __future__ import annotations

import pytest

from tests.docs import links

INDEX = """<html><head><link rel="stylesheet" href="style.css?v=1"></head><body id="top">
<a href="other.html#there">there</a> <a href="#top">up</a> <a href="sub/">directory</a>
<a href="https://example.org/x#y">elsewhere</a> <img src="data:,x"> <a href="mailto:a@example.org">mail</a>
</body></html>"""
OTHER = '<a name="there"></a><a href="index.html">back</a>'

GOOD = {"index.html": INDEX, "other.html": OTHER, "style.css": "", "sub/index.html": '<a href="../index.html">up</a>'}

BAD = [
    ({"other.html": None}, "index.html:2: other.html#there: no such file"),
    ({"other.html": "<p>"}, "index.html:2: other.html#there: other.html has no anchor there"),
    ({"style.css": None}, "index.html:1: style.css?v=1: no such file"),
    ({"sub/index.html": None}, "index.html:2: sub/: no such file"),
    ({"a.html": '<img src="no.svg">'}, "a.html:1: no.svg: no such file"),
    ({"a.html": '<a href="../x.html">'}, "a.html:1: ../x.html: leads out of the directory"),
    ({"a.html": '<a href="https:///x">'}, "a.html:1: https:///x: has no host"),
    ({"a.html": '<a href="http://b/x y">'}, "a.html:1: http://b/x y: contains a space"),
    ({"a.html": '<a href="foo:bar">'}, "a.html:1: foo:bar: scheme foo is not http, https, mailto or data"),
]


def write_files(root, files):
    for name, text in files.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return root


def test_a_site_without_broken_links_has_no_faults(tmp_path):
    assert list(links.Site(write_files(tmp_path, GOOD), ".html").faults()) == []


@pytest.mark.parametrize(("change", "expected"), BAD)
def test_each_broken_link_of_a_site_is_reported(tmp_path, change, expected):
    assert list(links.Site(write_files(tmp_path, {**GOOD, **change}), ".html").faults()) == [expected]


MARKDOWN = """# One `heading`, and more!
[file](other.md) [anchor](other.md#two) ![picture](p.svg) [self](#one-heading-and-more) [![badge](p.svg)](other.md)
[elsewhere](https://example.org/) `[code](nowhere.md)`
```
[fenced](nowhere.md)
# no heading
```
"""
GOOD_MARKDOWN = {"a.md": MARKDOWN, "other.md": "## Two\n", "p.svg": "", ".build/x.md": "[not ours](gone.md)"}

BAD_MARKDOWN = [
    ("[x](gone.md)", "b.md:1: gone.md: no such file"),
    ("\n[x](<gone.md>)", "b.md:2: gone.md: no such file"),
    ("[x](other.md#three)", "b.md:1: other.md#three: other.md has no anchor three"),
    ("[x](a.md#no-heading)", "b.md:1: a.md#no-heading: a.md has no anchor no-heading"),
    ('[![b](gone.svg)](a.md "title")', "b.md:1: gone.svg: no such file"),
]


def test_links_in_markdown_code_are_not_checked(tmp_path):
    site = links.Site(write_files(tmp_path, GOOD_MARKDOWN), ".md")
    assert list(site.faults()) == []
    assert len(site.page(tmp_path / "a.md").links) == 7


@pytest.mark.parametrize(("text", "expected"), BAD_MARKDOWN)
def test_each_broken_link_of_markdown_is_reported(tmp_path, text, expected):
    site = links.Site(write_files(tmp_path, {**GOOD_MARKDOWN, "b.md": text}), ".md")
    assert list(site.faults()) == [expected]


def test_the_command_prints_broken_links_and_fails(tmp_path, capsys):
    write_files(tmp_path, GOOD)
    assert links.main(["site", str(tmp_path)]) == 0
    write_files(tmp_path, {"a.html": '<a href="gone.html">'})
    assert links.main(["site", str(tmp_path)]) == 1
    assert "a.html:1: gone.html: no such file" in capsys.readouterr().err
    assert links.main(["markdown", str(tmp_path)]) == 1
    assert "has no *.md" in capsys.readouterr().err
