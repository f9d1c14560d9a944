# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of the supervisor: whatever a client does, what it costs has a bound."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import endpoint, settings
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.wheel import Wheel

CHATTY = b"?" * 1000


class Loop:
    """A selector, a wheel and a clock, turned by hand; a server that answers a line with a line of the same length."""

    def __init__(self, path, answer=lambda client, line: client.write(line + b"\n")):
        self.selector, self.wheel, self.time = selectors.DefaultSelector(), Wheel(), 100.0
        self.path = str(path / "sock")
        sock = endpoint._bind_path(self.path, None)
        loop = SimpleNamespace(selector=self.selector, wheel=self.wheel, now=lambda: self.time)
        self.server = endpoint.Server(loop, sock, endpoint.line_handler(answer), b"too long\n")

    def client(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        self.turn()
        return sock

    def turn(self, passed=0.0):
        """Let time pass, and everything happen that is due."""
        self.time += passed
        for item in self.wheel.due(self.time):
            item()
        while ready := self.selector.select(0):
            for key, _mask in ready:
                key.data()

    def held(self):
        """Bytes the server keeps for its clients."""
        return sum(len(client._input) + len(client._output) for client in self.server.clients)


@pytest.fixture
def make(tmp_path):
    made = []

    def loop(*arguments):
        made.append(Loop(tmp_path, *arguments))
        return made[-1]

    yield loop
    for one in made:
        one.server.close()
        one.selector.close()


def test_lines_are_answered_in_order_however_they_are_cut(make):
    loop = make()
    with loop.client() as sock:
        for piece in (b"on", b"e\ntwo\nth", b"ree\n"):
            sock.sendall(piece)
            loop.turn()
        assert sock.recv(100) == b"one\ntwo\nthree\n"


def flood(loop, sock, piece, most):
    """Send pieces until the server takes no more; it never holds more than ``most`` bytes. Returns what was sent."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while sent < 64 * most:
            sent += sock.send(piece)
            loop.turn()
            assert loop.held() <= most
    return sent


def test_a_line_without_an_end_is_refused(make):
    loop, most = make(), endpoint.LARGEST_REQUEST + endpoint.CHUNK
    with loop.client() as sock:
        assert flood(loop, sock, CHATTY, most) <= most
    assert not loop.server.clients


def test_who_does_not_read_is_not_read_from(make):
    loop, most = make(), endpoint.LARGEST_REQUEST + 2 * endpoint.CHUNK
    with loop.client() as sock:
        assert flood(loop, sock, CHATTY + b"\n", most) < 64 * most
        assert len(loop.server.clients) == 1


def test_an_answer_that_is_too_large_ends_the_connection(make):
    loop = make(lambda client, _line: client.write(b"x" * (endpoint.LARGEST_OUTPUT + 1)))
    with loop.client() as sock:
        sock.sendall(b"\n")
        loop.turn()
        assert not loop.server.clients


def test_clients_beyond_the_bound_are_turned_away(make):
    loop = make()
    inside = [loop.client() for _client in range(endpoint.MOST_CLIENTS)]
    with loop.client() as outside:
        assert outside.recv(1) == b""
    inside.pop().close()
    loop.turn()
    with loop.client() as late:
        late.sendall(b"?\n")
        loop.turn()
        assert late.recv(10) == b"?\n"
    for sock in inside:
        sock.close()


def test_who_makes_no_progress_is_dropped_and_who_does_is_not(make):
    loop = make()
    with loop.client() as busy, loop.client() as idle:
        for _turn in range(3):
            busy.sendall(b"?")
            loop.turn()
            loop.turn(endpoint.IDLE * 0.6)
        loop.turn()
        assert len(loop.server.clients) == 1
        assert idle.recv(1) == b""
    assert loop.held() == 3


def test_the_socket_of_an_admin_is_for_owner_and_group(make):
    loop = make()
    assert stat.S_IMODE(os.stat(loop.path).st_mode) == 0o660
    assert not os.path.exists(f"{loop.path}.new")


def test_what_a_config_wants(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")
    plain = Config(proxy_id=1, services=())
    assert endpoint.wanted(plain) == {"admin:/run/x/admin.sock": "admin"}
    admin, metrics = settings.Admin(socket="/run/y.sock"), settings.Metrics(listen="[::1]:9110")
    chosen = Config(proxy_id=1, services=(), admin=admin, metrics=metrics)
    assert endpoint.wanted(chosen) == {"admin:/run/y.sock": "admin", "metrics:[::1]:9110": "metrics"}


TEST_HTTP = [
    (b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"GET /a HTTP/1.0\n\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"HEAD /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b""),
    (b"POST /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 405 ", b""),
    (b"GET /a\r\n\r\n", b"HTTP/1.0 400 ", b""),
    (b"GET /\xff HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", "/ÿ".encode("latin-1")),
    (b"\r\n\r\n", b"HTTP/1.0 400 ", b""),
]


@pytest.mark.parametrize(("request_", "status", "body"), TEST_HTTP)
def test_http(request_, status, body):
    written = []
    client = SimpleNamespace(write=lambda data, last: written.append((data, last)))
    handle = endpoint.http_handler(lambda path: ("200 OK", "text/plain", path.encode("latin-1")))
    handle(client, bytearray(request_[:-1]))
    handle(client, bytearray(request_))
    ((data, last),) = written[-1:]
    head, _blank, found = data.partition(b"\r\n\r\n")
    assert (data.startswith(status), found, last) == (True, body, True)
    assert b"Connection: close" in head
