# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's status line and state file, beyond what the tests of the loop cover."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.reconcile_pass import PassResult
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.state_file import (
    Repair,
    StateFile,
    timestamp,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import environment

NOON = 1795521600.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "state.json"


def repaired(published: StateFile, *changes: str, who: str = "") -> StateFile:
    published.add_repair(Repair("return_path", changes, NOON, 0.08123, who), ("rule",) * len(changes))
    return published


def test_counts_survive_a_restart(path):
    published = repaired(StateFile(str(path), lambda: NOON, cut=7), "add a", "add b")
    published.write()
    after = StateFile(str(path), lambda: NOON)
    after.load()
    assert (after.total, after.kinds, after.last, after.cut) == (1, {"rule": 2}, None, 7)
    assert after.status_line.endswith("; 1 repair")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "repairs": 3}'])
def test_an_invalid_file_is_ignored(path, content):
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    published = StateFile(str(path))
    published.load()
    assert (published.total, published.restored) == (0, 0)


def test_the_file_is_written_only_if_its_content_changed(path):
    published = repaired(StateFile(str(path), lambda: NOON), "add a", who="by ufw")
    published.write()
    expected = {"owner": "return_path", "changes": ["add a"], "at": "2026-11-24T12:00:00.000Z"}
    expected |= {"seconds": 0.0812, "who": "by ufw"}
    assert json.loads(path.read_text())["last_repair"] == expected
    path.unlink()
    published.write()
    assert not path.exists()
    repaired(published, "add b").write()
    assert path.exists()


def test_without_a_path_nothing_is_written_or_read():
    published = repaired(StateFile(), "add a")
    published.load()
    published.write()
    assert published.total == 1


def test_a_time_of_another_day_is_shown_with_its_date():
    published = repaired(StateFile(None, lambda: NOON + 90000), "add a", who="by ufw")
    published.update(PassResult())
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOON))
    assert published.status_line == f"nothing to keep: no documents; 1 repair, last {day} add a (by ufw)"


def test_a_timestamp_is_rounded_to_the_millisecond():
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(NOON + 0.9996) == "2026-11-24T12:00:01.000Z"


def test_the_archive_is_the_running_one_after_the_link_was_changed(tmp_path, monkeypatch):
    """Otherwise a role that has just installed a new archive would believe that it already runs."""
    old, new, link = tmp_path / "old.pyz", tmp_path / "new.pyz", tmp_path / "l4proxy"
    for archive in (old, new):
        archive.touch()
    link.symlink_to(old)
    monkeypatch.setattr(environment, "__loader__", SimpleNamespace(archive=str(link)))
    made = StateFile(str(tmp_path / "state.json"))
    link.unlink()
    link.symlink_to(new)
    made.write()
    assert json.loads((tmp_path / "state.json").read_text())["archive"] == str(old)
