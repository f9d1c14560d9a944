# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime file, and whether the process it names is still the one that wrote it."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import runtime

TEST_DIRECTORIES = [
    ({}, "/run/l4proxy"),
    ({"RUNTIME_DIRECTORY": ""}, "/run/l4proxy"),
    ({"RUNTIME_DIRECTORY": "/run/x"}, "/run/x"),
    ({"RUNTIME_DIRECTORY": "/run/x:/run/y"}, "/run/x"),
]


@pytest.mark.parametrize(("environment", "directory"), TEST_DIRECTORIES)
def test_the_directory(environment, directory):
    assert runtime.directory(environment) == directory


def test_write_read_remove(tmp_path):
    name = str(tmp_path / "deeper" / "forwarder.json")
    assert runtime.read(name) is None
    document = {"schema": 1, "pid": 1, "text": "ü"}
    runtime.write(document, name)
    assert runtime.read(name) == document
    assert stat.S_IMODE(os.stat(name).st_mode) == 0o644
    assert os.listdir(os.path.dirname(name)) == ["forwarder.json"]
    runtime.remove(name)
    runtime.remove(name)
    assert runtime.read(name) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_what_is_no_runtime_file_is_none(tmp_path, text):
    path = tmp_path / "forwarder.json"
    path.write_text(text, encoding="utf-8")
    assert runtime.read(str(path)) is None


def test_a_directory_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "forwarder.json").mkdir()
    with pytest.raises(OSError):
        runtime.write({"schema": 1}, str(tmp_path / "forwarder.json"))
    assert os.listdir(tmp_path) == ["forwarder.json"]


def test_alive():
    own = {"pid": os.getpid(), "started": runtime.start_time(os.getpid())}
    assert runtime.alive(own)
    assert not runtime.alive({**own, "started": own["started"] - 1}), "another process got the number"
    assert not runtime.alive({"pid": None, "started": None})
    process = subprocess.Popen(["sleep", "60"])
    theirs = {"pid": process.pid, "started": runtime.start_time(process.pid)}
    assert runtime.alive(theirs)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not runtime.alive(theirs), "a zombie serves nobody"
    process.wait()
    assert not runtime.alive(theirs)


def test_checksums(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    assert runtime.sha256_file(str(tmp_path / "file")) == runtime.sha256(data) == hashlib.sha256(data).hexdigest()


def test_code_from_a_directory_has_no_archive():
    assert runtime.running_archive() is None
