# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The forwarder's config and process; the sample config is one that the forwarder accepts."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import forwarder
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import OldCode, Socket

from ...._forwarder.config.config_data import minimal

CONFIG = minimal()
(SERVICE,) = CONFIG["services"]
SERVICE["backends"][0]["ipv6"] = "2001:db8::21"


@pytest.fixture
def read(tmp_path):
    def call(text: str | None, runtime: object = None):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        (tmp_path / "runtime.json").write_text(json.dumps(runtime))
        return forwarder.read(str(tmp_path / "config.json"), str(tmp_path / "runtime.json"), "/proc")

    return call


def test_listeners_and_targets_come_from_the_config(read):
    config.load(CONFIG)
    found = read(json.dumps(CONFIG))
    assert found.listeners == (Socket("tcp", "0.0.0.0", 80),)
    assert found.backends == ("198.18.0.21",), "no service listens on IPv6"
    assert found.targets == (Socket("tcp", "198.18.0.21", 8080),)
    assert (found.error, found.pid) == (None, None)


def test_the_process_comes_from_the_runtime_file_and_proc_and_without_a_config_there_is_none(read):
    assert read(None) is None
    found = read(json.dumps(CONFIG), {"pid": os.getpid()})
    assert (found.pid, found.capabilities is not None, found.uid) == (os.getpid(), True, os.geteuid())
    assert read(json.dumps(CONFIG), {"pid": 2**22 + 1}).pid is None
    assert read(json.dumps(CONFIG), ["?"]).pid is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"services": [{}]}', '{"services": 7}'])
def test_an_invalid_config_is_an_error(read, text):
    assert "is invalid" in read(text).error


def test_port_ranges_are_read(read):
    listen = [{"address": "0.0.0.0", "port": "8000-8010"}, {"address": "::", "port": "9000-9010"}]
    backends = [{**SERVICE["backends"][0], "port": "8000-8010"}]
    ranged = {**CONFIG, "services": [{**SERVICE, "listen": listen, "backends": backends}]}
    config.load(ranged)
    assert read(json.dumps(ranged)).listeners == (Socket("tcp", "0.0.0.0", 8000, 8010), Socket("tcp", "::", 9000, 9010))


RUNNING = {"version": "0.2.0", "archive": {"path": "x", "sha256": "aa"}}


def old_generation(number, version="0.2.0", sha256="aa"):
    archive = {"path": "x", "sha256": sha256} if sha256 else None
    return {"generation": number, "version": version, "archive": archive, "sessions": 3, "age": 5.0}


@pytest.mark.parametrize(("answer", "found", "not_saved"), [
    ({"status": {**RUNNING, "old_generations": [old_generation(4)]}}, (), None),
    ({"status": {**RUNNING, "old_generations": [
        old_generation(1, None, None), old_generation(2, "0.1.1", "bb"), old_generation(3, "0.2.0", "cc"),
        old_generation(4)]}},
     (OldCode(1, None, 3, 5.0), OldCode(2, "0.1.1", 3, 5.0), OldCode(3, "0.2.0", 3, 5.0)), None),
    ({"status": {**RUNNING, "archive": None, "old_generations": [old_generation(4, sha256=None)]}}, (), None),
    ({"status": RUNNING}, (), None),  # version 0.1.0
    ({"ok": False, "error": "no config is served yet"}, (), None),
    ([], (), None),
    (None, (), None),
    ({"status": {**RUNNING, "state_file": {"path": "x", "error": None}}}, (), None),
    ({"status": {**RUNNING, "state_file": {"path": "x", "error": "x: full"}}}, (), "x: full"),
    ({"status": {**RUNNING, "state_file": []}}, (), None),
    ({"status": {**RUNNING, "state_file": "x"}}, (), None),
])  # fmt: skip
@pytest.mark.parametrize("configured", [True, False])
def test_old_code_and_a_state_that_is_not_saved_come_from_the_admin_socket(
    tmp_path, read, answer, found, not_saved, configured
):
    path = tmp_path / ("other.sock" if configured else "admin.sock")
    with socket.socket(socket.AF_UNIX) as server:
        if answer is not None:
            server.bind(str(path))
            server.listen()

        def serve():
            client, _address = server.accept()
            with client:
                assert client.recv(100) == b'{"op": "status"}\n'
                client.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        if answer is not None:
            thread.start()
        config_ = {**CONFIG, **({"admin": {"socket": str(path)}} if configured else {})}
        forwarder = read(json.dumps(config_), {"pid": os.getpid()})
        assert (forwarder.old_code, forwarder.not_saved) == (found, not_saved)
        if answer is not None:
            thread.join(10)
