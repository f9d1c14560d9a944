# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications to systemd: states, and listening sockets that it stores and gives back."""

from __future__ import annotations

import gc
import os
import selectors
import socket
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    name = str(tmp_path / "notify") if request.param == "path" else f"@l4proxy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


@pytest.fixture
def notifier():
    with selectors.DefaultSelector() as selector:
        yield notify.Notifier(selector)


def test_states_are_notified(systemd, notifier):
    notifier.ready("generation 1 serves")
    assert systemd.recv(1000).decode() == f"READY=1\nSTATUS=generation 1 serves\nMAINPID={os.getpid()}"
    notifier.reloading()
    assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.stopping()
    assert systemd.recv(1000).startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("status", ["x" * 10_000, "two\nlines", "€" * 5000, "half \ud800 a pair"])
def test_a_status_is_one_line_of_bounded_length(systemd, notifier, status):
    """systemd ignores a message above 4096 bytes, even with the READY that ends a reload."""
    notifier.ready(status)
    lines = systemd.recv(100_000).decode().splitlines()
    assert [line.partition("=")[0] for line in lines] == ["READY", "STATUS", "MAINPID"]
    assert len(lines[1].encode()) <= 1007


def test_sockets_are_stored_by_name_and_removed(systemd, notifier):
    name = "tcp:[::]:80#0"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert notifier.store({name: listener}) == 0
        data, (number,), _flags, _address = socket.recv_fds(systemd, 1000, 2)
        assert data == b"FDSTORE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"
        with socket.socket(fileno=number) as kept:
            assert kept.getsockname() == listener.getsockname()
        notifier.store({name: listener})
        notifier.store({})
        assert systemd.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"


def receive(systemd, stored):
    """Receive one message and update ``stored``, the names that systemd stores; return the message's first key."""
    data, numbers, _flags, _address = socket.recv_fds(systemd, 5000, 2)
    message = dict(line.split("=", 1) for line in data.decode().splitlines())
    for number in numbers:
        os.close(number)
    if "FDSTORE" in message:
        stored.add(message["FDNAME"])
    if "FDSTOREREMOVE" in message:
        stored.remove(message["FDNAME"])
    return next(iter(message))


def receive_all(systemd, notifier, stored):
    """Receive messages and run the notifier, in turns, until there are none left; return the first keys."""
    keys = []
    systemd.setblocking(False)
    while True:
        try:
            keys.append(receive(systemd, stored))
        except BlockingIOError:
            if not notifier.descriptors():
                return keys
        for key, _mask in notifier._selector.select(0):
            key.data()


@pytest.mark.parametrize("count", [3, 1500])
def test_with_a_short_queue_nothing_is_lost_and_ready_precedes_the_sockets(systemd, notifier, count):
    stored = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names = {f"tcp:0.0.0.0:{10000 + number}#0": listener for number in range(count)}
        notifier.store(names)
        notifier.ready("x")
        assert bool(notifier.descriptors()) == (count == 1500), "the control: the queue is full"
        room = len(notifier.names)
        keys = receive_all(systemd, notifier, stored)
        assert len(stored) == len(notifier.names) == count
        assert keys.index("READY") <= room
        assert not notifier.finish(0.01) or not notifier.descriptors()
        notifier.store({})
        receive_all(systemd, notifier, stored)
        assert stored == notifier.names == set()


def test_waiting_changes_follow_the_config_and_are_sent_before_the_end(systemd, notifier):
    stored = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.store({f"tcp:0.0.0.0:{10000 + number}#0": listener for number in range(1500)})
        kept = {f"tcp:0.0.0.0:{11000 + number}#0": listener for number in range(600)}
        notifier.store(kept)
        assert not notifier.finish(0.05), "systemd does not read"
        messages = 2 * len(notifier.names) + len(kept)  # those stored for the first config are removed
        reader = threading.Thread(target=lambda: [receive(systemd, stored) for _message in range(messages)])
        reader.start()
        assert notifier.finish(20)
        reader.join(20)
        assert notifier.names == set(kept)
        assert len(stored) == len(kept)


@pytest.mark.parametrize(("limit", "count", "kept"), [("", 5000, 4096), ("100", 101, 100), ("9999", 9000, 2857)])
def test_no_more_sockets_are_stored_than_systemd_can_give_back(systemd, notifier, monkeypatch, limit, count, kept):
    monkeypatch.setenv("FDSTORE", limit)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "[2001:db8::1]" if limit == "9999" else "9.9.9.9"
        names = {f"tcp:{address}:{10000 + number}#0": listener for number in range(count)}
        assert notifier.store(names) == count - kept
        stored = set()
        receive_all(systemd, notifier, stored)
    assert len(stored) == kept
    assert len(":".join(stored)) < 120_000, "the kernel's limit of one environment variable, 128 KiB"


def test_stored_listeners_are_found_and_descriptors_for_another_process_are_ignored(monkeypatch):
    monkeypatch.setattr(notify, "FIRST_STORED", 200)
    gc.collect()  # sockets that other tests have left may have these numbers, and would close them later
    with socket.socket() as sock, open(os.devnull, "rb") as other:
        for place in range(5):
            os.dup2((other if place == 2 else sock).fileno(), 200 + place)
    encoded = "tcp%3A%5B%3A%3A%5D%3A80%230"
    names = f"{encoded}:stored:udp%3A9.9.9.9%3A53%231:udp%3A9.9.9.9%3A53%230:{encoded}"
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "5", "LISTEN_FDNAMES": names, "x": "y"}
    assert notify.stored(environ) == {"tcp:[::]:80#0": 204, "udp:9.9.9.9:53#0": 203}
    assert environ == {"x": "y"}
    assert [number for number in range(200, 205) if os.path.exists(f"/proc/self/fd/{number}")] == [203, 204]
    os.closerange(203, 205)
    assert notify.stored({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "tcp%3A9.9.9.9%3A80%230"}) == {}
    assert notify.stored({}) == {}


@pytest.mark.parametrize("address", [None, "/nonexistent/notify"])
def test_without_systemd_nothing_is_stored_and_nothing_waits(monkeypatch, notifier, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.ready("x")
        notifier.store({"tcp:9.9.9.9:80#0": listener})
    assert notifier.names == set()
    assert notifier.finish(0)
