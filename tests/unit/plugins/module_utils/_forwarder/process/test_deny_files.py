# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import deny_table
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission.deny_table import Table, show
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import (
    ban_records,
    deny_files,
    kernel_bans,
)

TEST_WRONG = [
    (b"192.0.2.1\n\n192.0.2.0/33 # x\n", "line 3: '192.0.2.0/33' has no prefix length from 0 to 32"),
    (b"\xe4\n", "line 1: it is not ASCII text"),
    (b"x" * 100_000, f"line 1: '{'x' * 60}' is neither an address nor a network, such as 192.0.2.0/24"),
    (b"\0", "line 1: '\\x00' is neither an address nor a network, such as 192.0.2.0/24"),
]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build a table of files with these texts; return (result, networks). None: there is no file."""
    monkeypatch.setattr(deny_files.os, "nice", lambda _by: None)
    copies = {}

    def run(**texts):
        jobs = []
        for name, text in texts.items():
            path = tmp_path / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_bytes(text)
            jobs.append((str(path), copies.get(name), os.memfd_create(name)))
        memory = os.memfd_create("table")
        result = json.loads(deny_files.build(jobs, memory))
        for (path, _copy, new), name in zip(jobs, texts):
            if "error" not in result["files"][path]:
                copies[name] = new
        spans = {key: list(found) for key, found in Table(memory).scopes.items()}
        return [one.get("error") for one in result["files"].values()], spans

    return run


@pytest.mark.parametrize(("text", "error"), [*TEST_WRONG, (None, "cannot be read: No such file or directory")])
def test_a_wrong_file_keeps_its_list_and_disturbs_no_other(build, text, error):
    errors, before = build(one=b"# a list\n192.0.2.0/25 ; here\r\n192.0.2.128/25\n", two=b"2001:db8::/32\n")
    assert errors == [None, None]
    assert [show(family, first, 32) for (_scope, family), [(first, *_more)] in before.items()] == [
        "192.0.2.0",
        "2001:db8::/32",
    ]
    assert build(one=text, two=b"2001:db8::/32\n") == ([error, None], before)
    assert build(one=b"", two=b"")[1] == {}


def test_a_pipe_is_no_file(build, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(deny_files.Wrong, match="is not a regular file"):
        deny_files._copy(str(tmp_path / "pipe"), os.memfd_create("x"))


GOOD = ["", "192.0.2.0/24", None, "why", 1]


@pytest.mark.parametrize(("records", "reason"), [
    ({}, "is not a list"),
    ([GOOD[:4]], r"is not \[service"),
    ([["", "192.0.2.0/24", True, "", 1]], r"is not \[service"),
    ([["", "192.0.2.1/24", None, "", 1]], "has host bits"),
    ([["", "192.0.2.1", 1 << 32, "", 1]], "no second"),
])  # fmt: skip
def test_bans_in_a_state_file_are_checked(records, reason):
    ban_records.check_records([GOOD])
    with pytest.raises(ValueError, match=reason):
        ban_records.check_records(records)


def test_what_is_protected_is_not_in_the_list_for_the_kernel():
    """The same of a network in a file, which may contain a backend."""
    keys = {"ipv4": [], "ipv6": []}
    for text in ("10.0.0.0/8", "192.0.2.1", "192.0.2.3"):
        family, first, length = deny_table.parse(text)
        keys[family].append(deny_table.key(first, length, 7))
    memory = os.memfd_create("table")
    deny_table.write({"web": keys}, memory)
    found, too_long = kernel_bans.document({"bans": Table(memory)}, ["10.1.0.0/16", "10.1.1.1", "192.0.2.3", "::1"])
    (one,) = found["lists"]
    spans = [("10.0.0.0", "10.0.255.255"), ("10.2.0.0", "10.255.255.255"), ("192.0.2.1", "192.0.2.1")]
    assert one["ranges"] == [[*span, 7] for span in spans]
    assert (one["source"], one["service"], one["family"], too_long) == ("bans", "web", "ipv4", [])
