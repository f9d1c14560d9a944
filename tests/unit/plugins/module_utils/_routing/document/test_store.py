# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The directory of documents, atomic writes, and the lock."""

from __future__ import annotations

import json
import os
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import files

MINE = {"schema": 1, "owner": "mine", "protocol": 210}


def put(directory, name: str, data: object) -> None:
    (directory / name).write_text(data if isinstance(data, str) else json.dumps(data))


def test_a_stored_document_is_loaded_unchanged_and_without_a_directory_there_is_none(tmp_path):
    loaded = documents.load({**MINE, "sysctls": [{"name": "a.b", "value": 1}]})
    files.write(store.path_of(str(tmp_path), "mine"), store.content_of(loaded), store.MODE)
    (stored,) = store.load_all(str(tmp_path))
    assert stored.document == loaded
    assert os.stat(stored.path).st_mode & 0o777 == 0o644
    assert store.load_all(str(tmp_path / "none")) == []


@pytest.mark.parametrize(("name", "data", "expected"), [
    ("mine.json", "{", "is not JSON"),
    ("mine.json", {**MINE, "protocol": 1}, "protocol: 1 is not"),
    ("other.json", MINE, "owner: the document of owner mine must be named mine.json"),
])  # fmt: skip
def test_an_invalid_file_does_not_hide_the_others(tmp_path, name, data, expected):
    put(tmp_path, name, data)
    put(tmp_path, "return_path.json", {**MINE, "owner": "return_path", "protocol": 202})
    put(tmp_path, ".hidden.json", "{")
    put(tmp_path, "README", "{")
    bad, good = store.load_all(str(tmp_path))
    assert bad.errors[0].startswith(expected)
    assert good.document.owner == "return_path"


def test_two_documents_with_one_protocol_are_both_invalid(tmp_path):
    for owner in ("mine", "yours"):
        put(tmp_path, f"{owner}.json", {**MINE, "owner": owner})
    assert [stored.document for stored in store.load_all(str(tmp_path))] == [None, None]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(str(path), "old")

    def full(_descriptor):
        raise OSError(28, "No space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(str(path), "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_lock_is_held_by_one_at_a_time(tmp_path):
    path = str(tmp_path / "run" / "lock")
    refusal = pytest.raises(RoutingError, match=r"timed out after 0\.1 s waiting for lock")
    with files.locked(path), refusal, files.locked(path, timeout=0.1):
        pass
    with files.locked(path, timeout=0.1):
        pass


def test_a_second_process_waits_for_the_lock(tmp_path):
    path, order = str(tmp_path / "lock"), []

    def second() -> None:
        with files.locked(path):
            order.append("second")

    with files.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_symbolic_link_is_not_accepted_as_the_lock(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), files.locked(str(tmp_path / "lock")):
        pass
    assert not (tmp_path / "elsewhere").exists()
