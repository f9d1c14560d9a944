# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime file, and whether the process that wrote it still runs."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import runtime_file


@pytest.mark.parametrize(("environment", "directory"), [
    ({}, "/run/l4proxy"),
    ({"RUNTIME_DIRECTORY": ""}, "/run/l4proxy"),
    ({"RUNTIME_DIRECTORY": "/run/x"}, "/run/x"),
    ({"RUNTIME_DIRECTORY": "/run/x:/run/y"}, "/run/x"),
])  # fmt: skip
def test_the_runtime_directory_is_the_first_that_systemd_names(environment, directory):
    assert runtime_file.directory(environment) == directory


def test_a_written_file_can_be_read_and_removed(tmp_path):
    name = str(tmp_path / "deeper" / "forwarder.json")
    assert runtime_file.read(name) is None
    document = {"schema": 1, "pid": 1, "text": "ü"}
    runtime_file.write(document, name)
    assert runtime_file.read(name) == document
    assert stat.S_IMODE(os.stat(name).st_mode) == 0o644
    assert os.listdir(os.path.dirname(name)) == ["forwarder.json"]
    runtime_file.remove(name)
    runtime_file.remove(name)
    assert runtime_file.read(name) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_an_invalid_runtime_file_is_ignored(tmp_path, text):
    path = tmp_path / "forwarder.json"
    path.write_text(text, encoding="utf-8")
    assert runtime_file.read(str(path)) is None


def test_a_failed_write_is_an_error_and_leaves_no_file(tmp_path):
    (tmp_path / "forwarder.json").mkdir()
    with pytest.raises(OSError):
        runtime_file.write({"schema": 1}, str(tmp_path / "forwarder.json"))
    assert os.listdir(tmp_path) == ["forwarder.json"]


def test_only_the_process_that_wrote_the_file_is_alive():
    own = {"pid": os.getpid(), "started": runtime_file.start_time(os.getpid())}
    assert runtime_file.alive(own)
    assert not runtime_file.alive({**own, "started": own["started"] - 1}), "another process with this pid"
    assert not runtime_file.alive({"pid": None, "started": None})
    process = subprocess.Popen(["sleep", "60"])
    theirs = {"pid": process.pid, "started": runtime_file.start_time(process.pid)}
    assert runtime_file.alive(theirs)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not runtime_file.alive(theirs), "a zombie is not alive"
    process.wait()
    assert not runtime_file.alive(theirs)


def test_checksums_of_files_and_bytes_are_equal_and_code_from_a_directory_has_no_archive(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert runtime_file.sha256_file(str(tmp_path / "file")) == runtime_file.sha256(data) == expected
    assert runtime_file.running_archive() is None
