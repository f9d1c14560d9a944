# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify: datagrams to the socket the environment names, by path or in the abstract namespace."""

from __future__ import annotations

import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    name = str(tmp_path / "notify") if request.param == "path" else f"@l4proxy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_what_the_service_manager_hears(manager):
    assert notify.ready("generation 1 serves")
    assert manager.recv(1000).decode().splitlines() == [
        "READY=1",
        "STATUS=generation 1 serves",
        f"MAINPID={os.getpid()}",
    ]
    assert notify.reloading()
    assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert notify.stopping()
    assert manager.recv(1000).startswith(b"STOPPING=1\n")


def test_without_a_service_manager_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.ready("x") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    assert notify.ready("x") is False
