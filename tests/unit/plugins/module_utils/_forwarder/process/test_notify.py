# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify: datagrams to the socket the environment names, by path or in the abstract namespace."""

from __future__ import annotations

import os
import selectors
import socket
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
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


def test_what_the_service_manager_hears(manager, notifier):
    notifier.ready("generation 1 serves")
    assert manager.recv(1000).decode().splitlines() == [
        "READY=1",
        "STATUS=generation 1 serves",
        f"MAINPID={os.getpid()}",
    ]
    notifier.reloading()
    assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.stopping()
    assert manager.recv(1000).startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("status", ["x" * 10_000, "two\nlines", "€" * 5000, "half \ud800 a pair"])
def test_no_status_is_too_long_or_of_two_lines(manager, notifier, status):
    """systemd ignores a message above 4096 bytes, and with it the READY that ends a reload."""
    notifier.ready(status)
    lines = manager.recv(100_000).decode().splitlines()
    assert [line.partition("=")[0] for line in lines] == ["READY", "STATUS", "MAINPID"]
    assert len(lines[1].encode()) <= 1007


def test_sockets_are_kept_by_name_and_given_back(manager, notifier):
    name = "tcp:[::]:80#0"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert notifier.keep({name: listener}) == 0
        data, (number,), _flags, _address = socket.recv_fds(manager, 1000, 2)
        assert data == b"FDSTORE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"
        with socket.socket(fileno=number) as kept:
            assert kept.getsockname() == listener.getsockname()
        notifier.keep({name: listener})
        notifier.keep({})
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=tcp%3A%5B%3A%3A%5D%3A80%230"


def hear(manager, held):
    """Read one message; returns its first key. ``held`` becomes what a service manager then has."""
    data, numbers, _flags, _address = socket.recv_fds(manager, 5000, 2)
    message = dict(line.split("=", 1) for line in data.decode().splitlines())
    for number in numbers:
        os.close(number)
    if "FDSTORE" in message:
        held.add(message["FDNAME"])
    if "FDSTOREREMOVE" in message:
        held.remove(message["FDNAME"])
    return next(iter(message))


def hear_all(manager, notifier, held):
    """Read and let the selector go on, in turns, until there is nothing left; returns what was heard."""
    heard = []
    manager.setblocking(False)
    while True:
        try:
            heard.append(hear(manager, held))
        except BlockingIOError:
            if not notifier.descriptors():
                return heard
        for key, _mask in notifier._selector.select(0):
            key.data()


@pytest.mark.parametrize("count", [3, 1500])
def test_a_short_queue_loses_nothing_and_ready_does_not_wait_for_the_sockets(manager, notifier, count):
    held = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names = {f"tcp:0.0.0.0:{10000 + number}#0": listener for number in range(count)}
        notifier.keep(names)
        notifier.ready("x")
        assert bool(notifier.descriptors()) == (count == 1500), "the control: the queue is full"
        room = len(notifier.names)
        heard = hear_all(manager, notifier, held)
        assert len(held) == len(notifier.names) == count
        assert heard.index("READY") <= room
        assert not notifier.finish(0.01) or not notifier.descriptors()
        notifier.keep({})
        hear_all(manager, notifier, held)
        assert held == notifier.names == set()


def test_what_waits_follows_the_config_and_is_said_before_the_end(manager, notifier):
    held = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.keep({f"tcp:0.0.0.0:{10000 + number}#0": listener for number in range(1500)})
        kept = {f"tcp:0.0.0.0:{11000 + number}#0": listener for number in range(600)}
        notifier.keep(kept)
        assert not notifier.finish(0.05), "nobody reads"
        said = 2 * len(notifier.names) + len(kept)  # what was kept of the first is kept no more
        reader = threading.Thread(target=lambda: [hear(manager, held) for _message in range(said)])
        reader.start()
        assert notifier.finish(20)
        reader.join(20)
        assert notifier.names == set(kept)
        assert len(held) == len(kept)


@pytest.mark.parametrize(("told", "count", "kept"), [("", 5000, 4096), ("100", 101, 100), ("9999", 9000, 2857)])
def test_the_service_manager_is_given_what_it_can_pass_on(manager, notifier, monkeypatch, told, count, kept):
    monkeypatch.setenv("FDSTORE", told)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "[2001:db8::1]" if told == "9999" else "9.9.9.9"
        names = {f"tcp:{address}:{10000 + number}#0": listener for number in range(count)}
        assert notifier.keep(names) == count - kept
        held = set()
        hear_all(manager, notifier, held)
    assert len(held) == kept
    assert len(":".join(held)) < 120_000, "what the kernel takes as one variable, 128 KiB"


def test_what_was_kept_is_found_and_all_else_is_closed(monkeypatch):
    monkeypatch.setattr(notify, "FIRST_STORED", 200)
    with socket.socket() as sock, open(os.devnull, "rb") as other:
        for place in range(5):
            os.dup2((other if place == 2 else sock).fileno(), 200 + place)
    spelled = "tcp%3A%5B%3A%3A%5D%3A80%230"
    names = f"{spelled}:stored:udp%3A9.9.9.9%3A53%231:udp%3A9.9.9.9%3A53%230:{spelled}"
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "5", "LISTEN_FDNAMES": names, "x": "y"}
    assert notify.stored(environ) == {"tcp:[::]:80#0": 204, "udp:9.9.9.9:53#0": 203}
    assert environ == {"x": "y"}
    assert [number for number in range(200, 205) if os.path.exists(f"/proc/self/fd/{number}")] == [203, 204]
    os.closerange(203, 205)


def test_what_is_meant_for_another_process_is_not_taken():
    assert notify.stored({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "tcp%3A9.9.9.9%3A80%230"}) == {}
    assert notify.stored({}) == {}


@pytest.mark.parametrize("address", [None, "/nonexistent/notify"])
def test_without_a_service_manager_nothing_happens(monkeypatch, notifier, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier.ready("x")
        notifier.keep({"tcp:9.9.9.9:80#0": listener})
    assert notifier.names == set()
    assert notifier.finish(0)
