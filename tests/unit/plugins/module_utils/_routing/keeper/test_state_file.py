# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's status line and state file beyond what the loop's tests see."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import state_file as records
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.reconcile_pass import Look
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.state_file import Record, Repair, timestamp

NOON = 1795521600.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "state.json"


def repaired(record: Record, *changes: str, who: str = "") -> Record:
    record.repaired(Repair("return_path", changes, NOON, 0.08123, who), ("rule",) * len(changes))
    return record


def test_counts_go_on_over_a_restart(path):
    record = repaired(Record(str(path), lambda: NOON), "add a", "add b")
    record.write()
    after = Record(str(path), lambda: NOON)
    after.load()
    assert (after.total, after.kinds, after.last) == (1, {"rule": 2}, None)
    assert after.story.endswith("; 1 repair")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "repairs": 3}'])
def test_a_file_that_cannot_be_understood_counts_nothing(path, content):
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    record = Record(str(path))
    record.load()
    assert (record.total, record.restored) == (0, 0)


def test_it_is_written_only_when_it_would_say_something_else(path):
    record = repaired(Record(str(path), lambda: NOON), "add a", who="by ufw")
    record.write()
    assert json.loads(path.read_text())["last_repair"] == {
        "owner": "return_path",
        "changes": ["add a"],
        "at": "2026-11-24T12:00:00.000Z",
        "seconds": 0.0812,
        "who": "by ufw",
    }
    path.unlink()
    record.write()
    assert not path.exists()
    repaired(record, "add b").write()
    assert path.exists()


def test_without_a_path_nothing_is_written_or_read():
    record = repaired(Record(), "add a")
    record.load()
    record.write()
    assert record.total == 1


def test_the_date_is_told_once_it_is_not_today():
    record = repaired(Record(None, lambda: NOON + 90000), "add a", who="by ufw")
    record.looked(Look())
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOON))
    assert record.story == f"nothing to keep: no documents; 1 repair, last {day} add a (by ufw)"


@pytest.mark.parametrize(
    ("at", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (NOON + 0.9996, "2026-11-24T12:00:01.000Z")]
)
def test_a_timestamp_is_rounded_to_the_millisecond(at, text):
    assert timestamp(at) == text


def test_the_archive_is_the_one_that_runs_though_the_link_leads_elsewhere_by_now(tmp_path, monkeypatch):
    """Else a role that has just installed another one would believe that it runs already."""
    old, new, link = tmp_path / "old.pyz", tmp_path / "new.pyz", tmp_path / "l4proxy"
    for archive in (old, new):
        archive.touch()
    link.symlink_to(old)
    monkeypatch.setattr(records, "__loader__", SimpleNamespace(archive=str(link)))
    made = Record(str(tmp_path / "state.json"))
    link.unlink()
    link.symlink_to(new)
    made.write()
    assert json.loads((tmp_path / "state.json").read_text())["archive"] == str(old)
