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


def test_sockets_are_kept_by_name_and_given_back(manager, monkeypatch):
    name = "tcp:[::]:80#0"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = notify.Store()
        store.keep({name: listener})
        data, (number,), _flags, _address = socket.recv_fds(manager, 1000, 2)
        assert data == b"FDSTORE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"
        with socket.socket(fileno=number) as kept:
            assert kept.getsockname() == listener.getsockname()
        store.keep({name: listener})
        store.keep({})
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"
    environ = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "tcp%3A%5B%3A%3A%5D%3A80%230:b",
        "x": "y",
    }
    assert notify.stored(environ) == {name: 3, "b": 4}
    assert environ == {"x": "y"}
    assert notify.stored({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}) == {}
    assert notify.stored({}) == {}


def test_without_a_service_manager_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.ready("x") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    assert notify.ready("x") is False
