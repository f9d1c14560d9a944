# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin and metrics servers: the cost of each client is bounded, whatever it does."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import stat
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import (
    connection,
    listening,
    protocols,
    server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import settings
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import Timers

PIECE = b"?" * 1000


def echo(client, line):
    client.write(line + b"\n")


class Loop:
    """A server on an event loop that is turned by hand."""

    def __init__(self, path, answer=echo, keeps_connections=True):
        self.selector, self.timers, self.time = selectors.DefaultSelector(), Timers(), 100.0
        self.path = str(path / "sock")
        sock = listening._bind_path(self.path, None)
        loop = SimpleNamespace(selector=self.selector, timers=self.timers, now=lambda: self.time)
        handle = protocols.line_handler(answer)
        self.server = server.Server(loop, sock, handle, b"too long\n", keeps_connections)

    def client(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        self.turn()
        return sock

    def turn(self, passed=0.0):
        """Advance the clock, and run all timers and events that are due."""
        self.time += passed
        for item in self.timers.due(self.time):
            item()
        while ready := self.selector.select(0):
            for key, _mask in ready:
                key.data()

    def buffered(self):
        """Bytes that the server buffers for its clients."""
        return sum(len(client._input) + len(client._output) for client in self.server.connections)


@pytest.fixture
def make(tmp_path):
    loops = []

    def loop(*arguments):
        loops.append(Loop(tmp_path, *arguments))
        return loops[-1]

    yield loop
    for each in loops:
        each.server.close()
        each.selector.close()


def test_requests_are_answered_in_order_however_they_are_split_and_a_client_that_asks_stays_connected(make):
    loop = make()
    with loop.client() as sock:
        for piece in (b"on", b"e\ntwo\nth", b"ree\n"):
            sock.sendall(piece)
            loop.turn()
        assert sock.recv(100) == b"one\ntwo\nthree\n"
        for _request in range(5):
            loop.turn(server.IDLE_TIMEOUT - 1)
            sock.sendall(b"?\n")
            loop.turn()
            assert sock.recv(10) == b"?\n"


def flood(loop, sock, piece, most):
    """Send pieces until the server accepts no more. It never buffers more than ``most`` bytes. Return what was sent."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while sent < 64 * most:
            sent += sock.send(piece)
            loop.turn()
            assert loop.buffered() <= most
    return sent


@pytest.mark.parametrize(("piece", "connections"), [(PIECE, 0), (PIECE + b"\n", 1)])
def test_a_request_without_an_end_is_refused_and_a_client_that_does_not_read_is_not_read_from(make, piece, connections):
    loop, most = make(), connection.MAX_REQUEST + (1 + connections) * connection.CHUNK
    with loop.client() as sock:
        sent = flood(loop, sock, piece, most)
        assert sent < 64 * most if connections else sent <= most
        assert len(loop.server.connections) == connections


def test_too_much_unread_output_ends_the_connection(make):
    loop = make(lambda client, _line: client.write(b"x" * (connection.MAX_OUTPUT * 2)))
    with loop.client() as sock:
        sock.sendall(b"\n")
        loop.turn()
        assert not loop.server.connections


def stream(client, _line, count=200):
    """Write a large answer: 200 pieces of 100 kB."""
    client.write(bytes([number]) * 100_000 for number in range(count))


def test_a_large_answer_is_evaluated_while_the_client_reads_it(make):
    loop, most = make(stream), 2 * 100_000
    with loop.client() as sock:
        sock.sendall(b"\n\n")
        for number in (*range(200), *range(200)):
            received = b""
            while len(received) < 100_000:
                loop.turn()
                assert loop.buffered() <= most
                received += sock.recv(100_000 - len(received))
            assert received == bytes([number]) * 100_000


def test_a_deferred_answer_follows_the_large_one_that_is_being_sent(make):
    clients = []

    def answer(client, line):
        clients.append(client)
        if line == b"large":
            stream(client, line)

    loop = make(answer)
    with loop.client() as sock:
        sock.sendall(b"slow\nlarge\n")
        loop.turn()
        clients[0].write(b"slow answer\n")
        received = b""
        while len(received) < 20_000_012:
            loop.turn()
            received += sock.recv(1 << 20)
        assert received.endswith(bytes([199]) * 100_000 + b"slow answer\n")


def test_the_number_of_large_answers_at_a_time_is_bounded(make):
    loop = make(stream)
    readers = []
    for _client in range(server.MAX_STREAMS + 1):
        readers.append(loop.client())
        readers[-1].sendall(b"\n")
        loop.turn(1)
    assert len(loop.server.connections) == server.MAX_STREAMS
    received = sum(iter(lambda: len(readers[0].recv(1 << 20)), 0))
    assert received < 20_000_000, "the first answer was cut short"
    for sock in readers:
        sock.close()


def test_a_new_client_replaces_the_one_that_has_waited_longest(make):
    loop = make()
    waiting = []
    for _client in range(server.MAX_CONNECTIONS):
        waiting.append(loop.client())
        waiting[-1].sendall(b"dr")  # an incomplete request
        loop.turn(0.1)
    waiting[0].sendall(b"op\n")
    loop.turn(0.1)
    assert waiting[0].recv(100) == b"drop\n", "the first one has an answer, so now the second one has waited longest"
    with loop.client() as late:
        late.sendall(b"?\n")
        loop.turn()
        assert late.recv(10) == b"?\n"
        assert waiting[1].recv(1) == b""
        assert len(loop.server.connections) == server.MAX_CONNECTIONS
    for sock in waiting:
        sock.close()


# Whether the server keeps connections, what the client sends first and does repeatedly, when it is disconnected.
@pytest.mark.parametrize(("keeps", "first", "act", "timeout"), [
    (True, b"?", "write", connection.EXCHANGE_TIMEOUT),
    (False, b"?", "write", connection.EXCHANGE_TIMEOUT),
    (False, b"", "write", connection.EXCHANGE_TIMEOUT),
    (True, b"\n", "read", connection.EXCHANGE_TIMEOUT),
    (False, b"\n", "read", connection.EXCHANGE_TIMEOUT),
    (True, b"\n", "wait", connection.EXCHANGE_TIMEOUT),
    (False, b"", "wait", connection.EXCHANGE_TIMEOUT),
    (True, b"", "wait", server.IDLE_TIMEOUT),
])  # fmt: skip
def test_a_slow_client_is_disconnected_however_often_it_moves_a_byte(make, keeps, first, act, timeout):
    loop, passed = make(stream, keeps), 0.0
    with loop.client() as sock:
        sock.sendall(first)
        loop.turn()
        while loop.server.connections:
            assert passed <= timeout + 1
            if act == "write":
                sock.sendall(b"?")
            elif act == "read":
                sock.recv(1000)
            loop.turn(0.5)
            passed += 0.5
    assert passed >= timeout - 1


def test_without_descriptors_one_client_is_disconnected_and_accepting_pauses(make):
    loop = make()
    with loop.client() as idle, socket.socket(socket.AF_UNIX) as late:
        late.settimeout(5)
        late.connect(loop.path)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open(os.devnull, "rb") as next_file:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_file.fileno(), limits[1]))
        try:
            loop.turn()  # would never return if the listening socket were still polled
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert idle.recv(1) == b""
        loop.turn(server.ACCEPT_PAUSE + 0.2)
        late.sendall(b"?\n")
        loop.turn()
        assert late.recv(10) == b"?\n"


def test_the_admin_socket_is_for_owner_and_group_and_replaces_no_other_kind_of_file(make, tmp_path):
    loop = make()
    assert stat.S_IMODE(os.stat(loop.path).st_mode) == 0o660
    assert [file.name for file in tmp_path.iterdir()] == ["sock"]
    path = tmp_path / "notes"
    path.write_text("kept")
    with pytest.raises(FileExistsError):
        listening._bind_path(str(path), None)
    assert path.read_text() == "kept"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes", "sock"]
    path.unlink()
    for _time in range(2):  # an old socket is replaced
        listening._bind_path(str(path), None).close()


def test_the_names_of_the_sockets_of_a_config(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")
    plain = Config(proxy_id=1, services=())
    assert listening.names(plain) == ["admin:/run/x/admin.sock"]
    admin, metrics = settings.Admin(socket="/run/y.sock"), settings.Metrics(listen="[::1]:9110")
    chosen = Config(proxy_id=1, services=(), admin=admin, metrics=metrics)
    assert listening.names(chosen) == ["admin:/run/y.sock", "metrics:[::1]:9110"]
    assert list(map(listening.kind_of, listening.names(chosen))) == [listening.ADMIN, listening.METRICS]


@pytest.mark.parametrize(("request_", "status", "body"), [
    (b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"GET /a HTTP/1.0\n\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"HEAD /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b""),
    (b"POST /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 405 ", b""),
    (b"GET /a\r\n\r\n", b"HTTP/1.0 400 ", b""),
    (b"GET /\xff HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", "/ÿ".encode()),
    (b"\r\n\r\n", b"HTTP/1.0 400 ", b""),
])  # fmt: skip
def test_http_requests_and_their_answers(request_, status, body):
    written = []
    client = SimpleNamespace(write=lambda data, last: written.append((data, last)))
    handle = protocols.http_handler(lambda path: ("200 OK", "text/plain", iter([path])))
    assert handle(client, bytearray(request_[:-1])) is False
    assert handle(client, bytearray(request_)) is True
    ((data, last),) = written[-1:]
    head, _blank, sent = data.partition(b"\r\n\r\n")
    assert (data.startswith(status), sent, last) == (True, body, True)
    assert b"Connection: close" in head
